import "../styles/views.css";
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import * as api from "../api";
import { clock } from "../format";
import { isAdmin } from "../session";
import { Confirm } from "../ui/confirm";
import { Icon } from "../ui/icons";
import { Link } from "../ui/link";
import { Failure } from "../ui/notice";
import { polled, usePolled } from "../ui/polled";
import { go, runPlace } from "../url";
import { goesOn, JobChip } from "./chip";
import { Log } from "./log";
import { lasted } from "./page";
import { Submit } from "./submit";
import { givenText } from "./wish";

const POLL_MS = 2000;

/** One job: what it is, what it trains, what it prints. */
export function JobPage({ id }: { id: string }): JSX.Element {
  const job = useMemo(() => polled(() => api.job(id)), [id]);
  usePolled(job, POLL_MS, id);
  const { problem, load } = job;
  const asking = useSignal<"stop" | "again" | null>(null);
  const close = (): void => void (asking.value = null);
  const stop = async (): Promise<void> => {
    try {
      await api.stopJob(id);
      await load();
    } catch (error) {
      problem.value = api.Problem.of(error);
    }
  };
  const now = job.last.value;
  return (
    <main id="main" class="job" data-testid="job-page" data-job={id}>
      <header class="list-header">
        <h1>{id}</h1>
        {now && <JobChip status={now.status} />}
        <span class="spring" />
        <button
          type="button"
          disabled={!now || !isAdmin.value}
          title={isAdmin.value ? undefined : "Submitting runs code: it needs the role admin"}
          data-testid="job-again"
          onClick={() => (asking.value = "again")}
        >
          <Icon name="reset" />
          submit again
        </button>
        <button
          type="button"
          class="danger"
          disabled={!now || !goesOn(now.status) || !isAdmin.value}
          title={isAdmin.value ? undefined : "Stopping a job needs the role admin"}
          data-testid="job-stop"
          onClick={() => (asking.value = "stop")}
        >
          <Icon name="stop" />
          stop
        </button>
      </header>
      {problem.value && <Failure problem={problem.value} onRetry={() => void load()} />}
      {now && <About job={now} />}
      {now && <Log job={id} over={!goesOn(now.status)} />}
      {now && asking.value === "again" && (
        <Submit again={now} onClose={close} onDone={(job) => go({ page: "job", job: job.submission_id })} />
      )}
      {asking.value === "stop" && (
        <Confirm
          title="Stop this job?"
          action="Stop the job"
          name="job-stop"
          onClose={close}
          onConfirm={() => void stop()}
        >
          The job ends at once. To end a run at one step, with a checkpoint, stop the run instead.
        </Confirm>
      )}
    </main>
  );
}

/** Letters of what Ray tells of a job. */
const WORDS = 120;

/** What has become of a job in a few words: of one that failed Ray's message repeats the log, which stands below. */
function lastLine(message: string | null): string | null {
  const last = (message ?? "").trim().split("\n").at(-1)!;
  return last === "" ? null : last.length <= WORDS ? last : `${last.slice(0, WORDS - 1)}…`;
}

function About({ job }: { job: api.Job }): JSX.Element {
  const facts: readonly (readonly [string, JSX.Element | string | null])[] = [
    ["command", <code>{job.entrypoint}</code>],
    [
      "runs",
      job.runs.length ? (
        <>
          {job.runs.map((run) => (
            <Link key={run} to={runPlace(run)} testid="job-run">
              {run}
            </Link>
          ))}
        </>
      ) : null,
    ],
    ["given", givenText(job.given) || null],
    ["submitted by", job.by],
    ["started", job.start_time === null ? null : clock(new Date(job.start_time).toISOString())],
    ["took", lasted(job, Date.now())],
    ["told", lastLine(job.message)],
    ["exit code", job.driver_exit_code === null ? null : String(job.driver_exit_code)],
    ["environment", Object.keys(job.runtime_env).length ? <code>{JSON.stringify(job.runtime_env)}</code> : null],
  ];
  return (
    <dl class="facts-list">
      {facts.map(
        ([name, of]) =>
          of !== null && (
            <div key={name}>
              <dt>{name}</dt>
              <dd class="num">{of}</dd>
            </div>
          ),
      )}
    </dl>
  );
}
