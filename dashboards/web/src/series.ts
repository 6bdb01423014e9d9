import type { Buckets } from "./api";

const COLUMNS = ["x", "last", "min", "max", "mean"] as const;
type Column = (typeof COLUMNS)[number];

/** Above this many points the older ones are merged in pairs, so that a page left open for days stays quick. */
const MAX_POINTS = 40_000;

/**
 * One metric along one axis: buckets from the server, then live points, in growing typed arrays.
 * x only ever rises; a point at or before the end is one that the first load already brought.
 */
export class Series {
  length = 0;
  private columns: Record<Column, Float64Array>;

  constructor(capacity = 256) {
    this.columns = Object.fromEntries(COLUMNS.map((c) => [c, new Float64Array(capacity)])) as Record<
      Column,
      Float64Array
    >;
  }

  static of(buckets: Buckets): Series {
    const series = new Series(Math.max(256, buckets.x.length * 2));
    buckets.x.forEach((x, i) => series.push(x, buckets.last[i]!, buckets.min[i]!, buckets.max[i]!, buckets.mean[i]!));
    return series;
  }

  column(name: Column): Float64Array {
    return this.columns[name].subarray(0, this.length);
  }

  get end(): number {
    return this.length ? this.columns.x[this.length - 1]! : -Infinity;
  }

  append(x: number, value: number): void {
    if (x > this.end) this.push(x, value, value, value, value);
  }

  /** Put finer buckets in the place of the coarse ones that they cover. */
  refine(buckets: Buckets): void {
    if (buckets.x.length === 0) return;
    const from = buckets.x[0]!;
    const to = buckets.x[buckets.x.length - 1]!;
    const old = this.columns;
    const length = this.length;
    const head = lowerBound(this.column("x"), from);
    const tail = lowerBound(this.column("x"), to);
    if (tail - head >= buckets.x.length) return;
    this.columns = new Series(2 * (length + buckets.x.length)).columns;
    this.length = 0;
    const copy = (i: number): void => this.push(old.x[i]!, old.last[i]!, old.min[i]!, old.max[i]!, old.mean[i]!);
    for (let i = 0; i < head; i++) copy(i);
    buckets.x.forEach((x, i) => this.push(x, buckets.last[i]!, buckets.min[i]!, buckets.max[i]!, buckets.mean[i]!));
    for (let i = tail; i < length; i++) if (old.x[i]! > to) copy(i);
  }

  /**
   * The same in buckets `width` wide, their edges at multiples of it: what a chart draws. Old buckets and single live
   * points then look alike, and a bucket that is full does not change any more while the run goes on.
   */
  thin(width: number): Series {
    const { x, last, min, max, mean } = this.columns;
    const out = new Series(this.length || 1);
    for (let i = 0; i < this.length;) {
      const bucket = Math.floor(x[i]! / width);
      let [low, high, sum] = [NaN, NaN, 0];
      const first = i;
      for (; i < this.length && Math.floor(x[i]! / width) === bucket; i++) {
        // Comparisons that NaN fails, so that one undefined point does not blank its bucket.
        if (!(min[i]! >= low)) low = Number.isNaN(min[i]!) ? low : min[i]!;
        if (!(max[i]! <= high)) high = Number.isNaN(max[i]!) ? high : max[i]!;
        sum += mean[i]!;
      }
      out.push(x[i - 1]!, last[i - 1]!, low, high, sum / (i - first));
    }
    return out;
  }

  private push(x: number, last: number, min: number, max: number, mean: number): void {
    if (this.length === MAX_POINTS) this.merge();
    if (this.length === this.columns.x.length) {
      for (const name of COLUMNS) {
        const grown = new Float64Array(this.length * 2);
        grown.set(this.columns[name]);
        this.columns[name] = grown;
      }
    }
    const i = this.length++;
    this.columns.x[i] = x;
    this.columns.last[i] = last;
    this.columns.min[i] = min;
    this.columns.max[i] = max;
    this.columns.mean[i] = mean;
  }

  /** Merge neighbours in the older three quarters; extremes survive, so no spike disappears. */
  private merge(): void {
    const { x, last, min, max, mean } = this.columns;
    const old = Math.floor(this.length * 0.375) * 2;
    let to = 0;
    for (let i = 0; i < old; i += 2, to++) {
      x[to] = x[i + 1]!;
      last[to] = last[i + 1]!;
      min[to] = Math.min(min[i]!, min[i + 1]!);
      max[to] = Math.max(max[i]!, max[i + 1]!);
      mean[to] = (mean[i]! + mean[i + 1]!) / 2;
    }
    for (const name of COLUMNS) this.columns[name].copyWithin(to, old, this.length);
    this.length -= old - to;
  }
}

/** Index of the first element that is not below `value`. */
export function lowerBound(sorted: ArrayLike<number>, value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Points a chart shows at full width; the smoothing weight is per such point. */
const VIEW_POINTS = 1000;

/**
 * Exponential moving average, debiased, with weights that follow the distance along x: buckets of old points and
 * single live ones then smooth alike. `weight` in [0, 1) is what a point at 1/1000 of `range` keeps of the past.
 */
export function smooth(x: ArrayLike<number>, y: ArrayLike<number>, weight: number, range: number): Float64Array {
  const out = new Float64Array(y.length);
  let average = 0;
  let mass = 0;
  let before = x[0] ?? 0;
  for (let i = 0; i < y.length; i++) {
    const value = y[i]!;
    if (!Number.isFinite(value)) {
      out[i] = NaN;
      continue;
    }
    const distance = mass > 0 && range > 0 ? Math.max(1e-3, ((x[i]! - before) / range) * VIEW_POINTS) : 1;
    const keep = weight ** distance;
    average = average * keep + value * (1 - keep);
    mass = mass * keep + (1 - keep);
    before = x[i]!;
    out[i] = mass > 0 ? average / mass : value;
  }
  return out;
}

/** The union of sorted axes, and for each axis where its points lie in the union. */
export function align(axes: readonly Float64Array[]): { x: Float64Array; at: Int32Array[] } {
  const length = axes.reduce((sum, axis) => sum + axis.length, 0);
  const x = new Float64Array(length);
  const at = axes.map((axis) => new Int32Array(axis.length));
  const cursor = axes.map(() => 0);
  let size = 0;
  for (;;) {
    let next = Infinity;
    for (let a = 0; a < axes.length; a++) {
      const value = axes[a]![cursor[a]!];
      if (value !== undefined && value < next) next = value;
    }
    if (next === Infinity) return { x: x.subarray(0, size), at };
    for (let a = 0; a < axes.length; a++) {
      if (axes[a]![cursor[a]!] === next) at[a]![cursor[a]!++] = size;
    }
    x[size++] = next;
  }
}
