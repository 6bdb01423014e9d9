import type { ReadonlySignal } from "@preact/signals";
import type { Window } from "../api";
import type { Mark } from "../marks";
import type { Series } from "../series";

/** Where charts take what they draw: one run, or several on one grid. */
export interface Source {
  /** Begins the names of files. */
  readonly name: string;
  readonly series: ReadonlyMap<string, Series>;
  /** From the first to the last x of all series: every chart shows the same stretch. */
  readonly extent: Window;
  /** Counts up when there is something to draw. */
  readonly frame: ReadonlySignal<number>;
  readonly marks: ReadonlySignal<readonly Mark[]>;
  /** Sparse metrics whose last value still holds. */
  readonly held: ReadonlySignal<ReadonlySet<string>>;
  /** Values that have been the same at every step: their charts are folded away. */
  readonly constants: ReadonlySignal<ReadonlyMap<string, number>>;
  /** Whether the time axis counts from the start of each run instead of showing the clock. */
  readonly relative: boolean;
  /** The last x at which this series says anything; Infinity where its last value still holds. */
  endOf(key: string): number;
  /** A chart came into view, or went. */
  enter(keys: readonly string[]): void;
  leave(keys: readonly string[]): void;
  /** Bring finer points for the stretch that is zoomed into, once the hand rests. */
  refine(): void;
  /** The axis has changed. */
  reloadSeries(): Promise<void>;
  /** All points of these series, not only what is drawn. */
  csv(keys: readonly string[]): Promise<Blob>;
}
