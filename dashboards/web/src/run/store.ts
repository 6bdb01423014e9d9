import { computed, signal } from "@preact/signals";
import * as api from "../api";
import { isOrdinaryValue, kept, onlyValue, panels, shadowColors, stillConstant, type Panel } from "../charts/panels";
import { listen } from "../events";
import { marksOf, sampleClock } from "../marks";
import type { Source } from "../charts/source";
import { Rate } from "../rate";
import { Series } from "../series";
import { mayAct, session } from "../session";
import { view } from "../url";

const MAX_POINTS = 1000;
/** Few, so that the charts in the window need not wait for those below it. */
const KEYS_A_REQUEST = 6;
const POLL_MS = 3000;
const FRAME_MS = 250;
const REST_MS = 300;
const SEAM_MS = 3000;
const ALERTS_KEPT = 5;

/** One run as the page knows it: loaded once, then kept up by the event stream. */
export class RunStore implements Source {
  readonly run = signal<api.Run | null>(null);
  readonly hparams = signal<api.HyperParameters | null>(null);
  readonly kinds = signal<readonly api.PolicyKind[]>([]);
  readonly keys = signal<readonly string[]>([]);
  readonly alerts = signal<readonly api.Alert[]>([]);
  readonly error = signal<api.Problem | null>(null);
  /** Samples a second over the last while; NaN until known. */
  readonly rate = signal(NaN);
  /** Counts up, at most four times a second, when there is something to draw. */
  readonly frame = signal(0);

  /** Values that have been the same at every step. */
  readonly constants = signal<ReadonlyMap<string, number>>(new Map());

  private readonly changesById = signal<ReadonlyMap<number, api.Change>>(new Map());
  readonly changes = computed(() => [...this.changesById.value.values()].sort((a, b) => a.id - b.id));
  private readonly batchSizes = signal<api.Buckets | null>(null);
  readonly marks = computed(() => {
    const run = this.run.value;
    return marksOf(
      this.changes.value,
      view.value.x,
      sampleClock(this.batchSizes.value, run?.progress ?? { steps: 0, samples: 0 }),
      run?.policies.map((policy) => policy.name) ?? [],
    );
  });

  /** Changes that a roll back has undone. */
  readonly voided = computed(() => new Set(this.marks.value.filter((m) => m.isVoid).map((m) => m.change.id)));

  /** Would-be values that hold until the next, which may be long in coming. */
  readonly held = computed(
    () =>
      new Set(
        this.run.value?.policies.flatMap((p) => Object.keys(p.would_be).map((param) => `shadow/${p.name}/${param}`)),
      ),
  );
  private drawn: readonly Panel[] = [];
  readonly panels = computed(() => (this.drawn = kept(this.drawn, panels(this.keys.value))));
  readonly shadowColors = computed(() => shadowColors(this.keys.value));

  readonly series = new Map<string, Series>();
  /** From the first to the last x of all series: every chart shows the same stretch. */
  extent: api.Window = { from: 0, to: 1 };

  private readonly pace = new Rate();
  private axis = view.peek().x;
  private readonly early = new Map<string, Series>();
  private readonly wanted = new Set<string>();
  private readonly inView = new Set<string>();
  private waiting = new Set<string>();
  private frameTimer = 0;
  private drawnAt = -Infinity;
  private refineTimer = 0;
  private seam = Infinity;
  private seamTimer = 0;
  private pollTimer = 0;
  private generation = 0;
  private close: () => void = () => undefined;

  /** Whether anything can be changed here: by this person, and of a run that has not ended. */
  readonly changeable = computed(() => mayAct.value && this.run.value !== null && !api.ended(this.run.value));

  readonly relative = false;

  constructor(readonly id: string) {}

  get name(): string {
    return this.id;
  }

  /** What was measured last holds until it is measured again. */
  endOf(): number {
    return Infinity;
  }

  csv(keys: readonly string[]): Promise<Blob> {
    return api.metricsCsv(
      this.id,
      keys.filter((key) => this.keys.peek().includes(key)),
    );
  }

  start(): void {
    this.close = listen([this.id], {
      metrics: (event: api.MetricsEvent) => this.onMetrics(event),
      hparams: (event: api.HyperParameters) => (this.hparams.value = event),
      changes: (event: { change: api.Change }) => this.record([event.change]),
      runs: (event: api.RunSummary) => this.onSummary(event),
      alerts: (event: api.Alert) => this.onAlert(event),
      reset: () => void this.reload(),
    });
    void this.load();
    this.pollTimer = window.setInterval(() => document.hidden || void this.refresh(), POLL_MS);
  }

  stop(): void {
    this.close();
    clearInterval(this.pollTimer);
    clearTimeout(this.frameTimer);
    clearTimeout(this.refineTimer);
    clearTimeout(this.seamTimer);
    this.generation++;
  }

  /** All anew: something may have been missed. */
  async reload(): Promise<void> {
    await this.load();
    await this.reloadSeries();
  }

  /** All but the series, which charts ask for as they come into view. */
  private async load(): Promise<void> {
    try {
      await Promise.all([
        this.refresh(),
        this.refreshHparams(),
        api.allChanges(this.id).then((changes) => this.record(changes)),
        api.metricKeys(this.id).then(({ keys }) => this.know(keys)),
      ]);
      // Forms and the samples axis can wait: what is looked at first is not kept up by them.
      await Promise.all([api.policyKinds(this.id).then(({ kinds }) => (this.kinds.value = kinds)), this.loadClock()]);
    } catch (error) {
      this.fail(error);
    }
  }

  /** Which metrics there are, and which of the values are constant: one bucket over the whole run tells. */
  private async know(keys: readonly string[]): Promise<void> {
    const values = keys.filter(isOrdinaryValue);
    if (values.length) {
      const { series } = await api.metrics(this.id, values, "step", 1);
      this.constants.value = new Map(
        Object.entries(series).flatMap(([key, { min, max }]) => {
          const only = onlyValue(min, max);
          return only === null ? [] : [[key, only] as const];
        }),
      );
    }
    this.keys.value = keys;
  }

  /** What no event carries: ranks, noise, overhead, the policies' last words. */
  async refresh(): Promise<void> {
    try {
      this.run.value = await api.run(this.id);
      this.error.value = null;
    } catch (error) {
      this.fail(error);
    }
  }

  async refreshHparams(): Promise<void> {
    this.hparams.value = await api.hyperparameters(this.id);
  }

  private fail(error: unknown): void {
    const problem = api.Problem.of(error);
    if (problem.status === 401) session.value = "needed";
    this.error.value = problem;
  }

  /** A chart came into view: bring its metrics, all that are asked for in this turn with one request. */
  enter(keys: readonly string[]): void {
    if (this.waiting.size === 0) queueMicrotask(() => void this.loadWaiting());
    for (const key of keys) {
      if (!this.wanted.has(key)) this.waiting.add(key);
      this.wanted.add(key);
      this.inView.add(key);
    }
    this.refine();
  }

  leave(keys: readonly string[]): void {
    keys.forEach((key) => this.inView.delete(key));
  }

  /** Another axis, or history that was overwritten: all series anew. */
  async reloadSeries(): Promise<void> {
    this.generation++;
    this.axis = view.peek().x;
    this.series.clear();
    this.early.clear();
    this.waiting = new Set(this.wanted);
    await Promise.all([this.loadClock(), this.loadWaiting()]);
  }

  /** What tells samples from steps. */
  private async loadClock(): Promise<void> {
    const steps = await api.metrics(this.id, ["hp/batch_size"], "step", MAX_POINTS).catch(() => null);
    this.batchSizes.value = steps?.series["hp/batch_size"] ?? null;
  }

  private async loadWaiting(): Promise<void> {
    const keys = [...this.waiting];
    this.waiting.clear();
    const generation = this.generation;
    for (let i = 0; i < keys.length; i += KEYS_A_REQUEST) {
      try {
        const { series } = await api.metrics(this.id, keys.slice(i, i + KEYS_A_REQUEST), this.axis, MAX_POINTS);
        if (generation !== this.generation) return;
        for (const [key, buckets] of Object.entries(series)) this.settle(key, Series.of(buckets));
        this.closeSeam(series);
        this.draw();
      } catch (error) {
        this.fail(error);
      }
    }
    if (keys.length > 0 && view.peek().zoom) this.refine();
  }

  private settle(key: string, series: Series): void {
    const early = this.early.get(key);
    early?.column("x").forEach((x, i) => series.append(x, early.column("last")[i]!));
    this.early.delete(key);
    this.series.set(key, series);
  }

  /** Finer buckets for the stretch that is zoomed into, once the hand rests. */
  refine(): void {
    clearTimeout(this.refineTimer);
    this.refineTimer = window.setTimeout(() => {
      const { zoom } = view.peek();
      if (zoom) void this.fill(zoom);
    }, REST_MS);
  }

  private async fill(window: api.Window): Promise<void> {
    const generation = this.generation;
    const keys = [...this.inView];
    if (keys.length === 0) return;
    const answer = await api.metrics(this.id, keys, this.axis, MAX_POINTS, window).catch(() => null);
    if (answer === null || generation !== this.generation) return;
    for (const [key, buckets] of Object.entries(answer.series)) this.series.get(key)?.refine(buckets);
    this.draw();
  }

  /** The server writes metrics out about once a second: what lies between its file and the stream comes later. */
  private closeSeam(series: Record<string, api.Buckets>): void {
    const ends = Object.values(series).flatMap((buckets) => buckets.x.at(-1) ?? []);
    this.seam = Math.min(this.seam, ends.length ? Math.max(...ends) : Infinity);
    clearTimeout(this.seamTimer);
    this.seamTimer = window.setTimeout(() => {
      if (this.seam < this.extent.to) void this.fill({ from: this.seam, to: this.extent.to });
      this.seam = Infinity;
    }, SEAM_MS);
  }

  private onMetrics(event: api.MetricsEvent): void {
    if (event.rewind !== undefined) void this.reloadSeries();
    const names = new Set(this.keys.peek());
    const fresh = [...Object.keys(event.series ?? {}), ...Object.keys(event.sparse ?? {})].filter(
      (key) => !names.has(key),
    );
    if (fresh.length) this.keys.value = [...this.keys.peek(), ...fresh];
    const x = event[this.axis] ?? [];
    for (const [key, values] of Object.entries(event.series ?? {})) this.append(key, x, values);
    this.constants.value = stillConstant(this.constants.peek(), event.series ?? {}, new Set(fresh.filter(isOrdinaryValue)));
    for (const [key, points] of Object.entries(event.sparse ?? {})) {
      // Its first point may be its last for long, and the server stores it a moment later than the chart asks.
      if (fresh.includes(key)) this.ahead(key);
      this.append(key, points[this.axis], points.value);
    }
    this.rate.value = this.pace.take(event.samples ?? [], event.time ?? []);
    this.draw();
  }

  private append(key: string, x: readonly number[], values: readonly number[]): void {
    const ahead = this.wanted.has(key) || this.early.has(key);
    const series = this.series.get(key) ?? (ahead ? this.ahead(key) : null);
    if (series) values.forEach((value, i) => series.append(x[i]!, value));
  }

  /** Live points of a metric whose history is still on its way. */
  private ahead(key: string): Series {
    const series = this.early.get(key) ?? new Series();
    this.early.set(key, series);
    return series;
  }

  private record(changes: readonly api.Change[]): void {
    this.changesById.value = new Map([...this.changesById.peek(), ...changes.map((c) => [c.id, c] as const)]);
  }

  private onSummary(summary: api.RunSummary): void {
    const run = this.run.peek();
    if (run && summary.id === this.id) this.run.value = { ...run, ...summary, policies: run.policies };
  }

  private onAlert(alert: api.Alert): void {
    this.alerts.value = [...this.alerts.peek(), alert].slice(-ALERTS_KEPT);
  }

  private draw(): void {
    const live = [...this.series.values()].filter((series) => series.length > 0);
    if (live.length) {
      this.extent = {
        from: Math.min(...live.map((series) => series.column("x")[0]!)),
        to: Math.max(...live.map((series) => series.end)),
      };
    }
    this.frameTimer ||= window.setTimeout(
      () =>
        requestAnimationFrame((now) => {
          this.frameTimer = 0;
          this.drawnAt = now;
          this.frame.value++;
        }),
      this.drawnAt + FRAME_MS - performance.now(),
    );
  }
}
