import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import * as api from "../api";
import { Overlay } from "../charts/overlay";
import { count } from "../format";
import { sentence } from "../marks";
import { Dialog } from "../ui/dialog";
import { Prose } from "../ui/prose";
import { drawn, headline, overlay, pairs, shadows, unread, type Pair } from "../what-if";

const POINTS = 600;
const ROWS = 100;

interface WhatIfProps {
  run: string;
  name: string;
  mode: api.Mode;
  replay: api.Replay;
  /** Null where nothing can be changed. */
  onApply: (() => void) | null;
  onClose: () => void;
}

/** What would have been decided with a policy on the recorded run, beside what was decided; nothing changes until it is applied. */
export function WhatIf({ run, name, mode, replay, onApply, onClose }: WhatIfProps): JSX.Element {
  const missing = unread(replay);
  const params = useMemo(() => drawn(replay), [replay]);
  const rows = useMemo(() => pairs(replay), [replay]);
  return (
    <Dialog title={`${name} on the recorded run`} onClose={onClose} testid="what-if" wide>
      <p data-testid="what-if-summary">{headline(replay, name)} This is a trial: nothing has been changed.</p>
      <p class="caveat" data-testid="what-if-caveat">
        The metrics are those of the real run: up to the first decision that differs this is what would have happened;
        after it, loss and noise would have gone another way, and later decisions say less and less.
      </p>
      {missing.length > 0 && (
        <p class="alert" data-testid="what-if-unread">
          Not recorded, so it decided without: {missing.join(", ")}.
        </p>
      )}
      <Overlays run={run} replay={replay} params={params} />
      <Decisions rows={rows} />
      <footer>
        <button type="button" autoFocus onClick={onClose} data-testid="what-if-close">
          Close
        </button>
        {onApply && (
          <button type="button" class="solid" onClick={onApply} data-testid="what-if-apply">
            Apply {mode === "active" ? "now" : "in shadow"}
          </button>
        )}
      </footer>
    </Dialog>
  );
}

interface OverlaysProps {
  run: string;
  replay: api.Replay;
  params: readonly string[];
}

/** The would-be values over those that were in force. */
function Overlays({ run, replay, params }: OverlaysProps): JSX.Element | null {
  const was = useSignal<Readonly<Record<string, api.Buckets>> | null>(null);
  const problem = useSignal("");
  useEffect(() => {
    if (params.length === 0) return;
    api
      .metrics(
        run,
        params.map((param) => `hp/${param}`),
        "step",
        POINTS,
      )
      .then(({ series }) => (was.value = series))
      .catch((error: unknown) => (problem.value = api.Problem.of(error).message));
  }, [run, params]);
  const known = was.value;
  const charts = useMemo(
    () =>
      known === null
        ? []
        : params.map((param) => {
            const { x = [], last = [] } = known[`hp/${param}`] ?? {};
            const { step, value } = replay.values[param]!;
            const traces = [{ label: "recorded", x, y: last }, { label: "would be", x: step, y: value }];
            return { param, data: overlay([...traces, ...shadows(replay, param)]) };
          }),
    [known, params, replay],
  );
  if (problem.value) return <p class="field-error">The recorded values did not load: {problem.value}</p>;
  if (charts.length === 0) return null;
  return (
    <div class="overlays">
      {charts.map(({ param, data }) => (
        <Overlay key={param} title={param} data={data} />
      ))}
    </div>
  );
}

/** Would-be and recorded decisions, side by side. */
function Decisions({ rows }: { rows: readonly Pair[] }): JSX.Element {
  const limit = useSignal(ROWS);
  if (rows.length === 0) return <p class="quiet">No decision on either side.</p>;
  return (
    <>
      <div class="scroll" tabIndex={0} role="region" aria-label="Decisions side by side">
        <table class="decisions" data-testid="what-if-decisions">
          <thead>
            <tr>
              <th scope="col">step</th>
              <th scope="col">would have decided</th>
              <th scope="col">recorded</th>
            </tr>
          </thead>
          <tbody>
            {rows.slice(0, limit.value).map((row, i) => (
              <tr key={i} data-testid="what-if-row">
                <th scope="row" class="num">
                  {count(row.step)}
                </th>
                <Cell decision={row.would} label="would have" />
                <Cell decision={row.was} label="recorded" />
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.length > limit.value && (
        <button type="button" onClick={() => (limit.value += ROWS)}>
          Show more ({count(rows.length - limit.value)})
        </button>
      )}
    </>
  );
}

function Cell({ decision, label }: { decision: api.Decision | null; label: string }): JSX.Element {
  if (decision === null)
    return (
      <td class="none" data-label={label}>
        –
      </td>
    );
  const { param, before, after, policy, reason, refused, shadow } = decision;
  return (
    <td data-label={label}>
      <b class="num">{refused ? param : sentence({ param, from: before, to: after })}</b>{" "}
      <span class="by">{policy}</span> {refused && <span class="chip tone-bad">refused</span>}{" "}
      {shadow && <span class="chip">shadow</span>}
      <span class="reason">
        <Prose text={refused ? `${reason} (${refused})` : reason} />
      </span>
    </td>
  );
}
