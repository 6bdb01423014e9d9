/** What runs were given, and where they stand, as rows of a table with one column a run. */
import { count, number, value } from "../format";
import type { Compared } from "./store";

export interface Cell {
  text: string;
  note: string;
}

export interface Row {
  name: string;
  cells: readonly Cell[];
  differs: boolean;
}

export interface Group {
  title: string;
  rows: readonly Row[];
}

const NONE = "–";
const cell = (text: string, note = ""): Cell => ({ text, note });

function row(name: string, cells: readonly Cell[]): Row {
  return { name, cells, differs: new Set(cells.map((one) => one.text)).size > 1 };
}

/** Names that any of the runs has, in the order in which they come. */
const union = (lists: readonly (readonly string[])[]): string[] => [...new Set(lists.flat())];

export function rowsOf(all: readonly Compared[]): Group[] {
  return [
    { title: "Where they stand", rows: standing(all) },
    { title: "Values in force", rows: values(all) },
    { title: "Policies", rows: policies(all) },
  ];
}

const standing = (all: readonly Compared[]): Row[] => [
  row(
    "loss, last step",
    all.map(({ run }) => cell(number(run.loss))),
  ),
  row(
    "steps",
    all.map(({ run }) => cell(count(run.progress.steps))),
  ),
  row(
    "samples",
    all.map(({ run }) => cell(count(run.progress.samples))),
  ),
  row(
    "workers",
    all.map(({ run }) => cell(count(run.world_size))),
  ),
  ...(all.some(({ run }) => run.script)
    ? [
        row(
          "script",
          all.map(({ run }) => cell(run.script || NONE)),
        ),
      ]
    : []),
  row(
    "seed",
    all.map(({ run }) => cell(String(run.seed))),
  ),
];

/** A value as it is now; where it began elsewhere, that beside it. */
const values = (all: readonly Compared[]): Row[] =>
  union(all.map(({ hparams }) => hparams.hyperparameters.map((one) => one.name))).map((name) =>
    row(
      name,
      all.map(({ hparams }) => {
        const param = hparams.hyperparameters.find((one) => one.name === name);
        if (!param) return cell(NONE);
        const factors = param.factors.filter((one) => one.value !== 1).map((one) => `× ${one.by} ${number(one.value, 3)}`);
        const note = param.pin ? `pinned by ${param.pin.by}` : factors.length ? `${value(param.base)} ${factors.join(" ")}` : "";
        return cell(value(param.value), note);
      }),
    ),
  );

const policies = (all: readonly Compared[]): Row[] =>
  union(all.map(({ run }) => run.policies.map((one) => one.name))).flatMap((name) => {
    const own = all.map(({ run }) => run.policies.find((one) => one.name === name));
    const params = union(own.map((policy) => Object.keys(policy?.params ?? {})));
    return [
      row(
        name,
        own.map((policy) => cell(policy ? policy.mode : NONE, policy && policy.kind !== name ? policy.kind : "")),
      ),
      ...params.map((param) =>
        row(
          `${name}: ${param}`,
          own.map((policy) => cell(policy ? value(policy.params[param]) : NONE)),
        ),
      ),
    ];
  });
