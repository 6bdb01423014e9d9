import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { RunSummary } from "../api";
import { ago, count, number } from "../format";
import { Icon } from "../ui/icons";
import { Link } from "../ui/link";
import { cards, roomy } from "../ui/narrow";
import { Progress } from "../ui/progress";
import { useShortcuts, type Shortcut } from "../ui/shortcuts";
import { Sparkline } from "../ui/sparkline";
import { StateChip } from "../ui/state-chip";
import { go, NOTHING, runPlace, show, view, type SortColumn } from "../url";
import { visible } from "./window";

/** Heights of a row and of a card [px]; the style sheet says the same. */
const ROW = 44;
const CARD = 108;

const COLUMNS: readonly { name: string; sort: SortColumn | null; title?: string }[] = [
  { name: "run", sort: "name" },
  { name: "state", sort: "state" },
  { name: "progress", sort: "progress" },
  { name: "loss", sort: "loss" },
  { name: "size", sort: "size" },
  { name: "owner", sort: "owner" },
  { name: "loop", sort: "host", title: "Whose loop trains" },
  { name: "policies", sort: null },
  { name: "updated", sort: "updated" },
];

export function pick(run: string): void {
  const { runs } = view.value;
  show({ runs: runs.includes(run) ? runs.filter((one) => one !== run) : [...runs, run] });
}

/** Only the rows in the window are in the document, so thousands of runs cost as much as thirty. */
export function RunsTable({ runs }: { runs: readonly RunSummary[] }): JSX.Element {
  const body = useRef<HTMLDivElement>(null);
  const scroll = useSignal(0);
  const now = useSignal(Date.now());
  const at = useSignal(-1);
  const listed = useRef(runs);
  listed.current = runs;
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
  useShortcuts(useMemo(() => rowKeys(at, listed, body), []));

  const { from, to } = visible(scroll.value, innerHeight, row, runs.length);
  return (
    <div
      class="runs-table"
      role="table"
      aria-label="Runs"
      aria-rowcount={runs.length + 1}
      data-testid="runs"
    >
      <div role="rowgroup">
        <div class="head" role="row" aria-rowindex={1}>
          <span role="columnheader" class="c-pick">
            <span class="visually-hidden">picked</span>
          </span>
          {COLUMNS.map((column) => (
            <ColumnHead key={column.name} {...column} />
          ))}
        </div>
      </div>
      <div ref={body} class="body" role="rowgroup" style={{ height: `${runs.length * row}px` }}>
        {runs.slice(from, to).map((run, i) => (
          <Row key={run.id} run={run} index={from + i} top={(from + i) * row} now={now.value} />
        ))}
      </div>
    </div>
  );
}

/** Keys that go from row to row; the row itself is brought into the window first. */
function rowKeys(
  at: { value: number },
  listed: { current: readonly RunSummary[] },
  body: { current: HTMLDivElement | null },
): Shortcut[] {
  const focus = (to: number): void => {
    at.value = Math.min(Math.max(0, to), listed.current.length - 1);
    const height = cards.value ? CARD : ROW;
    const top = body.current!.getBoundingClientRect().top + at.value * height;
    if (top < height || top + height > innerHeight) scrollBy({ top: top - innerHeight / 2, behavior: "instant" });
    requestAnimationFrame(() => {
      const id = listed.current[at.value]?.id ?? "";
      body.current?.querySelector<HTMLElement>(`[data-run="${CSS.escape(id)}"] a`)?.focus();
    });
  };
  return [
    { keys: "j", what: "the next run", run: () => focus(at.value + 1) },
    { keys: "k", what: "the run before", run: () => focus(at.value - 1) },
    { keys: "x", what: "pick the run to compare it", run: () => at.value >= 0 && pick(listed.current[at.value]!.id) },
    { keys: "c", what: "compare what is picked", run: () => compare() },
  ];
}

export function compare(): void {
  const { runs } = view.value;
  if (runs.length > 1) go({ page: "compare", runs });
}

function ColumnHead({ name, sort, title }: (typeof COLUMNS)[number]): JSX.Element {
  const current = view.value.sort;
  if (sort === null)
    return (
      <span role="columnheader" class={`c-${name}`}>
        {name}
      </span>
    );
  const active = current.by === sort;
  // A click goes round: one way, the other way, and back to the newest first.
  const next = !active ? { by: sort, down: false } : !current.down ? { by: sort, down: true } : NOTHING.sort;
  return (
    <span
      role="columnheader"
      class={`c-${name}`}
      aria-sort={active ? (current.down ? "descending" : "ascending") : "none"}
    >
      <button type="button" class="sort" title={title} data-testid={`sort-${name}`} onClick={() => show({ sort: next })}>
        {name}
        {active && <Icon name={current.down ? "down" : "up"} />}
      </button>
    </span>
  );
}

interface RowProps {
  run: RunSummary;
  index: number;
  top: number;
  now: number;
}

function Row({ run, index, top, now }: RowProps): JSX.Element {
  const picked = view.value.runs.includes(run.id);
  const fit = roomy.value ? 3 : 2;
  const missing = run.wanted !== null && run.wanted.world_size !== run.world_size;
  return (
    <div
      class={`row ${picked ? "picked" : ""}`}
      role="row"
      aria-rowindex={index + 2}
      data-testid="run-row"
      data-run={run.id}
      style={{ transform: `translateY(${top}px)` }}
    >
      <span role="cell" class="c-pick">
        <input
          type="checkbox"
          checked={picked}
          aria-label={`Pick ${run.name} (${run.id})`}
          data-testid="pick"
          onChange={() => pick(run.id)}
        />
      </span>
      <span role="cell" class="c-run">
        <Link to={runPlace(run.id)}>{run.name}</Link>
        <code class="id">{run.id}</code>
      </span>
      <span role="cell" class="c-state">
        <StateChip state={run.state} reason={run.state_reason} />
      </span>
      <span role="cell" class="c-progress">
        <Progress {...run} />
      </span>
      <span role="cell" class="c-loss" title="the last step's">
        <Sparkline values={run.loss_trace} />
        <b class="num">{number(run.loss)}</b>
      </span>
      <span role="cell" class="c-size num" title={`${run.sync}, formation ${run.formation}`}>
        {count(run.world_size)}
        {missing && <small> of {count(run.wanted!.world_size)}</small>}
      </span>
      <span role="cell" class="c-owner">{run.owner || "–"}</span>
      <span role="cell" class="c-loop">
        {run.host || "trimtab"}
      </span>
      <span role="cell" class="c-policies" title={run.policies.join(", ")}>
        {run.policies.slice(0, fit).map((name) => (
          <span class="tag" key={name}>
            {name}
          </span>
        ))}
        {run.policies.length > fit && <span class="tag">+{run.policies.length - fit}</span>}
      </span>
      <span role="cell" class="c-updated num">
        <time dateTime={run.updated}>{ago(run.updated, now)}</time>
      </span>
    </div>
  );
}
