/** How numbers, times and values read. Every number on the page goes through here. */

const trim = (text: string): string => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** Four significant digits, no trailing zeros; exponent form only where plain digits would mislead. */
export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) {
    return value
      .toExponential(Math.min(digits - 1, 2))
      .replace(/\.?0+e/, "e")
      .replace("e+", "e")
      .replace("-", "−");
  }
  const rounded = Number(value.toPrecision(digits));
  return (Math.abs(rounded) >= 1000 ? count(value) : String(rounded)).replace("-", "−");
}

/** A count as people write it: 60,000. */
export const count = (value: number): string => Math.round(value).toLocaleString("en-US");

const STEPS = [
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
] as const;

/** A count that must fit under an axis tick: 60k. */
export function compact(value: number): string {
  for (const [size, suffix] of STEPS) {
    if (Math.abs(value) >= size) return trim((value / size).toPrecision(4)) + suffix;
  }
  return number(value);
}

export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return number(value);
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${number(value * 1e6, 3)} µs`;
  if (size < 1) return `${number(value * 1e3, 3)} ms`;
  if (size < 120) return `${number(value, 3)} s`;
  if (size < 7200) return `${Math.round(value / 60)} min`;
  if (size < 172_800) return `${number(value / 3600, 2)} h`;
  return `${number(value / 86_400, 2)} d`;
}

export const quantity = (value: number | null | undefined, unit: string): string =>
  unit === "s" ? seconds(value) : `${number(value)}${unit && value !== null && value !== undefined ? ` ${unit}` : ""}`;

export const percent = (fraction: number): string =>
  `${(fraction * 100).toFixed(fraction > 0 && fraction < 0.1 ? 1 : 0)} %`;

/** A hyper-parameter's value, or a command's (`paused: true`). */
export function value(of: unknown): string {
  if (typeof of === "number") return number(of);
  if (of === null || of === undefined) return "–";
  return typeof of === "object" ? JSON.stringify(of) : String(of);
}

export function ago(time: string, now: number): string {
  const age = Math.max(0, (now - Date.parse(time)) / 1000);
  if (Number.isNaN(age)) return "–";
  return age < 5 ? "just now" : `${seconds(Math.round(age))} ago`;
}

/** A tick of a time axis whose ticks are `step` seconds apart. */
export function moment(unix: number, step: number): string {
  const date = new Date(unix * 1000);
  if (step >= 86_400) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return date.toLocaleTimeString("en-GB", {
    hour: "2-digit",
    minute: "2-digit",
    ...(step < 60 ? { second: "2-digit" } : {}),
  });
}

export const clock = (time: string): string =>
  new Date(time).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function bytes(value: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const size = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(value) / 3));
  return `${number(value / 1000 ** size, 3)} ${units[size]}`;
}

/** Text where nothing can be code: a tooltip. */
export const plain = (text: string): string => text.replaceAll("`", "");

/** Text in pieces: what stands between backticks is code. */
export const spans = (text: string): { text: string; code: boolean }[] =>
  text
    .split(/`+([^`]+)`+/)
    .map((piece, i) => ({ text: piece, code: i % 2 === 1 }))
    .filter((piece) => piece.text !== "");
