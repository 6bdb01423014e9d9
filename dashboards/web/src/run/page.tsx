import "uplot/dist/uPlot.min.css";
import "../styles/charts.css";
import "../styles/run.css";
import { useSignalEffect } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import { ended } from "../api";
import { Board } from "../charts/board";
import { lazy } from "../ui/lazy";
import { useShortcuts, type Shortcut } from "../ui/shortcuts";
import { groupOf } from "../marks";
import { stacked } from "../ui/narrow";
import { Failure } from "../ui/notice";
import { show, TABS, view, type Tab } from "../url";
import { Changes } from "./changes";
import { Header } from "./header";
import { noMetrics } from "./over";
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

  useShortcuts(useMemo(tabKeys, []));

  const run = store.run.value;
  const problem = store.error.value;
  if (run === null && problem)
    return (
      <main id="main">
        <h1 class="visually-hidden">{id}</h1>
        <Failure problem={problem} onRetry={() => void store.reload()} />
      </main>
    );
  if (run === null)
    return (
      <main id="main" class="loading" aria-busy="true">
        <h1 class="visually-hidden">{id}</h1>
        <p class="quiet">Loading {id} …</p>
      </main>
    );

  // On a wide window the charts are always there, beside one of the other parts.
  const parts = (stacked.value ? TABS : TABS.slice(1)).filter((name) => name !== "logs" || Boolean(run.job));
  const tab = parts.includes(view.value.tab) ? view.value.tab : parts[0]!;
  return (
    <main id="main" class="run" data-testid="run" data-run={id} data-tab={tab}>
      <Header store={store} run={run} />
      <div class="rail">
        <Tabs parts={parts} current={tab} count={store.changes.value.filter((c) => groupOf(c) === "changes").length} />
        <div key={tab} class="side" id="panel" role="tabpanel" aria-label={tab} tabIndex={0}>
          <h2 class="visually-hidden">{tab}</h2>
          {tab === "policies" ? (
            <Policies store={store} run={run} />
          ) : tab === "changes" ? (
            <Changes store={store} />
          ) : tab === "ranks" ? (
            <Ranks run={run} />
          ) : tab === "logs" ? (
            <Log job={run.job!} />
          ) : (
            <Values store={store} over={ended(run)} />
          )}
        </div>
      </div>
      <Board store={store} all={store.panels} none={ended(run) ? noMetrics(run) : undefined} />
    </main>
  );
}

const Log = lazy<{ job: string }>(() => import("../jobs/log").then((module) => module.Log));

const tabKeys = (): Shortcut[] =>
  TABS.slice(1).map((tab, i) => ({ keys: String(i + 1), what: `show ${tab}`, run: () => show({ tab }) }));

function Tabs({ parts, current, count }: { parts: readonly Tab[]; current: Tab; count: number }): JSX.Element {
  const move = (event: KeyboardEvent): void => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (direction === undefined) return;
    const next = parts[(parts.indexOf(current) + direction + parts.length) % parts.length]!;
    show({ tab: next });
    document.querySelector<HTMLElement>(`[data-testid="tab-${next}"]`)?.focus();
  };
  return (
    <div class="tabs" role="tablist" aria-label="Parts of the run" onKeyDown={move}>
      {parts.map((name) => (
        <button
          key={name}
          type="button"
          role="tab"
          aria-selected={current === name}
          aria-controls="panel"
          tabIndex={current === name ? 0 : -1}
          data-testid={`tab-${name}`}
          onClick={() => show({ tab: name })}
        >
          {name}
          {name === "changes" && count > 0 && <span class="num badge">{count}</span>}
        </button>
      ))}
    </div>
  );
}
