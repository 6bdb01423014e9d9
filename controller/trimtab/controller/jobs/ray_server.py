"""Ray's job server through Ray's own client, whose calls block: they are made in threads.

Ray's token goes along as its client takes it from RAY_AUTH_MODE and RAY_AUTH_TOKEN (or the file of the token), which
every process of a cluster has from the one that started it.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray
from ray._private.services import get_webui_url_from_internal_kv
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient, JobType

from trimtab.controller.errors import Refused
from trimtab.controller.home import CLUSTER, WANTS_TOKEN
from trimtab.controller.jobs.outbox import exists
from trimtab.controller.jobs.request import DIGEST, JobRequest
from trimtab.controller.jobs.server import ENDED, JobDetails, JobServerUnreachable, NoJobServer

T = TypeVar("T")
ANSWER_S = 30.0
WATCH_S = 0.5  # between two looks at whether a job that is followed goes on
INVALID = re.compile(r"status code 400\b")
UNKNOWN = re.compile(r"status code 404\b")
LAST_LINE = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): (.*)")


class RayJobServer:
    """The job server at `address`, or that of the cluster to which this process is connected."""

    def __init__(
        self, address: str | None = None, headers: Mapping[str, Any] | None = None, verify: bool | str = True
    ) -> None:
        self._address = address
        self._headers = headers
        self._verify = verify
        self._client: JobSubmissionClient | None = None

    def address(self) -> str:
        if self._address is None:
            url = get_webui_url_from_internal_kv()  # a worker's `ray.init().dashboard_url` is only the default
            self._address = f"http://{url}" if url else NoJobServer().address()
        return self._address

    async def submit(self, request: JobRequest) -> None:
        try:
            await self._ask(lambda client: _submit(client, request))
        except RuntimeError as error:
            known = await self.job(request.submission_id)
            if known is None and INVALID.search(str(error)):
                raise Refused("job-refused", f"Ray refuses the job: {_last_line(error)}") from None
            if known is None:
                raise JobServerUnreachable(f"Ray could not take the job: {_last_line(error)}") from error
            if known.metadata.get(DIGEST) != request.digest:
                raise exists(request.submission_id) from None
        except (TypeError, ValueError) as error:  # Ray's client looks at the request first
            raise Refused("job-refused", f"Ray refuses the job: {error}") from None

    async def jobs(self) -> Sequence[JobDetails]:
        found = await self._ask(lambda client: client.list_jobs())
        return [_details(one) for one in found if one.type is JobType.SUBMISSION]

    async def job(self, submission_id: str) -> JobDetails | None:
        try:
            found = await self._ask(lambda client: client.get_job_info(submission_id))
        except RuntimeError as error:
            if UNKNOWN.search(str(error)):
                return None
            raise JobServerUnreachable(f"Ray's job server failed: {_last_line(error)}") from error
        return _details(found) if found.type is JobType.SUBMISSION else None

    async def stop(self, submission_id: str) -> bool:
        return await self._of(submission_id, lambda client: client.stop_job(submission_id))

    async def delete(self, submission_id: str) -> None:
        await self._of(submission_id, lambda client: client.delete_job(submission_id))

    async def logs(self, submission_id: str) -> str:
        if await self.job(submission_id) is None:
            return ""
        return await self._of(submission_id, lambda client: client.get_job_logs(submission_id))

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Ray's own stream while the job goes on. Ray closes it seconds after the end: the log is there at once."""
        job = await self.job(submission_id)
        client = await self._ask(lambda client: client)
        printed, look = 0, time.monotonic() + WATCH_S
        texts = client.tail_job_logs(submission_id)
        coming: asyncio.Future[str | None] | None = None
        try:
            while job is not None and job.status not in ENDED:
                coming = coming or asyncio.ensure_future(anext(texts, None))
                await asyncio.wait([coming], timeout=max(0.0, look - time.monotonic()))
                if coming.done():
                    text, coming = coming.result(), None
                    if text is None:
                        return
                    printed += len(text)
                    yield text
                if time.monotonic() >= look:
                    with suppress(JobServerUnreachable):  # the stream itself may still be there
                        job = await self.job(submission_id)
                    look = time.monotonic() + WATCH_S
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait([coming])
        if rest := (await self.logs(submission_id))[printed:]:
            yield rest

    def upload(self, runtime_env: dict[str, Any]) -> dict[str, Any]:
        """The environment with its local folders and files brought to the cluster, as Ray's own command line does.

        Raises JobServerUnreachable, and ValueError for what Ray cannot pack.
        """
        with self._told():
            client = self._connected()
            client._upload_working_dir_if_needed(runtime_env)
            client._upload_py_modules_if_needed(runtime_env)
        return dict(ray.runtime_env.RuntimeEnv(**runtime_env).to_dict())

    async def _of(self, submission_id: str, question: Callable[[JobSubmissionClient], T]) -> T:
        try:
            return await self._ask(question)
        except RuntimeError as error:
            if UNKNOWN.search(str(error)):
                raise Refused("job-not-found", f"there is no job {submission_id!r}") from None
            raise Refused("job-refused", f"Ray refuses: {_last_line(error)}") from error

    async def _ask(self, question: Callable[[JobSubmissionClient], T]) -> T:
        with self._told():
            return await asyncio.wait_for(asyncio.to_thread(lambda: question(self._connected())), ANSWER_S)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What keeps the server from answering, in our words."""
        try:
            yield
        except AuthenticationError as error:
            raise JobServerUnreachable(f"Ray's job server at {self._address} {WANTS_TOKEN}") from error
        except OSError as error:  # of requests too
            self._client = None
            told = f"Ray's job server at {self._address} does not answer ({type(error).__name__})"
            raise JobServerUnreachable(told) from error

    def _connected(self) -> JobSubmissionClient:
        if self._client is None:
            headers = None if self._headers is None else dict(self._headers)
            try:
                self._client = JobSubmissionClient(self.address(), headers=headers, verify=self._verify)
            except (RuntimeError, ValueError) as error:
                told = f"there is no job server of Ray's at {self._address}: {_last_line(error)}"
                raise JobServerUnreachable(told) from error
        return self._client


def _submit(client: JobSubmissionClient, request: JobRequest) -> str:
    variables = dict(request.runtime_env.get("env_vars") or {})
    if ray.is_initialized():  # else only Ray can tell a job its cluster
        variables[CLUSTER] = ray.get_runtime_context().gcs_address
    return client.submit_job(
        entrypoint=request.entrypoint,
        submission_id=request.submission_id,
        runtime_env={**request.runtime_env, "env_vars": variables},
        metadata={**request.metadata, DIGEST: request.digest},
        entrypoint_num_cpus=request.entrypoint_num_cpus,
        entrypoint_num_gpus=request.entrypoint_num_gpus,
        entrypoint_memory=request.entrypoint_memory,
        entrypoint_resources=dict(request.entrypoint_resources) or None,
        entrypoint_label_selector=dict(request.entrypoint_label_selector) or None,
    )


def _details(of: Any) -> JobDetails:
    given = {name: value for name, value in of.dict().items() if value is not None}
    return JobDetails(**given | {"type": "SUBMISSION", "status": str(of.status)})


def _last_line(error: Exception) -> str:
    """What Ray's answer, a traceback, comes to."""
    lines = [found[1] for line in str(error).splitlines() if (found := LAST_LINE.search(line))]
    return (lines[-1] if lines else str(error))[:500]
