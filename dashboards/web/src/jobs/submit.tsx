import { useSignal, type Signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import * as api from "../api";
import { SchemaField } from "../run/schema-field";
import { collect, corrected, fields } from "../schema";
import { Dialog } from "../ui/dialog";
import { IconButton } from "../ui/icons";
import { ModeSwitch } from "../ui/mode-switch";
import { Prose } from "../ui/prose";
import { chosen, jobWish, notAgain, typedAgain, type Chosen, type Typed } from "./wish";

interface SubmitProps {
  /** A job that is to be submitted again. */
  again?: api.Job;
  onClose: () => void;
  onDone: (job: api.Job) => void;
}

/** A command for Ray, with policies and values that stand in place of the script's own. */
export function Submit({ again, onClose, onDone }: SubmitProps): JSX.Element {
  const begin = useMemo(() => (again ? typedAgain(again, []) : NOTHING), []);
  const entrypoint = useSignal(begin.entrypoint);
  const hp = useSignal(begin.hp);
  const environment = useSignal(begin.environment);
  const id = useSignal("");
  const cpus = useSignal("");
  const policies = useSignal<readonly Chosen[]>([]);
  const kinds = useSignal<readonly api.PolicyKind[]>([]);
  const errors = useSignal<Readonly<Record<string, string>>>({});
  const message = useSignal("");
  const busy = useSignal(false);
  useEffect(() => {
    api.policyKinds(null).then(
      (answer) => {
        kinds.value = answer.kinds;
        if (again) policies.value = typedAgain(again, answer.kinds).chosen;
      },
      (error: unknown) => (message.value = api.Problem.of(error).message),
    );
  }, []);

  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    message.value = "";
    const { wish, wrong } = jobWish({
      entrypoint: entrypoint.value,
      hp: hp.value,
      environment: environment.value,
      id: id.value,
      cpus: cpus.value,
      chosen: policies.value,
    });
    errors.value = wrong;
    if (Object.keys(wrong).length > 0) return;
    busy.value = true;
    try {
      onDone(await api.submitJob(wish));
    } catch (error) {
      const problem = api.Problem.of(error);
      errors.value = problem.fields;
      const beside = Object.keys(problem.fields);
      message.value = beside.length > 0 && beside.every((name) => FIELDS.has(name)) ? "" : problem.message;
    }
    busy.value = false;
  };
  const edited = (name: string): void => void (errors.value = corrected(errors.value, name));
  const missing = again && kinds.value.length > 0 ? notAgain(again.given, kinds.value) : [];
  const text = (of: Signal<string>, name: string, label: string, about: string, rest: object = {}): JSX.Element => (
    <div class="field">
      <label>
        <span>{label}</span>
        <input
          value={of.value}
          aria-invalid={name in errors.value}
          aria-describedby={`job-${name}-about`}
          data-testid={`job-${name}`}
          onInput={(event) => {
            of.value = event.currentTarget.value;
            edited(name);
          }}
          {...rest}
        />
      </label>
      <p id={`job-${name}-about`} class={errors.value[name] ? "field-error" : "about"}>
        <Prose text={errors.value[name] ?? about} />
      </p>
    </div>
  );
  return (
    <Dialog title={again ? "Submit the job again" : "Submit a job"} onClose={onClose} testid="job-dialog" wide>
      <form class="submit-form" onSubmit={(event) => void submit(event)} noValidate>
        {text(entrypoint, "entrypoint", "Command", "What Ray runs, in the working directory of the environment below.", {
          placeholder: "python train.py",
          required: true,
          autofocus: true,
        })}
        <fieldset>
          <legend>Policies</legend>
          {policies.value.map((one, i) => (
            <ChosenPolicy
              key={one.name}
              chosen={one}
              errors={errors.value}
              onEdit={edited}
              onChange={(next) => (policies.value = policies.value.map((c, k) => (k === i ? next : c)))}
              onDrop={() => (policies.value = policies.value.filter((_, k) => k !== i))}
            />
          ))}
          <AddPolicy
            kinds={kinds.value.filter((kind) => !policies.value.some((one) => one.kind.kind === kind.kind))}
            onAdd={(kind) => (policies.value = [...policies.value, chosen(kind)])}
          />
          <p class="about">They stand in place of those that the script names.</p>
          {missing.length > 0 && (
            <p class="alert" data-testid="job-not-again">
              Not here: {missing.join(", ")}. What came with a file is given with <code>trimtab submit --policy</code>.
            </p>
          )}
        </fieldset>
        {text(hp, "hp", "Values", "name=value, with spaces between; in place of the script's own.", {
          placeholder: "lr=0.1 batch_size=64",
        })}
        <div class="field">
          <label>
            <span>Environment (JSON)</span>
            <textarea
              rows={3}
              value={environment.value}
              placeholder={'{"working_dir": "https://…/code.zip", "pip": ["torch"]}'}
              aria-invalid={"runtime_env" in errors.value}
              aria-describedby="job-environment-about"
              data-testid="job-environment"
              onInput={(event) => {
                environment.value = event.currentTarget.value;
                edited("runtime_env");
              }}
            />
          </label>
          <p id="job-environment-about" class={errors.value.runtime_env ? "field-error" : "about"}>
            <Prose
              text={
                errors.value.runtime_env ??
                "Ray's `runtime_env`. Code is fetched from a URI; `trimtab submit` uploads a folder."
              }
            />
          </p>
        </div>
        <div class="fields">
          {text(id, "submission_id", "Id", "The same id again is the same job; without one it is made.")}
          {text(cpus, "entrypoint_num_cpus", "CPUs", "For the command itself, not for its workers.", {
            inputMode: "decimal",
          })}
        </div>
        {message.value && (
          <p class="field-error" role="alert" data-testid="job-error">
            <Prose text={message.value} />
          </p>
        )}
        <footer>
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="solid" disabled={busy.value} data-testid="job-submit">
            Submit
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

/** What the server may name: its word stands beside the field, and nowhere else. */
const FIELDS: ReadonlySet<string> = new Set(["entrypoint", "runtime_env", "submission_id", "entrypoint_num_cpus"]);

const NOTHING: Typed = { entrypoint: "", hp: "", environment: "", id: "", cpus: "", chosen: [] };

interface ChosenProps {
  chosen: Chosen;
  errors: Readonly<Record<string, string>>;
  /** The field of this name in `errors`. */
  onEdit: (name: string) => void;
  onChange: (chosen: Chosen) => void;
  onDrop: () => void;
}

function ChosenPolicy({ chosen: policy, errors, onEdit, onChange, onDrop }: ChosenProps): JSX.Element {
  const { name, kind, mode, texts } = policy;
  const all = useMemo(() => fields(kind.schema), [kind]);
  const wrong = Object.keys(collect(all, texts).wrong).length;
  return (
    <div class="chosen" data-testid="chosen-policy" data-kind={kind.kind}>
      <header>
        <h3>{name}</h3>
        {name !== kind.kind && <small>{kind.kind}</small>}
        {wrong > 0 && <span class="chip tone-bad">{wrong} to be filled in</span>}
        <span class="spring" />
        <ModeSwitch mode={mode} label={`${name}: mode`} testid="chosen-mode" onPick={(m) => onChange({ ...policy, mode: m })} />
        <IconButton name="trash" label={`Take ${name} out`} onClick={onDrop} />
      </header>
      <details open={wrong > 0 || undefined}>
        <summary>Parameters</summary>
        <div class="fields">
          {all.map((field) => (
            <SchemaField
              key={field.name}
              within={name}
              field={field}
              text={texts[field.name] ?? ""}
              error={errors[`${name}.${field.name}`] ?? ""}
              onInput={(text) => {
                onChange({ ...policy, texts: { ...texts, [field.name]: text } });
                onEdit(`${name}.${field.name}`);
              }}
            />
          ))}
        </div>
      </details>
    </div>
  );
}

interface AddProps {
  kinds: readonly api.PolicyKind[];
  onAdd: (kind: api.PolicyKind) => void;
}

const AddPolicy = ({ kinds, onAdd }: AddProps): JSX.Element => (
  <select
    value=""
    aria-label="Add a policy"
    data-testid="job-policy"
    onChange={(event) => {
      const kind = kinds.find((one) => one.kind === event.currentTarget.value);
      event.currentTarget.value = "";
      if (kind) onAdd(kind);
    }}
  >
    <option value="">Add a policy …</option>
    {kinds.map((kind) => (
      <option key={kind.kind} value={kind.kind}>
        {kind.kind}
      </option>
    ))}
  </select>
);
