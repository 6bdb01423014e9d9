import type { RunSummary } from "../api";
import type { Sort, SortColumn } from "../url";

type Key = number | string | null;

const KEYS: Readonly<Record<SortColumn, (run: RunSummary) => Key>> = {
  name: (run) => run.name.toLowerCase(),
  state: (run) => run.state,
  progress: (run) => run.fraction ?? null,
  loss: (run) => (run.loss !== null && Number.isFinite(run.loss) ? run.loss : null),
  size: (run) => run.world_size,
  owner: (run) => run.owner || null,
  host: (run) => run.host || "trimtab",
  updated: (run) => run.updated,
  created: (run) => run.created,
};

/** Runs in the order asked for; those without such a value come last, whichever way round, and ties newest first. */
export function ordered(runs: readonly RunSummary[], { by, down }: Sort): RunSummary[] {
  const key = KEYS[by];
  const sign = down ? -1 : 1;
  return runs
    .map((run) => ({ run, key: key(run) }))
    .sort((a, b) => {
      if (a.key === b.key) return a.run.created < b.run.created ? 1 : -1;
      if (a.key === null) return 1;
      if (b.key === null) return -1;
      return a.key < b.key ? -sign : sign;
    })
    .map(({ run }) => run);
}

/** Every word of the filter must be somewhere in what the table says of a run; `state:running` looks at one column. */
export function matches(run: RunSummary, filter: string): boolean {
  const columns: Readonly<Record<string, string>> = {
    name: `${run.name} ${run.id}`,
    state: run.state,
    policy: run.policies.join(" "),
    owner: run.owner,
    loop: run.host || "trimtab",
    host: run.host || "trimtab",
    sync: run.sync,
    job: run.job ?? "",
  };
  const all = Object.values(columns).join(" ").toLowerCase();
  return filter
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .every((word) => {
      const [column = "", ...rest] = word.split(":");
      const named = rest.length > 0 ? columns[column] : undefined;
      return named === undefined ? all.includes(word) : named.toLowerCase().includes(rest.join(":"));
    });
}
