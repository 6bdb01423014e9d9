import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import * as api from "../api";
import { collect, corrected, fields, toText } from "../schema";
import { Icon } from "../ui/icons";
import { ModeSwitch } from "../ui/mode-switch";
import { Prose } from "../ui/prose";
import { Reason } from "../ui/reason";
import { SchemaField } from "./schema-field";
import type { RunStore } from "./store";
import { WhatIf } from "./what-if";

export interface PolicyFormProps {
  store: RunStore;
  kind: api.PolicyKind;
  name: string;
  /** The policy as it stands, or null for a new one. */
  policy: api.Policy | null;
  /** Another has the new one's name. */
  taken?: boolean;
  onDone: () => void;
}

/** A form made from the kind's JSON Schema. */
export function PolicyForm({ store, kind, name, policy, taken = false, onDone }: PolicyFormProps): JSX.Element {
  const all = useMemo(() => fields(kind.schema), [kind]);
  const start = (params: Readonly<Record<string, unknown>>): Record<string, string> =>
    Object.fromEntries(all.map((field) => [field.name, toText(field, params[field.name] ?? field.initial)]));
  const texts = useSignal(useMemo(() => start(policy?.params ?? {}), []));
  const errors = useSignal<Readonly<Record<string, string>>>({});
  const message = useSignal("");
  const reason = useSignal("");
  const revision = useSignal(policy?.revision ?? 0);
  const busy = useSignal(false);
  const mode = useSignal<api.Mode>(policy?.mode ?? "active");
  const replay = useSignal<api.Replay | null>(null);

  /** Another was faster: what to do about it. A new policy replaces none; its name is told to be taken. */
  const late = async (told: string): Promise<string> => {
    await store.refresh();
    const now = store.run.value?.policies.find((p) => p.name === name);
    if (!now) return told;
    if (!policy) return "";
    revision.value = now.revision;
    texts.value = start(now.params);
    mode.value = now.mode;
    return "Somebody changed this policy meanwhile. The form shows it as it stands now: look, then save again.";
  };
  /** Send what the form says; whatever is wrong with it is shown beside its field. */
  const send = async (request: (wish: api.PolicyWish) => Promise<void>): Promise<void> => {
    const { params, wrong } = collect(all, texts.value);
    errors.value = wrong;
    message.value = "";
    if (Object.keys(wrong).length) return;
    busy.value = true;
    try {
      await request({ kind: kind.kind, params, mode: mode.value, reason: reason.value });
    } catch (error) {
      const problem = api.Problem.of(error);
      errors.value = byField(problem.fields);
      message.value = problem.status === 412 ? await late(problem.message) : problem.message;
    }
    busy.value = false;
  };
  const apply = (): Promise<void> =>
    send(async (wish) => {
      await api.putPolicy(store.id, name, revision.value, wish);
      await store.refresh();
      onDone();
    });
  const submit = (event: Event): void => {
    event.preventDefault();
    void (store.changeable.value ? apply() : look());
  };
  const look = (): Promise<void> =>
    send(async (wish) => {
      replay.value = await api.tryPolicy(store.id, name, wish);
    });

  return (
    <>
      <form class="policy-form" onSubmit={submit} data-testid="policy-form" data-policy={name} noValidate>
        <Doc text={kind.doc} />
        <div class="fields">
          {all.map((field) => (
            <SchemaField
              key={field.name}
              within={name}
              field={field}
              text={texts.value[field.name] ?? ""}
              error={errors.value[field.name] ?? ""}
              onInput={(text) => {
                texts.value = { ...texts.value, [field.name]: text };
                errors.value = corrected(errors.value, field.name);
              }}
            />
          ))}
        </div>
        <div class="field">
          <span>Mode</span>
          <ModeSwitch
            mode={mode.value}
            label={`${name}: mode`}
            testid="form-mode"
            onPick={(picked) => (mode.value = picked)}
          />
        </div>
        {store.changeable.value && <Reason reason={reason} testid="policy-reason-input" />}
        {message.value && (
          <p class="field-error" role="alert" data-testid="policy-error">
            <Prose text={message.value} />
          </p>
        )}
        <footer>
          <button
            type="button"
            disabled={busy.value || taken || mode.value === "off"}
            title={mode.value === "off" ? "Switched off it decides nothing" : undefined}
            data-testid="policy-try"
            onClick={() => void look()}
          >
            <Icon name="try" />
            Try on this run
          </button>
          <span class="spring" />
          <button type="button" onClick={onDone}>
            {store.changeable.value ? "Cancel" : "Close"}
          </button>
          {store.changeable.value && (
            <button type="submit" class="solid" disabled={busy.value || taken} data-testid="policy-save">
              {policy ? "Save" : "Add"}
            </button>
          )}
        </footer>
      </form>
      {replay.value && (
        <WhatIf
          run={store.id}
          name={name}
          mode={mode.value}
          replay={replay.value}
          onClose={() => (replay.value = null)}
          onApply={
            store.changeable.value
              ? () => {
                  replay.value = null;
                  void apply();
                }
              : null
          }
        />
      )}
    </>
  );
}

/** A policy explains itself at length; its first paragraph is enough at first. */
function Doc({ text }: { text: string }): JSX.Element {
  const [first = "", ...rest] = text.split(/\n\s*\n/);
  return (
    <div class="doc">
      <p>
        <Prose text={first} />
      </p>
      {rest.length > 0 && (
        <details>
          <summary>More</summary>
          {rest.map((paragraph) => (
            <p key={paragraph}>
              <Prose text={paragraph} />
            </p>
          ))}
        </details>
      )}
    </div>
  );
}

/** The server may name a field by its whole path (`params.target`); the form knows its last part. */
const byField = (errors: Readonly<Record<string, string>>): Record<string, string> =>
  Object.fromEntries(Object.entries(errors).map(([path, text]) => [path.split(/[./]/).pop() ?? path, text]));
