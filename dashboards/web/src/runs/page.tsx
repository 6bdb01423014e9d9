import type { JSX } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { count } from "../format";
import { Failure, Notice } from "../ui/notice";
import { show, view } from "../url";
import { RunsStore } from "./store";
import { RunsTable } from "./table";

export function RunsPage(): JSX.Element {
  const store = useMemo(() => new RunsStore(), []);
  const filter = useRef<HTMLInputElement>(null);
  useEffect(() => {
    document.title = "Runs · Trimtab";
    const focus = (event: KeyboardEvent): void => {
      if (event.key !== "/" || event.target instanceof HTMLInputElement) return;
      event.preventDefault();
      filter.current?.focus();
    };
    addEventListener("keydown", focus);
    const stop = store.start();
    return () => {
      removeEventListener("keydown", focus);
      stop();
    };
  }, [store]);

  const problem = store.error.value;
  const total = store.total.value;
  const shown = store.shown.value;
  return (
    <main class="runs">
      <header class="runs-header">
        <h1>Runs</h1>
        <span class="quiet num" aria-live="polite">
          {store.loaded.value
            ? shown.length === total
              ? count(total)
              : `${count(shown.length)} of ${count(total)}`
            : ""}
        </span>
        <input
          ref={filter}
          type="search"
          placeholder="filter by name, state, policy"
          aria-label="Filter runs"
          aria-keyshortcuts="/"
          value={view.value.filter}
          data-testid="runs-filter"
          onInput={(event) => show({ filter: event.currentTarget.value })}
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

const NoRuns = (): JSX.Element => (
  <Notice title="No runs yet" testid="empty">
    <p>Start one where this server runs, and it appears here by itself:</p>
    <pre>
      <code>
        trimtab run examples/bytes_lm.py --workers 2 \{"\n"} --policy noise_scale --policy warmup --policy plateau
      </code>
    </pre>
  </Notice>
);
