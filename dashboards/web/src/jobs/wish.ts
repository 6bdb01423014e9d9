/** From what was typed to what Ray is asked: policies and values travel in the job's environment. */
import type { JobWish, Mode, PolicyKind } from "../api";
import { collect, fields } from "../schema";

/** The variable by which `trimtab submit` tells the script the same. */
const VARIABLE = "TRIMTAB_OVERRIDES";

export interface Chosen {
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
  kinds: readonly PolicyKind[];
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
  const environment = readEnvironment(typed.environment, wrong);
  const policies = typed.chosen.map(({ kind, mode, texts }) => {
    const found = collect(fields(kind.schema), texts);
    for (const [name, message] of Object.entries(found.wrong)) wrong[`${kind.kind}.${name}`] = message;
    return { name: kind.kind, kind: kind.kind, params: found.params, mode };
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
      ...(typed.id.trim() ? { submission_id: typed.id.trim() } : {}),
      ...(cpus === null ? {} : { entrypoint_num_cpus: cpus }),
    },
  };
}

function readValues(text: string, wrong: Record<string, string>): Record<string, number | string> {
  const out: Record<string, number | string> = {};
  for (const word of text.split(/[\s,]+/).filter(Boolean)) {
    const [name = "", value] = word.split("=");
    if (value === undefined || !/^[A-Za-z_]\w*$/.test(name)) wrong.hp = `${word} is not name=value.`;
    else out[name] = value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
  }
  return out;
}

function readEnvironment(text: string, wrong: Record<string, string>): Record<string, unknown> {
  if (text.trim() === "") return {};
  try {
    const found: unknown = JSON.parse(text);
    if (typeof found === "object" && found !== null && !Array.isArray(found)) return found as Record<string, unknown>;
    wrong.runtime_env = "This must be a JSON object.";
  } catch {
    wrong.runtime_env = "This is not valid JSON.";
  }
  return {};
}
