/** The REST contract: its types, and a function for each request. */
import { ask, problem, query, ROOT } from "./http";

export { Problem } from "./http";

export type RunState =
  | "pending"
  | "starting"
  | "running"
  | "paused"
  | "stopping"
  | "recovering"
  | "finished"
  | "stopped"
  | "failed"
  | "lost";

/** Of such a run nothing can be changed any more. */
export const ended = ({ state }: { state: RunState }): boolean => ["finished", "stopped", "failed", "lost"].includes(state);

export type Axis = "step" | "samples" | "time";

export interface Progress {
  steps: number;
  samples: number;
}

export interface Wanted {
  workers: number;
  /** On each worker's device. */
  learners: number;
  world_size: number;
}

/** A formation after the first: why it was made, and what it cost. */
export interface Recovery {
  formation: number;
  /** `start`: in new processes, from a checkpoint. */
  cause: "loss" | "resize" | "rollback" | "start";
  step: number;
  world_size: number;
  lost: number;
  /** How long training stood still [s]; null where nobody could measure it. */
  pause_s: number | null;
  /** Steps that are trained again, back to a checkpoint. */
  redone: number;
  time: string;
}

export interface RunSummary {
  id: string;
  name: string;
  state: RunState;
  state_reason: string;
  /** Whoever started it; empty where nobody said. */
  owner: string;
  /** Who owns the training loop; empty: Trimtab's own workers. */
  host: string;
  /** The submission id of the job that trains it. */
  job: string | null;
  created: string;
  updated: string;
  /** Ranks that train together now. */
  world_size: number;
  /** The size asked for; null where the run's size cannot be changed. */
  wanted: Wanted | null;
  /** How replicas are kept together: the strategy in force. */
  sync: string;
  /** Counts the groups of workers that the run has had. */
  formation: number;
  progress: Progress;
  horizon: { amount: number; unit: string } | null;
  fraction: number | null;
  loss: number | null;
  loss_trace: number[];
  version: number;
  policies: string[];
}

export interface Noise {
  value: number | null;
  low: number | null;
  high: number | null;
  estimates: number;
  skipped: number;
}

export interface Rank {
  rank: number;
  step: number;
  version: number;
  step_time: number | null;
  dropped: number;
}

export interface Run extends Omit<RunSummary, "policies"> {
  script: string;
  lr_rule: string | null;
  seed: number;
  dataset_size: number | null;
  plan: { batch_size: number; micro_batch: number; accumulation: number } | null;
  noise: Noise | null;
  ranks: Rank[];
  overhead: Record<string, unknown>;
  dropped_points: number;
  policies: Policy[];
  /** Those that are kept, and may be rolled back to. */
  checkpoints: Checkpoint[];
  /** Newest last. */
  recoveries: Recovery[];
}

export interface Checkpoint {
  step: number;
  samples: number;
  version: number;
}

export type Value = number | string;

export interface Factor {
  by: string;
  value: number;
  text: string;
}

export interface HyperParameter {
  name: string;
  kind: "real" | "integer" | "choice";
  value: Value;
  base: Value;
  factors: Factor[];
  owner: string | null;
  pin: { value: Value; by: string; reason: string } | null;
  min: number | null;
  max: number | null;
  choices: string[];
  unit: string;
  text: string;
  version: number;
  applied_version: number;
}

export interface HyperParameters {
  revision: number;
  progress: Progress;
  hyperparameters: HyperParameter[];
}

/** In shadow a policy decides and nothing of it is applied. */
export const MODES = ["active", "shadow", "off"] as const;
export type Mode = (typeof MODES)[number];

export interface Policy {
  name: string;
  kind: string;
  params: Record<string, unknown>;
  mode: Mode;
  revision: number;
  faults: number;
  last_reason: string | null;
  waits: string | null;
  /** Why it is no longer asked, if it is not. */
  disabled: string | null;
  /** In shadow: the values that it would have made. */
  would_be: Record<string, Value>;
  writes: string[];
  reads: string[];
}

export interface PolicyKind {
  kind: string;
  title: string;
  doc: string;
  rule: number | string;
  source: string;
  reads: string[];
  writes: string[];
  /** The package or the file that it comes from; empty: Trimtab itself. */
  origin: string;
  schema: JsonSchema;
}

export interface JsonSchema {
  type?: string;
  title?: string;
  description?: string;
  unit?: string;
  default?: unknown;
  enum?: unknown[];
  const?: unknown;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  items?: JsonSchema;
  properties?: Record<string, JsonSchema>;
  required?: string[];
  anyOf?: JsonSchema[];
  allOf?: JsonSchema[];
  $ref?: string;
  $defs?: Record<string, JsonSchema>;
}

export type ChangeStatus = "requested" | "accepted" | "applied" | "superseded" | "unapplied" | "refused";

export interface ValueChange {
  param: string;
  from: unknown;
  to: unknown;
  by: string;
  reason: string;
}

export interface Change {
  id: number;
  /** None for what makes no version: a refusal, a change of a policy, lost workers whose places were filled at once. */
  version: number | null;
  kind: "version" | "refused" | "policy" | "notice" | "shadow" | "formation";
  changes: ValueChange[];
  status: ChangeStatus;
  accepted_at: string;
  accepted_at_step: number;
  applied: Record<string, number>;
}

/** One decision of a policy, recorded or as it would have been. */
export interface Decision {
  step: number;
  samples: number;
  policy: string;
  param: string;
  before: Value | boolean | null;
  after: Value | boolean | null;
  reason: string;
  /** Why the guard rails would not have it. */
  refused: string | null;
  /** Decided in shadow: nothing was applied. */
  shadow: boolean;
}

export interface Replay {
  observations: number;
  decisions: Decision[];
  recorded: Decision[];
  values: Record<string, { step: number[]; value: Value[] }>;
  /** Metrics that a policy reads and the run did not record. */
  unread: Record<string, string[]>;
  equal: boolean;
}

export interface Buckets {
  x: number[];
  last: number[];
  min: number[];
  max: number[];
  mean: number[];
}

export interface Points {
  step: number[];
  samples: number[];
  time: number[];
}

export interface MetricsEvent extends Partial<Points> {
  run: string;
  rewind?: number;
  series?: Record<string, number[]>;
  sparse?: Record<string, Points & { value: number[] }>;
}

export interface Alert {
  run: string;
  level: "warning" | "error";
  message: string;
  time: string;
}

const runPath = (run: string): string => `${ROOT}/runs/${encodeURIComponent(run)}`;

export const signIn = (token: string): Promise<void> => ask(`${ROOT}/session`, { method: "POST", body: { token } });
export const signOut = (): Promise<void> => ask(`${ROOT}/session`, { method: "DELETE" });
export const version = (): Promise<{ version: string; role: string }> => ask(`${ROOT}/version`);

/** The first page is quickly there, the others are few. */
export const runs = (page: string | null): Promise<{ runs: RunSummary[]; next_page_token: string | null }> =>
  ask(
    `${ROOT}/runs?${query(
      page
        ? [
            ["limit", 1000],
            ["page_token", page],
          ]
        : [["limit", 100]],
    )}`,
  );
export const run = (id: string): Promise<Run> => ask(runPath(id));

export type Command = "pause" | "resume" | "stop" | "checkpoint" | "decay";
export const command = (id: string, verb: Command, reason: string): Promise<{ version: number }> =>
  ask(`${runPath(id)}/${verb}`, { method: "POST", body: reason ? { reason } : {} });

export interface RollbackWish {
  step: number;
  skip_data: boolean;
  reason: string;
}

export const rollback = (id: string, wish: RollbackWish): Promise<{ version: number }> =>
  ask(`${runPath(id)}/rollback`, { method: "POST", body: wish });

export const metricKeys = (id: string): Promise<{ keys: string[] }> => ask(`${runPath(id)}/metrics`);

export interface Window {
  from: number;
  to: number;
}

export const metrics = (
  id: string,
  keys: readonly string[],
  x: Axis,
  maxPoints: number,
  window: Window | null = null,
): Promise<{ x: Axis; series: Record<string, Buckets> }> =>
  ask(
    `${runPath(id)}/metrics?${query([
      ...keys.map((key) => ["key", key] as const),
      ["x", x],
      ["max_points", maxPoints],
      ...(window
        ? ([
            ["from", window.from],
            ["to", window.to],
          ] as const)
        : []),
    ])}`,
  );

/** Columns with one entry a cell of the grid; null where the run has no point in it. */
export type Cells = Record<Exclude<keyof Buckets, "x">, (number | null)[]>;

/** Metrics of several runs on one grid; a time is in seconds since the run's first point. */
export interface Compared {
  x: Axis;
  grid: number[];
  runs: Record<string, Record<string, Cells>>;
}

export const compareMetrics = (
  runs: readonly string[],
  keys: readonly string[],
  grid: { x: Axis; points: number; from: number | null; to: number | null },
): Promise<Compared> => ask(`${ROOT}/metrics:query`, { method: "POST", body: { runs, keys, grid } });

export async function metricsCsv(id: string, keys: readonly string[]): Promise<Blob> {
  const path = `${runPath(id)}/metrics?${query([...keys.map((key) => ["key", key] as const), ["x", "step"]])}`;
  const answer = await fetch(path, { headers: { Accept: "text/csv" } });
  if (!answer.ok) throw await problem(answer);
  return answer.blob();
}

export const hyperparameters = (id: string): Promise<HyperParameters> => ask(`${runPath(id)}/hyperparameters`);
const pinPath = (id: string, param: string): string => `${runPath(id)}/pins/${encodeURIComponent(param)}`;
export const pin = (
  id: string,
  param: string,
  revision: number,
  value: Value | null,
  reason: string,
): Promise<{ revision: number; version: number }> =>
  ask(pinPath(id, param), { method: "PUT", match: revision, body: { value, reason } });
export const unpin = (id: string, param: string, revision: number): Promise<{ revision: number; version: number }> =>
  ask(pinPath(id, param), { method: "DELETE", match: revision });

const policyPath = (id: string, name: string): string => `${runPath(id)}/policies/${encodeURIComponent(name)}`;

export interface PolicyWish {
  kind: string;
  params: Record<string, unknown>;
  mode: Mode;
  reason: string;
}

/** On the revision that was seen; 0 makes one, and replaces none that is there. */
export const putPolicy = (id: string, name: string, match: number, body: PolicyWish): Promise<Policy> =>
  ask(policyPath(id, name), { method: "PUT", match, body });
/** What the policy would have decided on the recorded run; nothing is changed. */
export const tryPolicy = (id: string, name: string, body: PolicyWish): Promise<Replay> =>
  ask(`${policyPath(id, name)}?dry_run=true`, { method: "PUT", match: "*", body });
export const deletePolicy = (id: string, name: string, match: number): Promise<void> =>
  ask(policyPath(id, name), { method: "DELETE", match });
/** Those that are installed, and those that came with a run. */
export const policyKinds = (run: string | null): Promise<{ kinds: PolicyKind[] }> =>
  ask(`${ROOT}/policy-kinds${run === null ? "" : `?${query([["run", run]])}`}`);

export const changes = (id: string, after: number): Promise<{ changes: Change[]; next_after: number | null }> =>
  ask(
    `${runPath(id)}/changes?${query([
      ["after", after],
      ["limit", 500],
    ])}`,
  );

/** The whole audit, page after page. */
export async function allChanges(id: string): Promise<Change[]> {
  const all: Change[] = [];
  for (let after = 0; ; ) {
    const page = await changes(id, after);
    all.push(...page.changes);
    if (page.changes.length === 0 || page.next_after === null || page.next_after <= after) return all;
    after = page.next_after;
  }
}

export const eventsPath = (
  { runs, topics, everywhere }: { runs: readonly string[]; topics: readonly string[]; everywhere: readonly string[] },
  lastEventId: string,
): string =>
  `${ROOT}/events?${query([
    ...runs.map((run) => ["run", run] as const),
    ["topic", topics.join(",")],
    ["everywhere", everywhere.join(",")],
    ...(lastEventId ? ([["last_event_id", lastEventId]] as const) : []),
  ])}`;

export type JobStatus = "PENDING" | "RUNNING" | "STOPPED" | "SUCCEEDED" | "FAILED";

/** A job in Ray's own words; times in unix milliseconds. */
export interface Job {
  submission_id: string;
  job_id: string | null;
  status: JobStatus;
  entrypoint: string;
  message: string | null;
  error_type: string | null;
  start_time: number | null;
  end_time: number | null;
  metadata: Record<string, string>;
  runtime_env: Record<string, unknown>;
  driver_exit_code: number | null;
  /** Who submitted it here; null: it came to Ray by another way. */
  by: string | null;
  /** The runs that it trains. */
  runs: string[];
  given: Given;
}

/** A value with the range that a person gave it. */
export interface Declared {
  default: Value;
  min: number | null;
  max: number | null;
}

/** What was given when the job was submitted, in place of the script's own. */
export interface Given {
  hp: Record<string, Value | Declared>;
  policies: GivenPolicy[];
}

export interface GivenPolicy {
  /** Empty: its kind. */
  name: string;
  kind: string;
  params: Record<string, unknown>;
  mode: Mode;
  /** FILE.py:CLASS that came with the job; empty: an installed kind. */
  code: string;
}

export interface JobWish {
  entrypoint: string;
  submission_id?: string;
  runtime_env: Record<string, unknown>;
  metadata: Record<string, string>;
  entrypoint_num_cpus?: number;
  entrypoint_num_gpus?: number;
}

const jobPath = (id: string): string => `${ROOT}/jobs/${encodeURIComponent(id)}`;
export const jobs = (page: string | null): Promise<{ server: string; jobs: Job[]; next_page_token: string | null }> =>
  ask(`${ROOT}/jobs?${query([["limit", 100], ...(page ? ([["page_token", page]] as const) : [])])}`);
export const job = (id: string): Promise<Job> => ask(jobPath(id));
export const submitJob = (wish: JobWish): Promise<Job> => ask(`${ROOT}/jobs`, { method: "POST", body: wish });
export const stopJob = (id: string): Promise<{ stopped: boolean }> => ask(`${jobPath(id)}/stop`, { method: "POST" });

/** What a job prints after the first `skip` characters, piece by piece, until it ends. */
export async function* followLogs(id: string, skip: number, signal: AbortSignal): AsyncGenerator<string> {
  const path = `${jobPath(id)}/logs?${query([
    ["follow", "true"],
    ["skip", skip],
  ])}`;
  const answer = await fetch(path, { signal, credentials: "same-origin" });
  if (!answer.ok || !answer.body) throw await problem(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value: text, done } = await reader.read();
    if (done) return;
    yield text;
  }
}

/** Durations since the controller was started, and the spread of the last ones [s]. */
export interface Timings {
  count: number;
  sum_s: number;
  median_s: number | null;
  p95_s: number | null;
  max_s: number | null;
}

export interface RunHealth {
  id: string;
  name: string;
  state: RunState;
  step: number;
  steps_per_s: number;
  loss: number | null;
  world_size: number;
  overhead: number | null;
  dropped: number;
  applied_version: number;
  version: number;
}

export interface NodeHealth {
  id: string;
  host: string;
  address: string;
  head: boolean;
  draining: boolean;
  resources: Record<string, { total: number; free: number }>;
}

/** What is null did not answer; `problems` says why. */
export interface Health {
  time: string;
  controller: {
    term: number;
    started: string;
    uptime_s: number;
    cpu_s: number;
    lag: Timings;
    decision_to_applied: Timings;
    tick: Timings;
    ticks: number;
    records: { produced: number; stored: number; dropped: number };
    points: number;
    overhead: number | null;
    events: Record<string, number>;
    runs: Record<string, number>;
    versions: number;
    policy_faults: number;
    live: RunHealth[];
    live_omitted: number;
  } | null;
  home: {
    host: string;
    pid: number;
    memory_peak_bytes: number;
    path: string;
    journal_bytes: number;
    disk_free_bytes: number;
    disk_total_bytes: number;
  } | null;
  api: { host: string; pid: number; uptime_s: number; stream_clients: number };
  nodes: NodeHealth[] | null;
  software: Record<string, string>;
  problems: string[];
}

export const health = (): Promise<Health> => ask(`${ROOT}/health`);
