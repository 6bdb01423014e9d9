import type { Window } from "../api";
import { lowerBound, align, smooth, type Series } from "../series";
import { isWouldBe, keysOf, type Panel } from "./panels";

export type Column = (number | null)[];

/** What a panel draws: a shared x, then low and high of the band, then min, max, raw and smooth of each line. */
export interface Columns {
  x: Float64Array;
  y: Column[];
}

export const BAND_COLUMNS = 2;
export const LINE_COLUMNS = 4;

/** Where the raw values of a line are. */
export const rawColumn = (panel: Panel, line: number): number => (panel.band ? BAND_COLUMNS : 0) + line * LINE_COLUMNS + 2;

/** Far above any plot, yet finite: where an unbounded confidence interval ends. */
const OUT_OF_SIGHT = 1e12;

const drawable = (value: number, log: boolean): number | null =>
  Number.isFinite(value) && !(log && value <= 0) ? value : null;

/** About one point a pixel of the widest chart. */
const POINTS = 1000;

/** Buckets for a window: a power of two wide, so that a growing window moves their edges seldom. */
export const bucketWidth = ({ from, to }: Window): number => 2 ** Math.ceil(Math.log2((to - from || 1) / POINTS));

const NONE: ReadonlySet<string> = new Set();

export function columns(
  panel: Panel,
  loaded: ReadonlyMap<string, Series>,
  window: Window,
  weight: number,
  log: boolean,
  /** Sparse metrics whose last value still holds. */
  held: ReadonlySet<string> = NONE,
): Columns {
  const keys = keysOf(panel);
  const width = bucketWidth(window);
  const series = new Map(keys.flatMap((key) => (loaded.has(key) ? [[key, loaded.get(key)!.thin(width)]] : [])));
  const axes = keys.map((key) => series.get(key)?.column("x") ?? new Float64Array());
  const { x, at } = align(axes);
  const empty = (): Column => new Array<number | null>(x.length).fill(null);
  const spread = (k: number, values: ArrayLike<number>, map = (v: number) => drawable(v, log)): Column => {
    const out = empty();
    const places = at[k]!;
    for (let i = 0; i < places.length; i++) out[places[i]!] = map(values[i]!);
    return out;
  };
  const range = window.to - window.from;

  const y: Column[] = [];
  if (panel.band) {
    const [low, high] = [panel.lines.length, panel.lines.length + 1];
    const floor = log ? 1 / OUT_OF_SIGHT : 0;
    const lows = series.get(keys[low]!)?.column("last") ?? [];
    const highs = series.get(keys[high]!)?.column("last") ?? [];
    y.push(
      spread(low, lows, (v) => (Number.isNaN(v) ? null : Math.max(v, floor))),
      spread(high, highs, (v) => (Number.isNaN(v) ? null : Math.min(v, OUT_OF_SIGHT))),
    );
  }
  panel.lines.forEach((line, k) => {
    const own = series.get(line.key);
    if (!own) {
      y.push(empty(), empty(), empty(), empty());
      return;
    }
    const thick = line.shape === "line";
    const raw = own.column(thick ? "mean" : "last");
    const drawn = spread(k, raw);
    if (isWouldBe(line.key)) hold(drawn, at[k]!, held.has(line.key) ? x.length : 0);
    y.push(
      thick ? spread(k, own.column("min")) : empty(),
      thick ? spread(k, own.column("max")) : empty(),
      drawn,
      weight > 0 && thick ? spread(k, smooth(axes[k]!, raw, weight, range)) : empty(),
    );
  });
  return { x, y };
}

/** Let the value at each of `places` hold until the next, the last one until `end`; what is no value leaves a gap. */
function hold(column: Column, places: ArrayLike<number>, end: number): void {
  for (let i = 0; i < places.length; i++) {
    const from = places[i]!;
    column.fill(column[from]!, from, places[i + 1] ?? Math.max(end, from + 1));
  }
}

/** The value that holds at index i: its own, or the nearest before it. */
export const valueAt = (column: Column, i: number): number | null => column[lastAt(column, i)] ?? null;

/** What a line is worth at index i: the value that holds there, and nothing beyond the end of what it tells of. */
export const heldAt = (x: Float64Array, column: Column, i: number, end: number): number | null =>
  x[i]! > end ? null : valueAt(column, i);

/** The same for line k of a panel. What would be holds as far as it is drawn. */
export function worth({ x, y }: Columns, panel: Panel, k: number, i: number, end: number): number | null {
  const column = y[rawColumn(panel, k)] ?? [];
  return isWouldBe(panel.lines[k]!.key) ? (column[i] ?? null) : heldAt(x, column, i, end);
}

/** The nearest place at or before i that has a value; −1 if there is none. */
function lastAt(column: Column, i: number): number {
  let at = Math.min(i, column.length - 1);
  while (at >= 0 && (column[at] ?? null) === null) at--;
  return at;
}

/** How wide the buckets are whose means a line shows around index i; 0 where they are single points' own values. */
export function meanOver({ x, y }: Columns, panel: Panel, k: number, i: number): number {
  if (panel.lines[k]?.shape !== "line") return 0;
  const [low, high, raw] = y.slice((panel.band ? BAND_COLUMNS : 0) + k * LINE_COLUMNS);
  // The newest bucket is still filling.
  const at = lastAt(raw ?? [], Math.min(i, x.length - 2));
  const before = lastAt(raw ?? [], at - 1);
  return before < 0 || low![at] === high![at] ? 0 : x[at]! - x[before]!;
}

/** First, last and extreme values within a window, for the chart's description in words. */
export function summary(
  x: Float64Array,
  column: Column,
  from: number,
  to: number,
): { last: number; min: number; max: number } | null {
  let [last, min, max] = [NaN, Infinity, -Infinity];
  for (let i = lowerBound(x, from); i < x.length && x[i]! <= to; i++) {
    const value = column[i];
    if (value === null || value === undefined) continue;
    last = value;
    min = Math.min(min, value);
    max = Math.max(max, value);
  }
  return Number.isNaN(last) ? null : { last, min, max };
}
