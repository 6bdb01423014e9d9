import "uplot/dist/uPlot.min.css";
import "../styles/charts.css";
import "../styles/views.css";
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import { Board } from "../charts/board";
import { count } from "../format";
import { IconButton } from "../ui/icons";
import { Link } from "../ui/link";
import { Failure, Notice } from "../ui/notice";
import { StateChip } from "../ui/state-chip";
import { runPlace, show, view } from "../url";
import { CompareStore, labelOf } from "./store";
import { rowsOf, type Group } from "./rows";

const COLORS = 6;

/** The line that a run has on the charts, before what is told of it. */
const swatch = (i: number): string => `swatch series-${i % COLORS} ${i >= COLORS ? "shape-shadow" : ""}`;

/** Runs side by side: their metrics on one grid, and what they were given. */
export function ComparePage(): JSX.Element {
  const { runs } = view.value;
  const store = useMemo(() => new CompareStore(runs), []);
  useEffect(() => {
    document.title = "Compare · Trimtab";
    store.start();
    return () => store.stop();
  }, [store]);
  if (runs.length === 0)
    return (
      <main id="main" class="compare">
        <h1>Compare</h1>
        <Notice title="Nothing to compare" testid="empty">
          <p>
            Pick two runs or more in <Link to={{}}>the list of runs</Link> and press Compare.
          </p>
        </Notice>
      </main>
    );
  const problem = store.error.value;
  return (
    <main id="main" class="compare" data-testid="compare-page">
      <header class="list-header">
        <h1>Compare</h1>
        <span class="quiet num">{count(runs.length)} runs</span>
      </header>
      <ul class="compared" aria-label="Runs that are compared">
        {runs.map((id, i) => (
          <Chip key={id} store={store} id={id} color={i} />
        ))}
      </ul>
      {problem && <Failure problem={problem} onRetry={() => void store.reloadSeries()} />}
      {store.loaded.value.size > 0 && (
        <div class="side-by-side">
          <Board store={store} all={store.panels} />
          <Table store={store} />
        </div>
      )}
    </main>
  );
}

function Chip({ store, id, color }: { store: CompareStore; id: string; color: number }): JSX.Element {
  const known = store.loaded.value.get(id);
  const problem = store.missing.value.get(id);
  return (
    <li class={`compared-run ${swatch(color)}`} data-testid="compared-run" data-run={id}>
      <Link to={runPlace(id)}>{known?.run.name ?? id}</Link>
      {known && <StateChip state={known.run.state} reason={known.run.state_reason} />}
      {problem && <span class="chip tone-bad">{problem.status === 404 ? "not found" : problem.message}</span>}
      <code class="id">{id}</code>
      <IconButton
        name="close"
        label={`Take ${known?.run.name ?? id} out`}
        testid="compare-drop"
        onClick={() => show({ runs: view.value.runs.filter((one) => one !== id) })}
      />
    </li>
  );
}

/** What the runs were given and where they stand, one row a thing; differences stand out. */
function Table({ store }: { store: CompareStore }): JSX.Element {
  const only = useSignal(false);
  const all = [...store.loaded.value.values()];
  const groups = rowsOf(all);
  const differing = groups.reduce((sum, group) => sum + group.rows.filter((row) => row.differs).length, 0);
  return (
    <section class="compare-table" aria-label="Values side by side">
      <header>
        <h2>Values and policies</h2>
        <span class="quiet num">{count(differing)} differ</span>
        <span class="spring" />
        <label class="choice">
          <input
            type="checkbox"
            checked={only.value}
            data-testid="only-differences"
            onChange={(event) => (only.value = event.currentTarget.checked)}
          />
          <span>differences only</span>
        </label>
      </header>
      <div class="scroll" tabIndex={0} role="region" aria-label="Values and policies of each run">
        <table data-testid="compare-values">
          <thead>
            <tr>
              <th scope="col">
                <span class="visually-hidden">what</span>
              </th>
              {all.map(({ run }, i) => (
                <th key={run.id} scope="col" class={swatch(i)}>
                  {labelOf(run, all)}
                </th>
              ))}
            </tr>
          </thead>
          {groups.map((group) => (
            <Rows key={group.title} group={group} only={only.value} columns={all.length} />
          ))}
        </table>
      </div>
    </section>
  );
}

function Rows({ group, only, columns }: { group: Group; only: boolean; columns: number }): JSX.Element | null {
  const rows = group.rows.filter((row) => row.differs || !only);
  if (rows.length === 0) return null;
  return (
    <tbody>
      <tr class="group">
        <th scope="rowgroup" colSpan={columns + 1}>
          {group.title}
        </th>
      </tr>
      {rows.map((row) => (
        <tr key={row.name} class={row.differs ? "differs" : undefined} data-testid="compare-row" data-name={row.name}>
          <th scope="row">
            {row.differs && <span class="visually-hidden">differs: </span>}
            {row.name}
          </th>
          {row.cells.map((cell, i) => (
            <td key={i} class={`num ${swatch(i)}`} title={cell.note || undefined}>
              {cell.text}
              {cell.note && <small>{cell.note}</small>}
            </td>
          ))}
        </tr>
      ))}
    </tbody>
  );
}
