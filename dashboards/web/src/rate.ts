import type { Run } from "./api";

interface Point {
  samples: number;
  time: number;
}

/** What a message weighs beside those before it. */
const WEIGHT = 0.2;

/** Samples a second as messages come in. One may hold a single step, whose time is the way from the step before it. */
export class Rate {
  private last: Point | null = null;
  private known = NaN;

  /** The rate after these points; NaN until two are known. */
  take(samples: readonly number[], time: readonly number[]): number {
    if (samples.length === 0) return this.known;
    const first = this.last ?? { samples: samples[0]!, time: time[0]! };
    const last = { samples: samples[samples.length - 1]!, time: time[time.length - 1]! };
    this.last = last;
    const now = (last.samples - first.samples) / (last.time - first.time);
    // Back at a checkpoint, or one point alone: nothing can be said of the way here.
    if (Number.isFinite(now) && now > 0)
      this.known = Number.isNaN(this.known) ? now : this.known * (1 - WEIGHT) + now * WEIGHT;
    return this.known;
  }
}

/** What the last step alone says of it, for a page that has seen no two steps yet. */
export function lastRate({ plan, ranks }: Pick<Run, "plan" | "ranks">): number {
  const took = Math.max(...ranks.map((rank) => rank.step_time ?? NaN));
  return (plan?.batch_size ?? NaN) / took;
}
