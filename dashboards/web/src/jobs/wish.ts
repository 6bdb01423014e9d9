/** From what was typed to what Ray is asked, and back: policies and values travel in the job's environment. */
import type { Declared, Given, GivenPolicy, Job, JobWish, Mode, PolicyKind, Value } from "../api";
import { value } from "../format";
import { collect, fields, toText } from "../schema";

/** The variable by which `trimtab submit` tells the script the same. */
const VARIABLE = "TRIMTAB_OVERRIDES";

/** What the server shows in the place of a variable's value. */
const HIDDEN = "<hidden>";
/** As the server takes them. */
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
/** Values that are numbers in every run; others may be words, as a run's own knobs are. */
const NUMBERS = new Set(
  "lr batch_size momentum weight_decay beta1 beta2 grad_clip skip_sigma zclip workers learners".split(" "),
);

export interface Chosen {
  name: string;
  kind: PolicyKind;
  mode: Mode;
  texts: Readonly<Record<string, string>>;
}

export interface Typed {
  entrypoint: string;
  hp: string;
  environment: string;
  id: string;
  cpus: string;
  chosen: readonly Chosen[];
}

/** A policy of the kind as it comes, but for these parameters. */
export const chosen = (kind: PolicyKind, given: Partial<GivenPolicy> = {}): Chosen => ({
  name: given.name || kind.kind,
  kind,
  mode: given.mode ?? "active",
  texts: Object.fromEntries(
    fields(kind.schema).map((field) => [field.name, toText(field, { [field.name]: field.initial, ...given.params }[field.name])]),
  ),
});

const hpText = (of: Value | Declared): string =>
  typeof of === "object" ? [of.default, of.min ?? "", of.max ?? ""].join(":") : String(of);

/** What a job was asked for, as one would have typed it; under another id, since it is another job. */
export function typedAgain(job: Job, kinds: readonly PolicyKind[]): Typed {
  return {
    entrypoint: job.entrypoint,
    hp: Object.entries(job.given.hp).map(([name, of]) => `${name}=${hpText(of)}`).join(" "),
    environment: Object.keys(job.runtime_env).length ? JSON.stringify(job.runtime_env, null, 2) : "",
    id: "",
    cpus: "",
    chosen: job.given.policies.flatMap((policy) => {
      const kind = kinds.find((one) => one.kind === policy.kind);
      return kind ? [chosen(kind, policy)] : [];
    }),
  };
}

/** Policies of none of these kinds: they came with a file, or their kind is no longer installed. */
export const notAgain = ({ policies }: Given, kinds: readonly PolicyKind[]): string[] =>
  policies.filter((policy) => kinds.every((one) => one.kind !== policy.kind)).map((one) => one.code || one.kind);

/** `lr 0.2, policies plateau, goodput (shadow)`; empty if nothing was given. */
export function givenText({ hp, policies }: Given): string {
  const values = Object.entries(hp).map(([name, of]) => `${name} ${value(typeof of === "object" ? of.default : of)}`);
  const names = policies.map((one) => `${one.code || one.name || one.kind}${one.mode === "active" ? "" : ` (${one.mode})`}`);
  const steered = names.length ? [`${names.length > 1 ? "policies" : "policy"} ${names.join(", ")}`] : [];
  return [...values, ...steered].join(", ");
}

export interface Made {
  wish: JobWish;
  /** By the name of the field. */
  wrong: Record<string, string>;
}

export function jobWish(typed: Typed): Made {
  const wrong: Record<string, string> = {};
  const entrypoint = typed.entrypoint.trim();
  if (!entrypoint) wrong.entrypoint = "A command is needed.";
  const hp = readValues(typed.hp, wrong);
  const id = typed.id.trim();
  if (id && !ID.test(id)) wrong.submission_id = "Letters, digits, dots, - and _, at most 128, the first a letter or a digit.";
  const environment = readEnvironment(typed.environment, wrong);
  const policies = typed.chosen.map(({ name, kind, mode, texts }) => {
    const found = collect(fields(kind.schema), texts);
    for (const [field, message] of Object.entries(found.wrong)) wrong[`${name}.${field}`] = message;
    return { name, kind: kind.kind, params: found.params, mode };
  });
  const cpus = typed.cpus.trim() === "" ? null : Number(typed.cpus);
  if (cpus !== null && !(cpus >= 0)) wrong.entrypoint_num_cpus = "A number is needed, 0 or more.";
  const told = policies.length > 0 || Object.keys(hp).length > 0;
  const variables = told ? { [VARIABLE]: JSON.stringify({ hp, policies }) } : {};
  return {
    wrong,
    wish: {
      entrypoint,
      metadata: {},
      runtime_env: told
        ? { ...environment, env_vars: { ...(environment.env_vars as object | undefined), ...variables } }
        : environment,
      ...(id ? { submission_id: id } : {}),
      ...(cpus === null ? {} : { entrypoint_num_cpus: cpus }),
    },
  };
}

function readValues(text: string, wrong: Record<string, string>): Record<string, Value | (Declared & { name: string })> {
  const out: ReturnType<typeof readValues> = {};
  for (const word of text.split(/[\s,]+/).filter(Boolean)) {
    const [name = "", given = ""] = word.split("=");
    const [start = "", ...bounds] = given.split(":");
    const [min = null, max = null] = bounds.map((bound) => (bound === "" ? null : Number(bound)));
    const of = numeric(start) ? Number(start) : start;
    if (!/^[A-Za-z_]\w*$/.test(name) || start === "") wrong.hp = `${word} is not name=value.`;
    else if (NUMBERS.has(name) && typeof of === "string") wrong.hp = `${name} is a number; got ${start}.`;
    else if (bounds.length % 2 > 0 || bounds.length > 2 || Number.isNaN(min) || Number.isNaN(max))
      wrong.hp = `${word} is not name=value:min:max.`;
    else out[name] = bounds.length ? { name, default: of, min, max } : of;
  }
  return out;
}

const numeric = (text: string): boolean => text !== "" && !Number.isNaN(Number(text));

function readEnvironment(text: string, wrong: Record<string, string>): Record<string, unknown> {
  if (text.trim() === "") return {};
  try {
    const found: unknown = JSON.parse(text);
    if (typeof found === "object" && found !== null && !Array.isArray(found)) {
      const hidden = Object.entries((found as { env_vars?: object }).env_vars ?? {}).flatMap(([name, of]) => (of === HIDDEN ? name : []));
      if (hidden.length) wrong.runtime_env = `Hidden here: give ${hidden.join(", ")} a value again, or take it out.`;
      return found as Record<string, unknown>;
    }
    wrong.runtime_env = "This must be a JSON object.";
  } catch {
    wrong.runtime_env = "This is not valid JSON.";
  }
  return {};
}
