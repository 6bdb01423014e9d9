"""What is needed of Ray's job server, whoever brings it: Ray in service, plain objects in tests."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from trimtab.controller.errors import Refused
from trimtab.controller.jobs.request import JobRequest

JobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
ENDED: frozenset[JobStatus] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


class JobServerUnreachable(Exception):
    """Ray's job server did not answer; it returns by itself, so try again."""


class JobDetails(BaseModel):
    """A submitted job in Ray's own words; times in unix milliseconds, as Ray gives them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["SUBMISSION"] = "SUBMISSION"
    submission_id: str
    job_id: str | None = Field(None, description="Ray's own number of the job, once its driver has connected.")
    status: JobStatus
    entrypoint: str
    message: str | None = None
    error_type: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    metadata: dict[str, str] = {}
    runtime_env: dict[str, Any] = Field({}, description="The values of `env_vars` are hidden.")
    driver_node_id: str | None = None
    driver_exit_code: int | None = None


class JobServer(Protocol):
    """Every method raises JobServerUnreachable when nobody answers."""

    def address(self) -> str:
        """Where it is. Raises Refused (`no-job-server`) where the cluster has none."""

    async def submit(self, request: JobRequest) -> None:
        """Return when Ray has the job, whether from now or from an earlier call that was the same.

        Raises Refused: `job-exists` where another job has the id, `job-refused` with what Ray finds wrong.
        """

    async def jobs(self) -> Sequence[JobDetails]:
        """All submitted jobs, in no order."""

    async def job(self, submission_id: str) -> JobDetails | None:
        """One of them; None where Ray does not know it."""

    async def stop(self, submission_id: str) -> bool:
        """Ask a job to end; False if it was not running. Raises Refused (`job-not-found`)."""

    async def delete(self, submission_id: str) -> None:
        """Let Ray forget a job that has ended. Raises Refused (`job-not-found`)."""

    async def logs(self, submission_id: str) -> str:
        """All that the job has printed; nothing where Ray does not know it."""

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """What it prints, from its start to its end; nothing where Ray does not know it."""


class NoJobServer:
    """Stands for the job server where there is none."""

    def address(self) -> str:
        raise Refused("no-job-server", "this Ray cluster has no job server; start it with its dashboard")

    async def submit(self, request: JobRequest) -> None:  # noqa: ARG002
        self.address()

    async def jobs(self) -> Sequence[JobDetails]:
        return ()

    async def job(self, submission_id: str) -> JobDetails | None:  # noqa: ARG002
        return None

    async def stop(self, submission_id: str) -> bool:  # noqa: ARG002
        return False

    async def delete(self, submission_id: str) -> None:  # noqa: ARG002
        self.address()

    async def logs(self, submission_id: str) -> str:  # noqa: ARG002
        return self.address()

    async def tail(self, submission_id: str) -> AsyncIterator[str]:  # noqa: ARG002
        yield self.address()
