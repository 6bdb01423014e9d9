/** Which charts a run has, from the names of its metrics. */
import { number } from "../format";

export interface Line {
  key: string;
  label: string;
  /** Index into the series colours. */
  color: number;
  /** `exact`: never smoothed, for values that were set and not measured; `shadow`: those that were not even set. */
  shape: "line" | "exact" | "steps" | "dots" | "shadow";
}

export interface Panel {
  key: string;
  title: string;
  unit: string;
  lines: readonly Line[];
  /** Metrics that bound a shaded band around a line. */
  band: { low: string; high: string; color: number } | null;
  log: boolean;
  /** Parameters whose changes this chart is about: their marks stand out. */
  params: readonly string[];
}

const line = (key: string, label: string, color: number, shape: Line["shape"] = "line"): Line => ({
  key,
  label,
  color,
  shape,
});

const BUILT_IN: readonly Panel[] = [
  {
    key: "loss",
    title: "Loss",
    unit: "",
    band: null,
    log: false,
    params: [],
    lines: [line("loss", "loss", 0), line("val_loss", "val_loss", 1, "dots")],
  },
  {
    key: "hp/lr",
    title: "Learning rate",
    unit: "",
    band: null,
    log: false,
    params: ["lr"],
    lines: [line("hp/lr", "lr", 2, "exact")],
  },
  {
    key: "hp/batch_size",
    title: "Batch and noise scale",
    unit: "samples",
    log: true,
    params: ["batch_size"],
    band: { low: "noise_scale_low", high: "noise_scale_high", color: 4 },
    lines: [line("noise_scale", "noise", 4), line("hp/batch_size", "batch", 0, "steps")],
  },
  {
    key: "step_time",
    title: "Step time",
    unit: "s",
    band: null,
    log: false,
    params: [],
    lines: [line("step_time", "step", 0), line("data_time", "data", 3), line("reduce_time", "reduce", 2)],
  },
  {
    key: "grad_norm",
    title: "Gradient norm",
    unit: "",
    band: null,
    log: false,
    params: [],
    lines: [line("grad_norm", "grad_norm", 5)],
  },
];

/** Is it a value with a chart of its own only, which can be folded away while the value is constant? */
export const isOrdinaryValue = (key: string): boolean =>
  key.startsWith("hp/") && !BUILT_IN.some((panel) => panel.lines.some((one) => one.key === key));

/** The one value that a metric has everywhere, from the extremes of its buckets; null where it moves. */
export function onlyValue(min: readonly number[], max: readonly number[]): number | null {
  const low = Math.min(...min);
  return min.length > 0 && low === Math.max(...max) ? low : null;
}

/** What a chart that is folded away would show: the value, or that of each line where they differ. */
export function constantText({ title, lines }: Panel, constants: ReadonlyMap<string, number>): string {
  const values = lines.map((one) => constants.get(one.key));
  return `${title} ${(new Set(values).size === 1 ? values.slice(0, 1) : values).map((one) => number(one)).join(" / ")}`;
}

/** The constants, less those that have moved now, and with those that are seen for the first time. */
export function stillConstant(
  before: ReadonlyMap<string, number>,
  series: Readonly<Record<string, readonly number[]>>,
  fresh: ReadonlySet<string>,
): ReadonlyMap<string, number> {
  const begin = Object.entries(series).filter(([key, values]) => fresh.has(key) && values.length > 0);
  const all = new Map([...before, ...begin.map(([key, values]) => [key, values[0]!] as const)]);
  const moved = [...all].filter(([key, value]) => series[key]?.some((one) => one !== value)).map(([key]) => key);
  moved.forEach((key) => all.delete(key));
  return begin.length + moved.length > 0 ? all : before;
}

/** A policy's would-be value of a parameter: `shadow/POLICY/PARAM`. */
function shadowOf(key: string): { policy: string; param: string } | null {
  const [, policy, param] = /^shadow\/(.+)\/([^/]+)$/.exec(key) ?? [];
  return policy !== undefined && param !== undefined ? { policy, param } : null;
}

/** Is it what a policy would set? Such a value holds until the next, or until NaN marks its end. */
export const isWouldBe = (key: string): boolean => shadowOf(key) !== null;

/** Colours that the charts of parameters leave free; a policy has the same one on all of them. */
const SHADOW_COLORS = [1, 4, 3] as const;

/** The colour of each policy that decides in shadow. */
export function shadowColors(keys: readonly string[]): ReadonlyMap<string, number> {
  const policies = new Set(keys.flatMap((key) => shadowOf(key)?.policy ?? []));
  return new Map([...policies].sort().map((name, i) => [name, SHADOW_COLORS[i % SHADOW_COLORS.length]!]));
}

/** Built-in charts first, then other parameters, then what the user logs, each by name; on them what would be. */
export function panels(keys: readonly string[]): Panel[] {
  const known = new Set(keys);
  const builtIn = BUILT_IN.map((panel) => ({ ...panel, lines: panel.lines.filter((l) => known.has(l.key)) })).filter(
    (panel) => panel.lines.length > 0,
  );
  const taken = new Set(builtIn.flatMap((p) => [...p.lines.map((l) => l.key), p.band?.low, p.band?.high]));
  const rest = keys.filter((key) => !taken.has(key)).sort();
  const all = [
    ...builtIn,
    ...rest.filter((key) => key.startsWith("hp/")).map((key) => single(key, key.slice(3), "steps", [key.slice(3)])),
    ...rest.filter((key) => !/^(hp|shadow)\//.test(key)).map((key) => single(key, key, "line", [])),
  ];
  const colors = shadowColors(keys);
  const shadows = new Map<string, Line[]>();
  for (const key of rest) {
    const shadow = shadowOf(key);
    if (shadow === null) continue;
    const own = line(key, `${shadow.policy} (shadow)`, colors.get(shadow.policy)!, "shadow");
    shadows.set(shadow.param, [...(shadows.get(shadow.param) ?? []), own]);
  }
  return all.map((panel) => {
    const own = panel.params.flatMap((param) => shadows.get(param) ?? []);
    return own.length ? { ...panel, lines: [...panel.lines, ...own] } : panel;
  });
}

/** The panels as they were where they say the same: a chart is built anew for another panel. */
export function kept(before: readonly Panel[], now: readonly Panel[]): readonly Panel[] {
  const known = new Map(before.map((panel) => [JSON.stringify(panel), panel]));
  return now.map((panel) => known.get(JSON.stringify(panel)) ?? panel);
}

const single = (key: string, title: string, shape: Line["shape"], params: readonly string[]): Panel => ({
  key,
  title,
  unit: /_time(_|$)/.test(key) ? "s" : "",
  band: null,
  log: false,
  params,
  lines: [line(key, title, 0, shape)],
});

/** The one colour of a policy in shadow, as a class. */
export const swatch = (color: number | undefined): string => `swatch shape-shadow series-${color ?? SHADOW_COLORS[0]}`;

export const keysOf = (panel: Panel): string[] => [
  ...panel.lines.map((l) => l.key),
  ...(panel.band ? [panel.band.low, panel.band.high] : []),
];
