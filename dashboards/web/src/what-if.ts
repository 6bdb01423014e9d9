/** What a replay answers, set side by side: what would have been decided, and what was. */
import type { Decision, Replay, Value } from "./api";
import { align } from "./series";

/** One step and parameter: the would-be decision, the recorded one, or both. */
export interface Pair {
  step: number;
  param: string;
  would: Decision | null;
  was: Decision | null;
}

/** Decisions of both sides in the order of steps; those at the same step about the same parameter share a line. */
export function pairs({ decisions, recorded }: Pick<Replay, "decisions" | "recorded">): Pair[] {
  const waiting = new Map<string, Pair[]>();
  const out = decisions.map((would): Pair => {
    const pair = { step: would.step, param: would.param, would, was: null };
    const key = `${would.step} ${would.param}`;
    waiting.set(key, [...(waiting.get(key) ?? []), pair]);
    return pair;
  });
  for (const was of recorded) {
    const pair = waiting.get(`${was.step} ${was.param}`)?.shift();
    if (pair) pair.was = was;
    else out.push({ step: was.step, param: was.param, would: null, was });
  }
  return out.sort((a, b) => a.step - b.step);
}

/** Parameters that a decision of either side is about: numbers only, words have no chart. */
export function drawn(replay: Replay): string[] {
  const touched = new Set([...replay.decisions, ...replay.recorded].map((decision) => decision.param));
  return Object.entries(replay.values)
    .filter(([param, trace]) => touched.has(param) && trace.value.some((one) => typeof one === "number"))
    .map(([param]) => param);
}

interface Trace {
  x: readonly number[];
  y: readonly Value[];
}

/** A shared axis with the recorded and the would-be values on it; each holds until its next, and to the end. */
export function overlay(
  was: Trace,
  would: Trace,
): { x: Float64Array; was: (number | null)[]; would: (number | null)[] } {
  const { x, at } = align([Float64Array.from(was.x), Float64Array.from(would.x)]);
  const spread = (places: Int32Array, values: readonly Value[]): (number | null)[] => {
    const out = new Array<number | null>(x.length).fill(null);
    values.forEach((one, i) => (out[places[i]!] = typeof one === "number" && Number.isFinite(one) ? one : null));
    const last = out.findLast((one) => one !== null);
    if (last !== undefined) out[x.length - 1] ??= last;
    return out;
  };
  return { x, was: spread(at[0]!, was.y), would: spread(at[1]!, would.y) };
}

/** Metrics that were not recorded, each once, whoever would have read them. */
export const unread = (replay: Replay): string[] => [...new Set(Object.values(replay.unread).flat())].sort();
