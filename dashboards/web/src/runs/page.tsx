import type { JSX } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { count } from "../format";
import { Icon } from "../ui/icons";
import { Failure, Notice } from "../ui/notice";
import { useShortcuts, type Shortcut } from "../ui/shortcuts";
import { show, view } from "../url";
import { RunsStore } from "./store";
import { compare, RunsTable } from "./table";

export function RunsPage(): JSX.Element {
  const store = useMemo(() => new RunsStore(), []);
  const filter = useRef<HTMLInputElement>(null);
  useEffect(() => {
    document.title = "Runs · Trimtab";
    return store.start();
  }, [store]);
  useShortcuts(
    useMemo((): Shortcut[] => [{ keys: "/", what: "filter the runs", run: () => filter.current?.focus() }], []),
  );

  const problem = store.error.value;
  const total = store.total.value;
  const shown = store.shown.value;
  return (
    <main class="runs" id="main">
      <header class="list-header">
        <h1>Runs</h1>
        <span class="quiet num" aria-live="polite">
          {store.loaded.value
            ? shown.length === total
              ? count(total)
              : `${count(shown.length)} of ${count(total)}`
            : ""}
        </span>
        <span class="spring" />
        <Picked />
        <input
          ref={filter}
          type="search"
          placeholder="filter: name, state:running, policy:…"
          aria-label="Filter runs"
          aria-keyshortcuts="/"
          value={view.value.filter}
          data-testid="runs-filter"
          onInput={(event) => show({ filter: event.currentTarget.value })}
          onKeyDown={(event) => event.key === "Escape" && event.currentTarget.blur()}
        />
      </header>
      {problem && <Failure problem={problem} onRetry={() => void store.load()} />}
      {!store.loaded.value && !problem && (
        <p class="quiet" aria-busy="true">
          Loading runs …
        </p>
      )}
      {store.loaded.value && total === 0 && <NoRuns />}
      {total > 0 && shown.length === 0 && (
        <p class="quiet" data-testid="no-match">
          No run matches “{view.value.filter}”.
        </p>
      )}
      {shown.length > 0 && <RunsTable runs={shown} />}
    </main>
  );
}

/** What is picked to be compared. */
function Picked(): JSX.Element | null {
  const { runs } = view.value;
  if (runs.length === 0) return null;
  return (
    <span class="picked-bar" role="status">
      <button
        type="button"
        class="solid"
        disabled={runs.length < 2}
        title={runs.length < 2 ? "Pick two or more" : undefined}
        data-testid="compare"
        onClick={compare}
      >
        <Icon name="compare" />
        Compare {count(runs.length)}
      </button>
      <button type="button" onClick={() => show({ runs: [] })}>
        Clear
      </button>
    </span>
  );
}

const NoRuns = (): JSX.Element => (
  <Notice title="No runs yet" testid="empty">
    <p>Start one where this server runs, and it appears here by itself:</p>
    <pre tabIndex={0}>
      <code>
        trimtab run examples/bytes_lm.py --workers 2 \{"\n"} --policy noise_scale --policy warmup --policy plateau
      </code>
    </pre>
  </Notice>
);
