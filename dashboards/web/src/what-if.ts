/** What a replay answers, set side by side: what would have been decided, and what was. */
import type { Decision, Replay, Value } from "./api";
import { count } from "./format";
import { align } from "./series";

/** What the trial comes to: of the policy that was tried, and of all of them together. */
export function headline({ observations, decisions, recorded, equal }: Replay, name: string): string {
  const own = decisions.filter((one) => one.policy === name);
  const refused = own.filter((one) => one.refused !== null).length;
  const did = own.length > 0 ? `made ${many(own.length)}${refused > 0 ? ` (${count(refused)} refused)` : ""}` : "decided nothing";
  const told = `Had ${name} been there with these parameters from the run's start, it would have ${did} over ${count(observations)} observations.`;
  if (equal && decisions.length === 0) return `${told} Nor did any other policy decide anything.`;
  const other = recorded.length === 0 ? "where none is recorded" : `unlike the ${count(recorded.length)} recorded`;
  return `${told} All policies together would have made ${many(decisions.length)}, ${equal ? "the very same as recorded" : other}.`;
}

const many = (decisions: number): string => (decisions === 1 ? "1 decision" : `${decisions === 0 ? "no" : count(decisions)} decisions`);

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
  label: string;
  x: readonly number[];
  y: readonly (Value | boolean | null)[];
}

/** What each policy in shadow would have set a parameter to, from decision to decision: nothing of it is in force. */
export function shadows({ decisions }: Pick<Replay, "decisions">, param: string): Trace[] {
  const own = decisions.filter((one) => one.shadow && one.refused === null && one.param === param && one.after !== null);
  return [...new Set(own.map((one) => one.policy))].map((policy) => {
    const its = own.filter((one) => one.policy === policy);
    return { label: `${policy} (shadow)`, x: its.map((one) => one.step), y: its.map((one) => one.after) };
  });
}

export interface Overlaid {
  x: Float64Array;
  lines: readonly { label: string; y: readonly (number | null)[] }[];
}

/** Values on a shared axis; each holds until its next, and to the end. */
export function overlay(traces: readonly Trace[]): Overlaid {
  // Of several values at one step the last holds.
  const own = traces.map(({ x, y }) => new Map(x.map((at, i) => [at, y[i]!])));
  const { x, at } = align(own.map((one) => Float64Array.from(one.keys())));
  const lines = traces.map(({ label }, k) => {
    const out = new Array<number | null>(x.length).fill(null);
    [...own[k]!.values()].forEach((one, i) => (out[at[k]![i]!] = typeof one === "number" && Number.isFinite(one) ? one : null));
    const last = out.findLast((one) => one !== null);
    if (last !== undefined) out[x.length - 1] ??= last;
    return { label, y: out };
  });
  return { x, lines };
}

/** Metrics that were not recorded, each once, whoever would have read them. */
export const unread = (replay: Replay): string[] => [...new Set(Object.values(replay.unread).flat())].sort();
