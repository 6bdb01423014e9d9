import type { JSX } from "preact";
import type { RunStore } from "../run/store";
import { appliedStep } from "../marks";
import { count } from "../format";

export type Asked = { version: number | null };

/** Requested → accepted → applied at step N, as it happens to a version that was asked for here. */
export function VersionTrail({ store, asked }: { store: RunStore; asked: Asked }): JSX.Element {
  const change =
    asked.version === null
      ? undefined
      : store.changes.value.findLast((c) => c.version === asked.version && c.kind === "version");
  const step = change ? appliedStep(change) : null;
  const accepted = asked.version !== null;
  const end = change && ["superseded", "unapplied"].includes(change.status) ? change.status : "applied";
  const done = change?.status === "applied" || end !== "applied";
  const label = change?.status === "applied" && step !== null ? `applied at step ${count(step)}` : end;
  return (
    <ol
      class="trail"
      aria-live="polite"
      data-testid="version-trail"
      data-status={change?.status ?? (accepted ? "accepted" : "requested")}
    >
      <li class="done">requested</li>
      <li class={accepted ? "done" : "waiting"}>accepted{accepted ? ` v${asked.version}` : ""}</li>
      <li class={done ? "done" : accepted ? "waiting" : ""}>{label}</li>
    </ol>
  );
}
