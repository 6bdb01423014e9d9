import type { JSX } from "preact";
import type { RunState } from "../api";
import { plain } from "../format";

const TONE: Readonly<Record<RunState, string>> = {
  pending: "calm",
  starting: "calm",
  running: "good",
  paused: "warn",
  stopping: "warn",
  recovering: "warn",
  finished: "done",
  stopped: "done",
  failed: "bad",
  lost: "bad",
};

export const StateChip = ({ state, reason = "" }: { state: RunState; reason?: string }): JSX.Element => (
  <span
    class={`chip state tone-${TONE[state]}`}
    data-testid="state-chip"
    data-state={state}
    title={plain(reason) || undefined}
  >
    {state}
  </span>
);
