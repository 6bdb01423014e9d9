import type { JSX } from "preact";
import type { JobStatus } from "../api";

const TONE: Readonly<Record<JobStatus, string>> = {
  PENDING: "calm",
  RUNNING: "good",
  STOPPED: "done",
  SUCCEEDED: "done",
  FAILED: "bad",
};

/** Ray's own word for where a job stands. */
export const JobChip = ({ status }: { status: JobStatus }): JSX.Element => (
  <span class={`chip state tone-${TONE[status]}`} data-testid="job-status" data-status={status}>
    {status.toLowerCase()}
  </span>
);

export const goesOn = (status: JobStatus): boolean => status === "PENDING" || status === "RUNNING";
