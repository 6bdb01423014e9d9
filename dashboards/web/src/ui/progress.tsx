import type { JSX } from "preact";
import type { RunSummary } from "../api";
import { compact, percent } from "../format";

type Way = Pick<RunSummary, "fraction" | "horizon" | "progress">;

/** How far a run is: a bar where there is a horizon, plain counts where there is none. */
export function Progress({ fraction, horizon, progress }: Way): JSX.Element {
  const detail = `${compact(progress.steps)} steps · ${compact(progress.samples)} samples`;
  if (fraction === null)
    return (
      <span class="progress" title={detail}>
        <span class="num">{compact(progress.steps)} steps</span>
      </span>
    );
  const goal = horizon ? ` of ${compact(horizon.amount)} ${horizon.unit}` : "";
  return (
    <span class="progress" title={detail}>
      <progress value={fraction} max={1} aria-label={`progress${goal}`} />
      <span class="num">{percent(fraction)}</span>
    </span>
  );
}
