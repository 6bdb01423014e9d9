import type { Axis, Buckets, Change, Progress, ValueChange } from "./api";
import { count, value } from "./format";
import { lowerBound } from "./series";

/** Most telling first: where marks fall together, the first is drawn. */
export const EVENTS = ["rollback", "loss", "resize", "sync"] as const;
export type RunEvent = (typeof EVENTS)[number];

/** A version that took effect, or workers that were replaced at once, placed on the charts' axis. */
export interface Mark {
  change: Change;
  step: number;
  x: number;
  /** Whose value it changed; what has moved behind a pin only is none of these. */
  params: readonly string[];
  /** A person's doing, not a policy's: drawn in another colour. */
  byPerson: boolean;
  /** What the whole run went through, not one value: it stands out on every chart. */
  event: RunEvent | null;
  /** A roll back has undone it. */
  isVoid: boolean;
  /** The run that it is of, where several are shown. */
  of?: { label: string; color: number };
}

/** The step that the ranks went back to with this version; null if they did not. */
export function wentBackTo(change: Change): number | null {
  const to = change.changes.find((c) => c.param === "rollback")?.to;
  // A roll back that failed is a version like others: the ranks take it up where they are.
  const step = appliedStep(change);
  return typeof to === "number" && step !== null && step <= to + 1 ? to : null;
}

/** What roll backs have undone of what `machines` had set since; what people have asked for stays. */
export function voided(changes: readonly Change[], machines: ReadonlySet<string>): Set<number> {
  const out = new Set<number>();
  let standing: Change[] = [];
  for (const change of changes) {
    const to = wentBackTo(change);
    if (to !== null) {
      // A checkpoint has the version of the step after it: the ranks take that up, and then save.
      const beyond = (c: Change): boolean => (appliedStep(c) ?? 0) > to + 1;
      standing.filter(beyond).forEach((c) => out.add(c.id));
      standing = standing.filter((c) => !beyond(c));
    }
    if (change.kind === "version" && change.changes.every((c) => machines.has(c.by))) standing.push(change);
  }
  return out;
}

/** The event that a change is, if it is one of the whole run. */
export function eventOf(change: Change): RunEvent | null {
  if (wentBackTo(change) !== null) return "rollback";
  const size = change.changes.find((c) => c.param === "world_size");
  if (size) return change.kind === "formation" || / lost\b/.test(size.reason) ? "loss" : "resize";
  return change.changes.some((c) => c.param === "sync" && c.from !== null && c.from !== c.to) ? "sync" : null;
}

/** The one step at which a change came into force, on every rank if it is for them; null while it has not. */
export function appliedStep(change: Change): number | null {
  const steps = Object.values(change.applied);
  if (steps.length > 0) return Math.max(...steps);
  return change.status === "applied" ? change.accepted_at_step : null;
}

/**
 * Step to samples, from what the global batch was: bucket means times bucket widths add up to the samples at each
 * bucket's end exactly, and within a bucket the error stays below a pixel.
 */
export function sampleClock(batch: Buckets | null, progress: Progress): (step: number) => number {
  if (batch === null || batch.x.length === 0) return (step) => (step * progress.samples) / Math.max(1, progress.steps);
  const ends = new Float64Array(batch.x.length);
  batch.x.forEach((x, i) => (ends[i] = (ends[i - 1] ?? 0) + (x - (batch.x[i - 1] ?? 0)) * batch.mean[i]!));
  return (step) => {
    const i = Math.min(lowerBound(batch.x, step), ends.length - 1);
    return ends[i]! + (step - batch.x[i]!) * batch.mean[i]!;
  };
}

/** Authors that are no person: the script, the worker group, the batch's rule, and policies, also those since deleted. */
export function machines(changes: readonly Change[], policies: readonly string[]): Set<string> {
  const named = changes.flatMap((c) =>
    c.kind === "policy" ? c.changes.map((v) => v.param.replace(/^policy /, "")) : [],
  );
  return new Set(["script", "workers", "resume", "batch", ...policies, ...named]);
}

/** Marks of all applied changes of value, in the order of x. */
export function marksOf(
  changes: readonly Change[],
  axis: Axis,
  samplesAt: (step: number) => number,
  policies: readonly string[],
): Mark[] {
  const known = machines(changes, policies);
  const undone = voided(changes, known);
  return changes
    .flatMap((change) => {
      const step = appliedStep(change);
      if (step === null || !["version", "formation"].includes(change.kind)) return [];
      // Time: the moment of the decision. It lies a few steps before the effect, which no axis of minutes can show.
      const x = axis === "step" ? step : axis === "samples" ? samplesAt(step) : Date.parse(change.accepted_at) / 1000;
      return [
        {
          change,
          step,
          x,
          params: change.changes.filter((c) => c.from !== c.to).map((c) => c.param),
          byPerson: change.changes.some((c) => !known.has(c.by)),
          event: eventOf(change),
          isVoid: undone.has(change.id),
        },
      ];
    })
    .sort((a, b) => a.x - b.x);
}

/** Marks within `reach` of x, nearest first. */
export function near(marks: readonly Mark[], x: number, reach: number): Mark[] {
  return marks.filter((mark) => Math.abs(mark.x - x) <= reach).sort((a, b) => Math.abs(a.x - x) - Math.abs(b.x - x));
}

export const sentence = (c: Omit<ValueChange, "by" | "reason">): string =>
  c.from === null && c.to === null
    ? c.param
    : c.from === c.to
      ? `${c.param} still ${value(c.to)}`
      : `${c.param} ${c.from === null ? "" : `${value(c.from)} `}→ ${value(c.to)}`;

export interface Told {
  what: string;
  by: string;
  reason: string;
}

/** A change in sentences: what it is about first, and one for all values that one author moved for one reason. */
export function told({ changes }: Change): Told[] {
  const first = ["rollback", "world_size", "sync"];
  const rank = (c: ValueChange): number => (first.includes(c.param) ? 0 : 1);
  const out = new Map<string, Told>();
  for (const c of [...changes].sort((a, b) => rank(a) - rank(b))) {
    const key = `${c.by}\n${c.reason}`;
    const known = out.get(key);
    out.set(key, { what: known ? `${known.what}, ${sentence(c)}` : sentence(c), by: c.by, reason: c.reason });
  }
  return [...out.values()];
}

/** Groups of the audit: what happened to the run, what people were told, and what would have happened. */
export const GROUPS = ["changes", "notices", "shadow"] as const;
export type Group = (typeof GROUPS)[number];

export const groupOf = ({ kind }: Change): Group =>
  kind === "notice" ? "notices" : kind === "shadow" ? "shadow" : "changes";

export const title = ({ kind, version }: Change): string =>
  kind === "version" ? `v${version}` : kind === "formation" ? "loss" : kind;

export function statusText(change: Change): string {
  const step = appliedStep(change);
  if (change.kind === "formation") return `at step ${count(change.accepted_at_step)}`;
  return change.status === "applied" && step !== null ? `applied at step ${count(step)}` : change.status;
}
