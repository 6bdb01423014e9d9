import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import * as api from "../api";
import { swatch } from "../charts/panels";
import { value } from "../format";
import { mayAct } from "../session";
import { Confirm } from "../ui/confirm";
import { Icon, IconButton } from "../ui/icons";
import { lazy } from "../ui/lazy";
import { ModeSwitch } from "../ui/mode-switch";
import { Prose } from "../ui/prose";
import type { PolicyFormProps } from "./policy-form";
import type { RunStore } from "./store";

const PolicyForm = lazy<PolicyFormProps>(() => import("./policy-form").then((module) => module.PolicyForm));

/** Who steers this run. */
export function Policies({ store, run }: { store: RunStore; run: api.Run }): JSX.Element {
  const adding = useSignal(false);
  const edited = useSignal<ReadonlySet<string>>(new Set());
  const edit = (name: string, open: boolean): void => {
    const others = [...edited.value].filter((one) => one !== name);
    edited.value = new Set(open ? [...others, name] : others);
  };
  const over = api.ended(run);
  return (
    <div class="policies" data-testid="policies">
      {run.policies.length === 0 && !adding.value && (
        <p class="quiet">No policy {over ? "steered this run: values stayed" : "steers this run: values stay"} as the script set them.</p>
      )}
      <ul>
        {run.policies.map((policy) => (
          <PolicyCard
            key={policy.name}
            store={store}
            policy={policy}
            over={over}
            editing={edited.value.has(policy.name)}
            onEdit={(open) => edit(policy.name, open)}
          />
        ))}
      </ul>
      {adding.value ? (
        <AddPolicy
          store={store}
          taken={run.policies.map((p) => p.name)}
          onDone={() => (adding.value = false)}
          onEdit={(name) => {
            adding.value = false;
            edit(name, true);
          }}
        />
      ) : (
        <button
          type="button"
          class="add"
          disabled={!mayAct.value}
          data-testid="policy-add"
          onClick={() => (adding.value = true)}
        >
          <Icon name="plus" />
          {over ? "Try a policy" : "Add a policy"}
        </button>
      )}
    </div>
  );
}

interface CardProps {
  store: RunStore;
  policy: api.Policy;
  /** The run has ended: the policy can be tried with other parameters, and not changed. */
  over: boolean;
  editing: boolean;
  onEdit: (open: boolean) => void;
}

function PolicyCard({ store, policy, over, editing, onEdit }: CardProps): JSX.Element {
  const card = useRef<HTMLLIElement>(null);
  useEffect(() => {
    if (editing) card.current!.scrollIntoView({ block: "nearest" });
  }, [editing]);
  const deleting = useSignal(false);
  const problem = useSignal<api.Problem | null>(null);
  const kind = store.kinds.value.find((k) => k.kind === policy.kind);

  const act = async (request: () => Promise<unknown>): Promise<void> => {
    problem.value = null;
    try {
      await request();
    } catch (error) {
      problem.value = api.Problem.of(error);
    }
    await store.refresh();
  };
  const pick = (mode: api.Mode): Promise<unknown> =>
    api.putPolicy(store.id, policy.name, policy.revision, {
      kind: policy.kind,
      params: policy.params,
      mode,
      reason: "switched on the page",
    });

  return (
    <li
      ref={card}
      class={`policy mode-${policy.mode}`}
      data-testid="policy"
      data-policy={policy.name}
      data-revision={policy.revision}
    >
      <header>
        <h3>{policy.name}</h3>
        {policy.kind !== policy.name && <small>{policy.kind}</small>}
        {policy.faults > 0 && (
          <span class="chip tone-bad" data-testid="policy-faults">
            {policy.faults} fault{policy.faults > 1 && "s"}
          </span>
        )}
        <span class="spring" />
        <IconButton
          name={over ? "try" : "edit"}
          label={over ? `Try ${policy.name} otherwise on this run` : `Edit ${policy.name}`}
          testid={over ? "policy-try-open" : "policy-edit"}
          pressed={editing}
          disabled={!mayAct.value}
          onClick={() => onEdit(!editing)}
        />
        {!over && (
          <IconButton
            name="trash"
            label={`Delete ${policy.name}`}
            testid="policy-delete"
            disabled={!mayAct.value}
            onClick={() => (deleting.value = true)}
          />
        )}
      </header>
      {deleting.value && store.changeable.value && (
        <Confirm
          title={`Delete ${policy.name}?`}
          action="Delete the policy"
          name="delete"
          onClose={() => (deleting.value = false)}
          onConfirm={() => {
            onEdit(false);
            void act(() => api.deletePolicy(store.id, policy.name, policy.revision));
          }}
        >
          What its factors are worth now is folded into the base, so that no value jumps.
        </Confirm>
      )}
      {policy.disabled && (
        <p class="alert error" data-testid="policy-disabled">
          Disabled: <Prose text={policy.disabled} />
        </p>
      )}
      <div class="steers">
        <p class="flow">
          {policy.reads.join(", ") || "progress"} <i>→</i> {policy.writes.join(", ")}
        </p>
        <ModeSwitch
          mode={policy.mode}
          label={`${policy.name}: mode`}
          disabled={!store.changeable.value}
          testid="policy-mode"
          onPick={(mode) => void act(() => pick(mode))}
        />
      </div>
      {policy.last_reason && (
        <p class="reason" data-testid="policy-reason">
          <Prose text={policy.last_reason} />
        </p>
      )}
      {policy.waits && (
        <p class="waits" data-testid="policy-waits">
          waits: {policy.waits}
        </p>
      )}
      <WouldBe store={store} policy={policy} />
      {problem.value && (
        <p class="field-error" role="alert">
          <Prose text={problem.value.status === 412 ? "It changed meanwhile; this is how it stands now." : problem.value.message} />
        </p>
      )}
      {editing && kind ? (
        <PolicyForm
          store={store}
          kind={kind}
          name={policy.name}
          policy={policy}
          onDone={() => onEdit(false)}
        />
      ) : (
        <dl class="params">
          {Object.entries(policy.params).map(([name, of]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd class="num">{value(of)}</dd>
            </div>
          ))}
        </dl>
      )}
    </li>
  );
}

/** In shadow: what it would have made of its parameters, beside what they are. */
function WouldBe({ store, policy }: { store: RunStore; policy: api.Policy }): JSX.Element | null {
  const now = new Map(store.hparams.value?.hyperparameters.map((one) => [one.name, one.value]));
  const all = Object.entries(policy.would_be);
  if (all.length === 0) return null;
  return (
    <dl class="would-be" data-testid="policy-would-be">
      {all.map(([param, of]) => (
        <div key={param}>
          <dt>
            <i class={swatch(store.shadowColors.value.get(policy.name))} /> {param} would be
          </dt>
          <dd class="num">
            {value(of)} <small>is {value(now.get(param))}</small>
          </dd>
        </div>
      ))}
    </dl>
  );
}

/** The first of `name_2`, `name_3`, … that no policy has. */
function free(name: string, taken: readonly string[]): string {
  let n = 2;
  while (taken.includes(`${name}_${n}`)) n++;
  return `${name}_${n}`;
}

function AddPolicy({
  store,
  taken,
  onDone,
  onEdit,
}: {
  store: RunStore;
  taken: readonly string[];
  onDone: () => void;
  /** Rather edit the one that has the name. */
  onEdit: (name: string) => void;
}): JSX.Element {
  const kinds = store.kinds.value;
  const picked = useSignal(kinds.find((kind) => !taken.includes(kind.kind))?.kind ?? kinds[0]?.kind ?? "");
  const typed = useSignal("");
  const kind = kinds.find((k) => k.kind === picked.value);
  const name = typed.value.trim() || picked.value;
  const isTaken = taken.includes(name);
  const other = free(name, taken);
  return (
    <section class="policy adding" data-testid="policy-new">
      <h3>{store.changeable.value ? "Add" : "Try"} a policy</h3>
      <label class="field">
        <span>Kind</span>
        <select value={picked.value} data-testid="policy-kind" onChange={(e) => (picked.value = e.currentTarget.value)}>
          {kinds.map((k) => (
            <option key={k.kind} value={k.kind}>
              {k.origin ? `${k.kind} (${k.origin})` : k.kind}
            </option>
          ))}
        </select>
      </label>
      <div class="field">
        <label>
          <span>Name</span>
          <input
            value={typed.value}
            placeholder={picked.value}
            aria-invalid={isTaken}
            aria-describedby="policy-name-about"
            data-testid="policy-name"
            onInput={(e) => (typed.value = e.currentTarget.value)}
          />
        </label>
        <div id="policy-name-about" role="status">
          {isTaken && (
            <p class="field-error" data-testid="policy-taken">
              A policy {name} is there already.{" "}
              <button type="button" data-testid="policy-edit-taken" onClick={() => onEdit(name)}>
                {store.changeable.value ? "Edit" : "Try"} it
              </button>{" "}
              <button type="button" data-testid="policy-other-name" onClick={() => (typed.value = other)}>
                Name this {other}
              </button>
            </p>
          )}
        </div>
      </div>
      {kind && (
        <PolicyForm
          key={kind.kind}
          store={store}
          kind={kind}
          name={name}
          policy={null}
          taken={isTaken}
          onDone={onDone}
        />
      )}
    </section>
  );
}
