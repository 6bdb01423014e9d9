import { computed, signal } from "@preact/signals";
import * as api from "../api";
import { kept, onlyValue, type Line, type Panel } from "../charts/panels";
import type { Source } from "../charts/source";
import { listen } from "../events";
import { marksOf, sampleClock, type Mark } from "../marks";
import { Series } from "../series";
import { session } from "../session";
import { view } from "../url";

const POINTS = 600;
const KEYS_A_REQUEST = 8;
/** The server's limits: of keys a request, and of runs × keys × points. */
const MAX_KEYS = 50;
const MAX_CELLS = 200_000;
const REFRESH_MS = 2000;
const REST_MS = 300;
const COLORS = 6;

/** What is known of one of the runs. */
export interface Compared {
  run: api.Run;
  hparams: api.HyperParameters;
  changes: readonly api.Change[];
  keys: readonly string[];
}

/** A run's name, or its id where another of them has the same name. */
export function labelOf(run: api.Run, all: readonly Compared[]): string {
  return all.some((other) => other.run.id !== run.id && other.run.name === run.name) ? run.id : run.name;
}

const seriesKey = (run: string, key: string): string => `${run}\n${key}`;
const split = (of: string): [run: string, key: string] => of.split("\n") as [string, string];

/** Several runs on one grid. */
export class CompareStore implements Source {
  readonly name = "compare";
  readonly relative = true;
  readonly loaded = signal<ReadonlyMap<string, Compared>>(new Map());
  /** Runs that could not be loaded, and why. */
  readonly missing = signal<ReadonlyMap<string, api.Problem>>(new Map());
  readonly error = signal<api.Problem | null>(null);
  readonly frame = signal(0);
  /** Values that have been the same at every step of a run; the table has them too. */
  readonly constants = signal<ReadonlyMap<string, number>>(new Map());
  readonly held = signal<ReadonlySet<string>>(new Set());
  readonly series = new Map<string, Series>();
  extent: api.Window = { from: 0, to: 1 };

  private drawn: readonly Panel[] = [];
  /** Metrics that two of the runs have, or all that one has if there is nothing in common. */
  readonly panels = computed((): readonly Panel[] => {
    const all = [...this.loaded.value.entries()];
    const counts = new Map<string, number>();
    for (const [, { keys }] of all) keys.forEach((key) => counts.set(key, (counts.get(key) ?? 0) + 1));
    const first = ["loss", "val_loss", "hp/lr", "hp/batch_size", "noise_scale", "step_time"];
    const place = (key: string): number => (first.includes(key) ? first.indexOf(key) : first.length);
    const shown = [...counts.keys()].filter((key) => !/^shadow\/|^noise_scale_(low|high)$/.test(key));
    shown.sort((a, b) => place(a) - place(b) || counts.get(b)! - counts.get(a)! || (a < b ? -1 : 1));
    const now = shown.map((key) => this.panel(key, all));
    return (this.drawn = kept(this.drawn, now));
  });

  readonly marks = computed((): readonly Mark[] =>
    [...this.loaded.value.values()]
      .flatMap(({ run, changes }, _, all) => {
        const of = { label: labelOf(run, all), color: this.runs.indexOf(run.id) % COLORS };
        const start = Date.parse(run.created) / 1000;
        const clock = sampleClock(null, run.progress);
        const names = run.policies.map((policy) => policy.name);
        return marksOf(changes, view.value.x, clock, names).map((mark) => ({
          ...mark,
          x: view.value.x === "time" ? mark.x - start : mark.x,
          of,
        }));
      })
      .sort((a, b) => a.x - b.x),
  );

  private readonly inView = new Map<string, number>();
  private waiting = new Set<string>();
  private generation = 0;
  private refineTimer = 0;
  private refreshTimer = 0;
  private close: () => void = () => undefined;

  constructor(readonly runs: readonly string[]) {}

  start(): void {
    const later = (): void => {
      this.refreshTimer ||= window.setTimeout(() => {
        this.refreshTimer = 0;
        void this.refresh();
      }, REFRESH_MS);
    };
    this.close = listen(this.runs, {
      metrics: later,
      changes: ({ run, change }: { run: string; change: api.Change }) => this.onChange(run, change),
      hparams: later,
      reset: () => {
        this.loaded.value = new Map();
        void this.load();
      },
    });
    void this.load();
  }

  stop(): void {
    this.close();
    clearTimeout(this.refineTimer);
    clearTimeout(this.refreshTimer);
    this.generation++;
  }

  /** Where the run ends that the series is of: others may go on. */
  endOf(key: string): number {
    const [run] = split(key);
    const own = [...this.series].filter(([of, one]) => split(of)[0] === run && one.length > 0);
    return Math.max(...own.map(([, one]) => one.end));
  }

  private onChange(run: string, change: api.Change): void {
    const known = this.loaded.peek().get(run);
    if (!known) return;
    const changes = [...known.changes.filter((one) => one.id !== change.id), change].sort((a, b) => a.id - b.id);
    this.loaded.value = new Map(this.loaded.peek()).set(run, { ...known, changes });
  }

  async load(): Promise<void> {
    const known = this.loaded.peek();
    const found = await Promise.allSettled(this.runs.map((run) => one(run, known.get(run))));
    const missing = new Map<string, api.Problem>();
    const loaded = new Map<string, Compared>();
    found.forEach((answer, i) => {
      if (answer.status === "fulfilled") loaded.set(this.runs[i]!, answer.value);
      else missing.set(this.runs[i]!, api.Problem.of(answer.reason));
    });
    if ([...missing.values()].some((problem) => problem.status === 401)) session.value = "needed";
    this.constants.value = await constantsOf(loaded).catch(() => this.constants.peek());
    this.loaded.value = loaded;
    this.missing.value = missing;
  }

  enter(keys: readonly string[]): void {
    if (this.waiting.size === 0) queueMicrotask(() => void this.bring());
    for (const key of keys) {
      this.inView.set(key, (this.inView.get(key) ?? 0) + 1);
      if (!this.series.has(key)) this.waiting.add(key);
    }
    if (this.waiting.size === 0) this.refine();
  }

  leave(keys: readonly string[]): void {
    for (const key of keys) {
      const left = this.inView.get(key)! - 1;
      if (left > 0) this.inView.set(key, left);
      else this.inView.delete(key);
    }
  }

  async reloadSeries(): Promise<void> {
    this.generation++;
    this.series.clear();
    this.waiting = new Set(this.inView.keys());
    await this.bring();
  }

  refine(): void {
    clearTimeout(this.refineTimer);
    this.refineTimer = window.setTimeout(() => void this.fetch([...this.inView.keys()]), REST_MS);
  }

  /** Per run one table, one below the other: steps of different runs have nothing in common. */
  async csv(keys: readonly string[]): Promise<Blob> {
    const parts: BlobPart[] = [];
    for (const run of this.runs) {
      const own = keys.map(split).filter(([of]) => of === run);
      if (own.length === 0) continue;
      const text = await (
        await api.metricsCsv(
          run,
          own.map(([, key]) => key),
        )
      ).text();
      const [head, ...rows] = text.trimEnd().split(/\r?\n/);
      if (parts.length === 0) parts.push(`run,${head}\n`);
      parts.push(rows.map((row) => `${run},${row}\n`).join(""));
    }
    return new Blob(parts, { type: "text/csv" });
  }

  private panel(key: string, all: readonly (readonly [string, Compared])[]): Panel {
    const shape: Line["shape"] = key.startsWith("hp/") ? "steps" : "line";
    const lines = all.flatMap(([id, { run, keys }], i): Line[] =>
      keys.includes(key)
        ? [{ key: seriesKey(id, key), label: labelOf(run, all.map(([, one]) => one)), color: i % COLORS, shape: i < COLORS ? shape : "shadow" }]
        : [],
    );
    const title = key.replace(/^hp\//, "");
    const unit = /_time(_|$)/.test(key) ? "s" : "";
    return { key, title, unit, lines, band: null, log: false, params: key.startsWith("hp/") ? [title] : [] };
  }

  private async refresh(): Promise<void> {
    if (document.hidden) return;
    await this.load();
    await this.fetch([...this.inView.keys()]);
  }

  private async bring(): Promise<void> {
    const keys = [...this.waiting];
    this.waiting.clear();
    await this.fetch(keys);
  }

  private async fetch(wanted: readonly string[]): Promise<void> {
    const generation = this.generation;
    const keys = [...new Set(wanted.map((key) => split(key)[1]))];
    const runs = [...this.loaded.peek().keys()];
    const { x, zoom } = view.peek();
    const at_once = Math.max(1, Math.min(KEYS_A_REQUEST, Math.floor(MAX_CELLS / (POINTS * runs.length))));
    for (let i = 0; i < keys.length; i += at_once) {
      try {
        const grid = { x, points: POINTS, from: zoom?.from ?? null, to: zoom?.to ?? null };
        const answer = await api.compareMetrics(runs, keys.slice(i, i + at_once), grid);
        if (generation !== this.generation) return;
        this.take(answer);
        this.error.value = null;
      } catch (error) {
        this.error.value = api.Problem.of(error);
        return;
      }
    }
  }

  private take({ grid, runs }: api.Compared): void {
    for (const [run, series] of Object.entries(runs)) {
      for (const [key, cells] of Object.entries(series)) {
        const there = grid.flatMap((_, i) => (cells.last[i] === null ? [] : [i]));
        const column = (name: keyof api.Cells): number[] => there.map((i) => cells[name][i]!);
        const buckets = {
          x: there.map((i) => grid[i]!),
          last: column("last"),
          min: column("min"),
          max: column("max"),
          mean: column("mean"),
        };
        this.series.set(seriesKey(run, key), Series.of(buckets));
      }
    }
    if (view.peek().zoom === null) this.measure();
    this.frame.value++;
  }

  private measure(): void {
    const all = [...this.series.values()].filter((one) => one.length > 0);
    if (all.length === 0) return;
    this.extent = {
      from: Math.min(...all.map((one) => one.column("x")[0]!)),
      to: Math.max(...all.map((one) => one.end)),
    };
  }
}

/** Which values are constant in which run: one bucket over all that there is tells. */
async function constantsOf(loaded: ReadonlyMap<string, Compared>): Promise<ReadonlyMap<string, number>> {
  const values = new Set([...loaded.values()].flatMap(({ keys }) => keys.filter((key) => key.startsWith("hp/"))));
  const found = new Map<string, number>();
  if (values.size === 0) return found;
  const grid = { x: "step", points: 1, from: null, to: null } as const;
  const { runs } = await api.compareMetrics([...loaded.keys()], [...values].slice(0, MAX_KEYS), grid);
  for (const [run, series] of Object.entries(runs)) {
    for (const [key, { min, max }] of Object.entries(series)) {
      const only = onlyValue(numbers(min), numbers(max));
      if (only !== null) found.set(seriesKey(run, key), only);
    }
  }
  return found;
}

const numbers = (column: readonly (number | null)[]): number[] => column.filter((one) => one !== null);

/** All of a run, or of one that is known what may have changed without an event. */
async function one(run: string, known: Compared | undefined): Promise<Compared> {
  const [detail, hparams, changes, { keys }] = await Promise.all([
    api.run(run),
    api.hyperparameters(run),
    known?.changes ?? api.allChanges(run),
    api.metricKeys(run),
  ]);
  return { run: detail, hparams, changes, keys };
}
