import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { RunSummary } from "../api";
import { ago, number } from "../format";
import { cards } from "../ui/narrow";
import { Progress } from "../ui/progress";
import { Sparkline } from "../ui/sparkline";
import { StateChip } from "../ui/state-chip";
import { go, write, view } from "../url";
import { visible } from "./window";

/** Heights of a row and of a card [px]; the style sheet says the same. */
const ROW = 44;
const CARD = 108;
const COLUMNS = ["run", "state", "progress", "loss", "version", "policies", "updated"] as const;

/** Only the rows in the window are in the document, so thousands of runs cost as much as thirty. */
export function RunsTable({ runs }: { runs: readonly RunSummary[] }): JSX.Element {
  const body = useRef<HTMLDivElement>(null);
  const scroll = useSignal(0);
  const now = useSignal(Date.now());
  useEffect(() => {
    const measure = (): void => {
      scroll.value = -(body.current?.getBoundingClientRect().top ?? 0);
    };
    measure();
    addEventListener("scroll", measure, { passive: true });
    addEventListener("resize", measure);
    const timer = setInterval(() => (now.value = Date.now()), 5000);
    return () => {
      removeEventListener("scroll", measure);
      removeEventListener("resize", measure);
      clearInterval(timer);
    };
  }, []);

  const row = cards.value ? CARD : ROW;
  const { from, to } = visible(scroll.value, innerHeight, row, runs.length);
  return (
    <div class="runs-table" role="table" aria-label="Runs" aria-rowcount={runs.length + 1} data-testid="runs">
      <div class="head" role="row">
        {COLUMNS.map((name) => (
          <span key={name} role="columnheader" class={`c-${name}`}>
            {name}
          </span>
        ))}
      </div>
      <div ref={body} class="body" role="rowgroup" style={{ height: `${runs.length * row}px` }}>
        {runs.slice(from, to).map((run, i) => (
          <Row key={run.id} run={run} index={from + i} top={(from + i) * row} now={now.value} />
        ))}
      </div>
    </div>
  );
}

interface RowProps {
  run: RunSummary;
  index: number;
  top: number;
  now: number;
}

function Row({ run, index, top, now }: RowProps): JSX.Element {
  const open = (event: MouseEvent): void => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(run.id);
  };
  return (
    <div
      class="row"
      role="row"
      aria-rowindex={index + 2}
      data-testid="run-row"
      data-run={run.id}
      style={{ transform: `translateY(${top}px)` }}
    >
      <span role="cell" class="c-run">
        <a href={write({ ...view.value, run: run.id, filter: "" })} onClick={open}>
          {run.name}
        </a>
        <code class="id">{run.id}</code>
      </span>
      <span role="cell" class="c-state">
        <StateChip state={run.state} reason={run.state_reason} />
      </span>
      <span role="cell" class="c-progress">
        <Progress {...run} />
      </span>
      <span role="cell" class="c-loss">
        <Sparkline values={run.loss_trace} />
        <b class="num">{number(run.loss)}</b>
      </span>
      <span role="cell" class="c-version num">
        v{run.version}
      </span>
      <span role="cell" class="c-policies">
        {run.policies.map((name) => (
          <span class="tag" key={name}>
            {name}
          </span>
        ))}
      </span>
      <span role="cell" class="c-updated num">
        <time dateTime={run.updated}>{ago(run.updated, now)}</time>
      </span>
    </div>
  );
}
