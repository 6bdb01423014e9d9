import { useSignalEffect } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import { Board } from "../charts/board";
import { Failure } from "../ui/notice";
import { show, TABS, view, type Tab } from "../url";
import { Changes } from "./changes";
import { Header } from "./header";
import { Policies } from "./policies";
import { Ranks } from "./ranks";
import { RunStore } from "./store";
import { Values } from "./values";

export function RunPage({ id }: { id: string }): JSX.Element {
  const store = useMemo(() => new RunStore(id), [id]);
  useEffect(() => {
    store.start();
    return () => store.stop();
  }, [store]);
  useSignalEffect(() => {
    document.title = `${store.run.value?.name ?? id} · Trimtab`;
  });

  const run = store.run.value;
  const problem = store.error.value;
  if (run === null && problem) return <main><Failure problem={problem} onRetry={() => void store.reload()} /></main>;
  if (run === null) return <main class="loading" aria-busy="true"><p class="quiet">Loading {id} …</p></main>;

  const { tab } = view.value;
  return (
    <main class="run" data-testid="run" data-run={id} data-tab={tab}>
      <Header store={store} run={run} />
      <Tabs current={tab} count={store.changes.value.length} />
      <div class="split">
        <Board store={store} />
        <div class="side" id="panel" role="tabpanel" aria-label={tab}>
          {tab === "policies" ? <Policies store={store} run={run} />
            : tab === "changes" ? <Changes store={store} />
            : tab === "ranks" ? <Ranks run={run} />
            : <Values store={store} />}
        </div>
      </div>
    </main>
  );
}

/** Beside the charts on a wide window, so that "charts" is a choice of its own only on a narrow one. */
function Tabs({ current, count }: { current: Tab; count: number }): JSX.Element {
  const move = (event: KeyboardEvent): void => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (direction === undefined) return;
    const next = TABS[(TABS.indexOf(current) + direction + TABS.length) % TABS.length]!;
    show({ tab: next });
    document.querySelector<HTMLElement>(`[data-testid="tab-${next}"]`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label="Parts of the run" onKeyDown={move}>
      {TABS.map((name) => (
        <button key={name} type="button" role="tab" aria-selected={current === name} aria-controls="panel" tabIndex={current === name ? 0 : -1}
          class={name === "charts" ? "narrow-only" : undefined} data-testid={`tab-${name}`} onClick={() => show({ tab: name })}>
          {name}{name === "changes" && count > 0 && <span class="num badge">{count}</span>}
        </button>
      ))}
    </div>
  );
}
