import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
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
  const over = api.ended(run);
  return (
    <div class="policies" data-testid="policies">
      {run.policies.length === 0 && !adding.value && (
        <p class="quiet">No policy {over ? "steered this run: values stayed" : "steers this run: values stay"} as the script set them.</p>
      )}
      <ul>
        {run.policies.map((policy) => (
          <PolicyCard key={policy.name} store={store} policy={policy} over={over} />
        ))}
      </ul>
      {adding.value ? (
        <AddPolicy store={store} taken={run.policies.map((p) => p.name)} onDone={() => (adding.value = false)} />
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
}

function PolicyCard({ store, policy, over }: CardProps): JSX.Element {
  const editing = useSignal(false);
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
          pressed={editing.value}
          disabled={!mayAct.value}
          onClick={() => (editing.value = !editing.value)}
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
          onConfirm={() => void act(() => api.deletePolicy(store.id, policy.name, policy.revision))}
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
      <WouldBe store={store} policy={policy} />
      {problem.value && (
        <p class="field-error" role="alert">
          <Prose text={problem.value.status === 412 ? "It changed meanwhile; this is how it stands now." : problem.value.message} />
        </p>
      )}
      {editing.value && kind ? (
        <PolicyForm
          store={store}
          kind={kind}
          name={policy.name}
          policy={policy}
          onDone={() => (editing.value = false)}
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

function AddPolicy({
  store,
  taken,
  onDone,
}: {
  store: RunStore;
  taken: readonly string[];
  onDone: () => void;
}): JSX.Element {
  const kinds = store.kinds.value;
  const picked = useSignal(kinds.find((kind) => !taken.includes(kind.kind))?.kind ?? kinds[0]?.kind ?? "");
  const name = useSignal("");
  const kind = kinds.find((k) => k.kind === picked.value);
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
      <label class="field">
        <span>Name</span>
        <input
          value={name.value}
          placeholder={picked.value}
          data-testid="policy-name"
          onInput={(e) => (name.value = e.currentTarget.value)}
        />
      </label>
      {kind && (
        <PolicyForm
          key={kind.kind}
          store={store}
          kind={kind}
          name={name.value.trim() || kind.kind}
          policy={null}
          onDone={onDone}
        />
      )}
    </section>
  );
}
