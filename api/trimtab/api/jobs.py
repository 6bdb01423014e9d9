"""Jobs as the API shows them: Ray's, with what only the controller knows of them."""

from typing import Any, Literal

from trimtab.api.answers import JobView
from trimtab.api.gateway import Gateway
from trimtab.controller.errors import Refused
from trimtab.controller.jobs import Asked, JobDetails, JobRequest, Outgoing
from trimtab.controller.jobs.outbox import FORGOTTEN, WITHDRAWN
from trimtab.controller.jobs.request import DIGEST
from trimtab.controller.jobs.server import ENDED

HIDDEN = "<hidden>"


async def submit(gateway: Gateway, request: JobRequest, by: str) -> tuple[JobView, Literal["new", "known", "waiting"]]:
    """The job that the request has made, now or before; or that waits for Ray."""
    answer: tuple[Outgoing, bool] = await gateway.call("submit_job", request, by)
    outgoing, new = answer
    if outgoing.state == "waiting":
        return _outgoing(outgoing), "waiting"
    return await find(gateway, request.submission_id), "new" if new else "known"


async def find(gateway: Gateway, submission_id: str) -> JobView:
    outgoing: Outgoing | None = await gateway.call("asked_job", submission_id)
    if outgoing is not None and outgoing.state != "taken" and outgoing.code != FORGOTTEN:
        return _outgoing(outgoing)
    details = await gateway.jobs.job(submission_id)
    if details is not None:
        return _view(details, await gateway.call("asked_jobs"))
    if outgoing is not None and outgoing.state == "taken":
        told = (
            f"job {submission_id} was submitted and Ray knows it no longer: it was deleted, or its cluster has ended; "
            "to run it again choose another submission_id"
        )
        raise Refused("job-gone", told)
    raise Refused("job-not-found", f"there is no job {submission_id!r}")


async def page(gateway: Gateway, limit: int, token: str | None) -> tuple[list[JobView], str | None]:
    """Submitted jobs, newest first, and the token of the page after these if there are more."""
    asked: Asked = await gateway.call("asked_jobs")
    known = [_view(one, asked) for one in await gateway.jobs.jobs()]
    ids = {one.submission_id for one in known}
    absent = [_outgoing(one) for one in asked.absent if one.request.submission_id not in ids]
    place = _place(token) if token is not None else None
    found = sorted((one for one in [*absent, *known] if place is None or _key(one) > place), key=_key)
    last = found[limit - 1] if limit < len(found) else None
    return found[:limit], f"{last.start_time or 0}.{last.submission_id}" if last is not None else None


def _key(job: JobView) -> tuple[int, str]:
    return -(job.start_time or 0), job.submission_id


def _place(token: str) -> tuple[int, str]:
    time, _, submission_id = token.partition(".")
    if not (time.isascii() and time.isdecimal() and len(time) < 20):
        raise Refused("invalid-parameters", "page_token: not one of ours", {"page_token": "not one of ours"})
    return -int(time), submission_id


async def stop(gateway: Gateway, submission_id: str, by: str) -> bool:
    if await gateway.call("withdraw_job", submission_id, by):
        return True
    await find(gateway, submission_id)
    return await gateway.jobs.stop(submission_id)


async def delete(gateway: Gateway, submission_id: str, by: str) -> None:
    """Forget a job that has ended; where Ray had it, its id stays taken."""
    if await gateway.call("forget_job", submission_id, by):
        return
    job = await find(gateway, submission_id)
    if job.status not in ENDED:
        raise Refused("job-running", f"job {submission_id} is {job.status}; stop it first")
    await gateway.jobs.delete(submission_id)


def _view(details: JobDetails, asked: Asked) -> JobView:
    job_id = details.submission_id
    shown = details.model_dump() | {
        "metadata": {name: value for name, value in details.metadata.items() if name != DIGEST},
        "runtime_env": _hidden(details.runtime_env),
    }
    return JobView(**shown, by=asked.by.get(job_id), runs=list(asked.runs.get(job_id, ())))


def _outgoing(of: Outgoing) -> JobView:
    """A job that Ray does not have."""
    waits = of.state == "waiting"
    return JobView(
        submission_id=of.request.submission_id,
        status="PENDING" if waits else "STOPPED" if of.code == WITHDRAWN else "FAILED",
        entrypoint=of.request.entrypoint,
        message=f"Ray does not have it yet. {of.reason}".rstrip() if waits else of.reason,
        start_time=round(of.time * 1000),
        metadata=dict(of.request.metadata),
        runtime_env=_hidden(of.request.runtime_env),
        by=of.by,
        runs=[],
    )


def _hidden(runtime_env: Any) -> dict[str, Any]:
    """The environment without the values of its variables, which may be secrets."""
    variables = runtime_env.get("env_vars") or {}
    return {**runtime_env, **({"env_vars": dict.fromkeys(variables, HIDDEN)} if variables else {})}
