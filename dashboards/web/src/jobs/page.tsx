import "../styles/views.css";
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import * as api from "../api";
import { ago, count, seconds } from "../format";
import { isAdmin } from "../session";
import { Icon } from "../ui/icons";
import { Link } from "../ui/link";
import { Failure, Notice } from "../ui/notice";
import { polled, usePolled } from "../ui/polled";
import { go, runPlace, show, view } from "../url";
import { JobChip } from "./chip";
import { Submit } from "./submit";

const POLL_MS = 3000;
const SHOWN = 200;

const jobs = polled(async (): Promise<readonly api.Job[]> => {
  const found: api.Job[] = [];
  let page: string | null = null;
  do {
    const answer: Awaited<ReturnType<typeof api.jobs>> = await api.jobs(page);
    found.push(...answer.jobs);
    page = answer.next_page_token;
  } while (page);
  return found;
});

/** Jobs of the Ray cluster, and a form for another. */
export function JobsPage(): JSX.Element {
  const submitting = useSignal(false);
  const limit = useSignal(SHOWN);
  usePolled(jobs, POLL_MS, "Jobs");
  const { problem, load } = jobs;
  const all = jobs.last.value;
  const words = view.value.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = all?.filter((job) => words.every((word) => text(job).includes(word))) ?? [];
  return (
    <main id="main" class="jobs" data-testid="jobs-page">
      <header class="list-header">
        <h1>Jobs</h1>
        <span class="quiet num">{all ? count(all.length) : ""}</span>
        <span class="spring" />
        <input
          type="search"
          placeholder="filter by id, status, command"
          aria-label="Filter jobs"
          value={view.value.filter}
          onInput={(event) => show({ filter: event.currentTarget.value })}
        />
        <button
          type="button"
          class="solid"
          disabled={!isAdmin.value}
          title={isAdmin.value ? undefined : "Submitting runs code: it needs the role admin"}
          data-testid="job-new"
          onClick={() => (submitting.value = true)}
        >
          <Icon name="plus" />
          Submit a job
        </button>
      </header>
      {problem.value && <Failure problem={problem.value} onRetry={() => void load()} />}
      {all === null && !problem.value && (
        <p class="quiet" aria-busy="true">
          Loading jobs …
        </p>
      )}
      {all?.length === 0 && <NoJobs />}
      {all !== null && all.length > 0 && shown.length === 0 && <p class="quiet">No job matches “{view.value.filter}”.</p>}
      {shown.length > 0 && <Table jobs={shown.slice(0, limit.value)} />}
      {shown.length > limit.value && (
        <button type="button" onClick={() => (limit.value += SHOWN)}>
          Show older ({count(shown.length - limit.value)})
        </button>
      )}
      {submitting.value && (
        <Submit
          onClose={() => (submitting.value = false)}
          onDone={(job) => go({ page: "job", job: job.submission_id })}
        />
      )}
    </main>
  );
}

const text = (job: api.Job): string =>
  `${job.submission_id} ${job.status} ${job.entrypoint} ${job.by ?? ""} ${job.runs.join(" ")}`.toLowerCase();

export function lasted({ start_time, end_time }: api.Job, now: number): string {
  return start_time === null ? "–" : seconds(Math.max(0, (end_time ?? now) - start_time) / 1000);
}

function Table({ jobs: shown }: { jobs: readonly api.Job[] }): JSX.Element {
  const now = Date.now();
  return (
    <div class="scroll job-list" tabIndex={0} role="region" aria-label="Jobs">
      <table class="wide-table" data-testid="jobs">
        <thead>
          <tr>
            {["job", "status", "command", "runs", "by", "took", "started"].map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map((job) => (
            <tr key={job.submission_id} data-testid="job" data-job={job.submission_id}>
              <th scope="row">
                <Link to={{ page: "job", job: job.submission_id }} title={job.submission_id}>
                  {job.submission_id}
                </Link>
              </th>
              <td>
                <JobChip status={job.status} />
              </td>
              <td class="command">
                <code title={job.entrypoint}>{job.entrypoint}</code>
              </td>
              <td>
                {job.runs.map((run) => (
                  <Link key={run} to={runPlace(run)} class="tag">
                    {run}
                  </Link>
                ))}
              </td>
              <td>{job.by ?? "–"}</td>
              <td class="num">{lasted(job, now)}</td>
              <td class="num">{job.start_time === null ? "–" : ago(new Date(job.start_time).toISOString(), now)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const NoJobs = (): JSX.Element => (
  <Notice title="No jobs yet" testid="empty">
    <p>A job is a command that Ray runs on its cluster. Submit one here, or from a terminal:</p>
    <pre tabIndex={0}>
      <code>trimtab submit --working-dir . --policy noise_scale -- python train.py</code>
    </pre>
  </Notice>
);
