"""Jobs as the API shows them: Ray's, with what only the controller knows of them."""

from collections.abc import Mapping
from typing import Any, Literal

from trimtab.api.answers import Given, GivenPolicy, JobView
from trimtab.api.gateway import Gateway
from trimtab.controller.controller import PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.home import CLUSTER, OWNER
from trimtab.controller.jobs import Asked, JobDetails, JobRequest, Outgoing
from trimtab.controller.jobs.outbox import WITHDRAWN
from trimtab.controller.jobs.request import DIGEST
from trimtab.controller.jobs.server import ENDED
from trimtab.controller.overrides import VARIABLE, Overrides

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
    if outgoing is not None and outgoing.state != "taken":
        return _outgoing(outgoing)
    details = await gateway.jobs.job(submission_id)
    if details is not None:
        return _view(details, await gateway.call("asked_jobs"))
    if outgoing is not None:
        told = (
            f"job {submission_id} was submitted and Ray knows it no longer: it was deleted, or its cluster has ended; "
            "to run it again choose another id"
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
        **_environment(details.runtime_env),
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
        by=of.by,
        runs=[],
        **_environment(of.request.runtime_env),
    )


def _environment(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave: the environment without the values of its variables, which may be secrets, and apart from
    it what the script is told by those that are Trimtab's own.
    """
    variables = runtime_env.get("env_vars") or {}
    theirs = [name for name in variables if name not in (OWNER, CLUSTER, VARIABLE)]
    shown = {field: value for field, value in runtime_env.items() if field != "env_vars"}
    return {
        "runtime_env": {**shown, "env_vars": dict.fromkeys(theirs, HIDDEN)} if theirs else shown,
        "given": _given(variables.get(VARIABLE, "{}")),
    }


def _given(text: str) -> Given:
    try:
        told = Overrides.decode(text)
    except ValueError:  # not of Trimtab's making: the script will say so
        return Given()
    return Given(hp=dict(told.hp), policies=[_given_policy(one) for one in told.policies])


def _given_policy(of: PolicySpec) -> GivenPolicy:
    code = f"{of.code.file}:{of.code.name}" if of.code is not None else ""
    return GivenPolicy(name=of.name, kind=of.kind, params=dict(of.params), mode=of.mode, code=code)
