"""Jobs on their way to Ray, so that a submit makes exactly one job, whoever dies when.

What is wanted is in the journal before Ray is asked, under an id that never changes; Ray takes an id once. Whatever the
journal does not know to be over is asked for again, after a restart too: if Ray has it already, all the better.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trimtab.controller.errors import Refused
from trimtab.controller.home import OWNER
from trimtab.controller.jobs.request import Dropped, JobEvent, JobRequest, Submitted, Taken, decode, encode
from trimtab.controller.jobs.server import JobServer, JobServerUnreachable

log = logging.getLogger(__name__)

KEY = "jobs/"  # before the id, in the place of a run's id in the journal, which has no slash
PATIENCE_S = 5.0  # that a submit waits for Ray
RETRY_S = 2.0
WITHDRAWN = "job-withdrawn"
FORGOTTEN = "job-forgotten"

Write = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A job that was asked for here.

    waiting  Ray has not yet said that it has it; `reason` tells why not
    taken    Ray has it
    dropped  Ray never had it: it refused, or somebody took it back
    """

    request: JobRequest
    by: str
    time: float  # unix seconds
    state: Literal["waiting", "taken", "dropped"] = "waiting"
    reason: str = ""
    code: str = ""  # of the refusal, if it was dropped

    def as_sent(self) -> JobRequest:
        """The request with a variable more, so that the runs of the job are those of whoever asked for it."""
        variables = {OWNER: self.by, **(self.request.runtime_env.get("env_vars") or {})}
        return replace(self.request, runtime_env={**self.request.runtime_env, "env_vars": variables})


@dataclass(frozen=True, slots=True)
class Asked:
    """What Ray does not know of jobs, by their submission ids."""

    absent: Sequence[Outgoing]  # that wait for it, or never came to it
    by: Mapping[str, str]  # who asked for it
    runs: Mapping[str, Sequence[str]]  # that it trains


class Outbox:
    """`write` appends one event to the journal, durably, and returns the time it stands there with."""

    def __init__(self, server: JobServer, write: Write) -> None:
        self._server = server
        self._write = write
        self._jobs: dict[str, Outgoing] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._next_round = 0.0  # the loop's clock

    @staticmethod
    def owns(key: str) -> bool:
        """Is an entry of the journal one of these?"""
        return key.startswith(KEY)

    def follow(self, key: str, text: str, time: float) -> None:
        """Fold an entry of the journal."""
        job_id = key.removeprefix(KEY)
        match decode(text):
            case Submitted(request, by):
                self._jobs[job_id] = Outgoing(request, by, time)
            case Taken():
                self._jobs[job_id] = replace(self._jobs[job_id], state="taken", reason="")
            case Dropped(code=code) if code == FORGOTTEN:
                del self._jobs[job_id]
            case Dropped(code, reason):
                self._jobs[job_id] = replace(self._jobs[job_id], state="dropped", code=code, reason=reason)

    def _commit(self, job_id: str, event: JobEvent) -> None:
        key, text = KEY + job_id, encode(event)
        self.follow(key, text, self._write(key, text))

    def find(self, job_id: str) -> Outgoing | None:
        return self._jobs.get(job_id)

    def asked(self, runs: Mapping[str, Sequence[str]]) -> Asked:
        absent = [one for one in self._jobs.values() if one.state != "taken"]
        return Asked(absent, {job_id: one.by for job_id, one in self._jobs.items()}, runs)

    def _waiting(self) -> list[Outgoing]:
        return [one for one in self._jobs.values() if one.state == "waiting"]

    async def submit(self, request: JobRequest, by: str) -> tuple[Outgoing, bool]:
        """Want a job, and wait a little for Ray to take it; True if it was not wanted before.

        The same request again answers the same; so it may be repeated whenever an answer was lost. Raises Refused.
        """
        job_id = request.submission_id
        known = self._jobs.get(job_id)
        new = known is None or known.state == "dropped"
        if known is not None and not new and known.request.digest != request.digest:
            raise exists(job_id)
        if new:
            self._server.address()
            self._commit(job_id, Submitted(request, by))
        if self._jobs[job_id].state == "waiting":
            await asyncio.wait([self._delivery(job_id)], timeout=PATIENCE_S)
        answer = self._jobs[job_id]
        if answer.state == "dropped":
            raise Refused(answer.code, answer.reason)
        return answer, new

    async def withdraw(self, job_id: str, by: str) -> bool:
        """Take back a job that Ray does not have; False if it has, or if nobody wants it."""
        if job_id in self._under_way:
            await asyncio.wait([self._under_way[job_id]])
        known = self._jobs.get(job_id)
        if known is None or known.state != "waiting":
            return False
        self._commit(job_id, Dropped(WITHDRAWN, f"{by} took it back before Ray had it"))
        return True

    def forget(self, job_id: str, by: str) -> bool:
        """List a job no longer that never came to Ray; False if that is not what became of it."""
        known = self._jobs.get(job_id)
        if known is None or known.state != "dropped":
            return False
        self._commit(job_id, Dropped(FORGOTTEN, f"{by} deleted it; Ray never had it"))
        return True

    def deliver(self) -> None:
        """Ask Ray for what still waits, from time to time; to be called about once a second, from the event loop."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_round:
            self._next_round = now + RETRY_S
            for one in self._waiting():
                self._delivery(one.request.submission_id)

    def _delivery(self, job_id: str) -> asyncio.Task[None]:
        """The call to Ray that is under way, or a new one."""
        if job_id not in self._under_way:
            self._under_way[job_id] = asyncio.create_task(self._deliver(job_id))
            self._under_way[job_id].add_done_callback(lambda task: self._delivered(job_id, task))
        return self._under_way[job_id]

    def _delivered(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._under_way[job_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("delivering job %s failed; it is tried again", job_id, exc_info=error)

    async def _deliver(self, job_id: str) -> None:
        job = self._jobs[job_id]
        try:
            await self._server.submit(job.as_sent())
        except JobServerUnreachable as error:
            log.warning("job %s waits: %s", job_id, error)
            self._jobs[job_id] = replace(job, reason=str(error))
        except Refused as refused:
            self._commit(job_id, Dropped(refused.code, refused.message))
        else:
            self._commit(job_id, Taken())


def exists(job_id: str) -> Refused:
    told = f"another job was submitted as {job_id!r}; choose another id"
    return Refused("job-exists", told, {"submission_id": told})
