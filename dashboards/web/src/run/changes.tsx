import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import type { Change } from "../api";
import { clock, count } from "../format";
import { appliedStep, eventOf, groupOf, GROUPS, statusText, title, told, type Group } from "../marks";
import { Prose } from "../ui/prose";
import { stacked } from "../ui/narrow";
import { show, view } from "../url";
import type { RunStore } from "./store";

const PAGE = 200;

/** What changed, who did it, why, and whether it has taken effect: newest first. */
export function Changes({ store }: { store: RunStore }): JSX.Element {
  const limit = useSignal(PAGE);
  const all = store.changes.value;
  if (all.length === 0)
    return (
      <p class="quiet" data-testid="no-changes">
        Nothing has changed yet.
      </p>
    );
  const { groups } = view.value;
  const listed = all.filter((change) => groups.includes(groupOf(change)));
  const newest = listed.slice(-limit.value).reverse();
  return (
    <>
      <Groups all={all} />
      {listed.length === 0 && <p class="quiet">Nothing of this kind yet.</p>}
      <ol class="timeline" data-testid="changes" hidden={listed.length === 0}>
        {newest.map((change) => (
          <ChangeRow key={change.id} store={store} change={change} />
        ))}
      </ol>
      {listed.length > limit.value && (
        <button type="button" onClick={() => (limit.value += PAGE)}>
          Show older ({count(listed.length - limit.value)})
        </button>
      )}
    </>
  );
}

/** Notices and what was decided in shadow are many, and must not drown what happened. */
function Groups({ all }: { all: readonly Change[] }): JSX.Element | null {
  const { groups } = view.value;
  const counts = GROUPS.map((group) => all.filter((change) => groupOf(change) === group).length);
  if (counts[0] === all.length && groups.join() === "changes") return null;
  const flip = (group: Group): void =>
    show({ groups: GROUPS.filter((g) => (g === group) !== groups.includes(g)) });
  return (
    <div class="groups" role="group" aria-label="What is listed" data-testid="groups">
      {GROUPS.map((group, i) => (
        <button
          key={group}
          type="button"
          aria-pressed={groups.includes(group)}
          data-testid={`group-${group}`}
          onClick={() => flip(group)}
        >
          {group} <span class="num">{count(counts[i]!)}</span>
        </button>
      ))}
    </div>
  );
}

function ChangeRow({ store, change }: { store: RunStore; change: Change }): JSX.Element {
  const picked = change.version !== null && view.value.mark === change.version;
  const step = appliedStep(change);
  const isVoid = store.voided.value.has(change.id);
  const quiet = QUIET[change.kind];
  const shown = step !== null && change.version !== null;
  return (
    <li
      class={`change status-${change.status} ${isVoid ? "void" : ""} ${eventOf(change) ?? ""}`}
      data-testid="change"
      data-version={change.version}
      data-status={change.status}
      data-id={change.id}
      data-kind={change.kind}
    >
      <button
        type="button"
        aria-pressed={picked}
        disabled={!shown}
        title={shown ? "Show on the charts" : undefined}
        onClick={() => pick(store, change, picked)}
      >
        <header>
          {change.kind === "version" && <b class="num">{title(change)}</b>}
          <span class={`chip tone-${isVoid ? "done" : (quiet ?? TONE[change.status])}`}>
            {change.kind === "version" ? statusText(change) : title(change)}
          </span>
          {isVoid && (
            <span class="chip tone-done" title="A roll back to before it has undone it">
              void
            </span>
          )}
          <time dateTime={change.accepted_at} class="num">
            {clock(change.accepted_at)}
          </time>
        </header>
        {told(change).map((c) => (
          <p key={c.what}>
            <span class="num what">{c.what}</span> <span class="by">{c.by}</span>
            {change.kind === "policy" && <small> in force from step {count(change.accepted_at_step)}</small>}
            {(change.kind === "shadow" || change.kind === "formation") && <small> at step {count(change.accepted_at_step)}</small>}
            {c.reason && (
              <span class="reason">
                <Prose text={c.reason} />
              </span>
            )}
          </p>
        ))}
      </button>
    </li>
  );
}

/** Kinds that are not something that took effect. */
const QUIET: Partial<Readonly<Record<Change["kind"], string>>> = { policy: "calm", notice: "warn", shadow: "done", formation: "bad" };

const TONE: Readonly<Record<Change["status"], string>> = {
  requested: "calm",
  accepted: "warn",
  applied: "good",
  superseded: "done",
  unapplied: "done",
  refused: "bad",
};

/** How much of the run stays in view around a picked change. */
const AROUND = 0.15;

/** Mark the version on all charts; bring it into view where the zoom leaves it out. */
function pick(store: RunStore, change: Change, picked: boolean): void {
  if (picked) {
    show({ mark: null });
    return;
  }
  const { zoom } = view.value;
  const x = store.marks.value.find((mark) => mark.change.id === change.id)?.x;
  // On a narrow window the charts are another part, and the click asks for them.
  const tab = stacked.value ? "charts" : view.value.tab;
  if (x === undefined || zoom === null || (x >= zoom.from && x <= zoom.to)) {
    show({ mark: change.version, tab });
    return;
  }
  const { from, to } = store.extent;
  const reach = (to - from) * AROUND;
  show({ mark: change.version, tab, zoom: { from: Math.max(from, x - reach), to: Math.min(to, x + reach) } });
  store.refine();
}
