import type { HyperParameter } from "../api";

/** One factor of a value, as a step from what was there before it to what is there after it. */
export interface Step {
  by: string;
  text: string;
  value: number;
  /** Ends of its bar [% of the width]. */
  from: number;
  to: number;
  tone: "base" | "up" | "down" | "same";
}

/** Widths below which a bar would not be seen [%]. */
const LEAST = 1.5;
/** Where the base's bar ends if nothing follows; a factor of 1 leaves it there. */
const MARGIN = 0.15;

/**
 * base × factor × … = value, on a logarithmic scale, on which equal factors are equally long. A factor of 0 goes to the
 * left edge. `clamped`: the product lies outside the bounds.
 */
export function steps({ base, factors, value, pin }: HyperParameter): { parts: Step[]; clamped: boolean } {
  if (typeof base !== "number") return { parts: [part("base", "", NaN, 0, 100, "base")], clamped: false };
  const running = [base];
  for (const factor of factors) running.push(running[running.length - 1]! * factor.value);
  const logs = running.map((one) => Math.log(Math.abs(one)));
  const finite = logs.filter(Number.isFinite);
  const low = Math.min(...finite);
  const span = Math.max(...finite) - low;
  const left = (log: number): number =>
    Number.isFinite(log) ? 100 * (span > 0 ? MARGIN + (1 - MARGIN) * ((log - low) / span) : 0.5) : 0;
  const parts = [part("base", "", base, 0, left(logs[0]!), "base")];
  factors.forEach((factor, i) => {
    const [a, b] = [left(logs[i]!), left(logs[i + 1]!)];
    const tone = factor.value === 1 ? "same" : b < a ? "down" : "up";
    parts.push(part(factor.by, factor.text, factor.value, Math.min(a, b), Math.max(a, b), tone));
  });
  const product = running[running.length - 1]!;
  const clamped =
    pin === null && typeof value === "number" && Math.abs(product - value) > 1e-6 * Math.max(Math.abs(product), Math.abs(value)) &&
    Math.round(product) !== value;
  return { parts, clamped };
}

const part = (by: string, text: string, value: number, from: number, to: number, tone: Step["tone"]): Step => ({
  by,
  text,
  value,
  from: Math.min(from, 100 - LEAST),
  to: Math.max(to, from + LEAST),
  tone,
});
