/** Which charts a run has, from the names of its metrics. */

export interface Line {
  key: string;
  label: string;
  /** Index into the series colours. */
  color: number;
  /** `exact`: a line that is never smoothed, for values that were set and not measured. */
  shape: "line" | "exact" | "steps" | "dots";
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

/** Built-in charts first, then other parameters, then what the user logs, each by name. */
export function panels(keys: readonly string[]): Panel[] {
  const known = new Set(keys);
  const builtIn = BUILT_IN.map((panel) => ({ ...panel, lines: panel.lines.filter((l) => known.has(l.key)) })).filter(
    (panel) => panel.lines.length > 0,
  );
  const taken = new Set(builtIn.flatMap((p) => [...p.lines.map((l) => l.key), p.band?.low, p.band?.high]));
  const rest = keys.filter((key) => !taken.has(key)).sort();
  return [
    ...builtIn,
    ...rest.filter((key) => key.startsWith("hp/")).map((key) => single(key, key.slice(3), "steps", [key.slice(3)])),
    ...rest.filter((key) => !key.startsWith("hp/")).map((key) => single(key, key, "line", [])),
  ];
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

export const keysOf = (panel: Panel): string[] => [
  ...panel.lines.map((l) => l.key),
  ...(panel.band ? [panel.band.low, panel.band.high] : []),
];
