import type { Run } from "../api";

/** Why a run that has ended has no metrics. */
export function noMetrics({ progress, state_reason }: Pick<Run, "progress" | "state_reason">): string {
  if (progress.steps > 0) return "No metrics of this run are there.";
  return `It ended before its first step${state_reason ? `: ${state_reason}` : "."}`;
}

/** Which version the ranks hold of a value; what is on its way to a run that has ended never arrives. */
export function versionNote(version: number, applied: number, over: boolean): string {
  if (version <= applied) return `v${applied} applied`;
  if (!over) return `v${version} on its way, v${applied} applied`;
  return applied > 0 ? `v${version} never applied, v${applied} was` : `v${version} never applied`;
}
