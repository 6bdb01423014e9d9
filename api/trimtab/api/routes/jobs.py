"""Jobs of the Ray cluster: submitted once however often the request is repeated, listed, stopped, followed."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import PlainTextResponse, StreamingResponse

from trimtab.api import jobs
from trimtab.api.answers import Deleted, Jobs, JobView, Logs, Stopped
from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import JobForm, LogsQuery, PageQuery, SubmissionId
from trimtab.controller.jobs import JobRequest
from trimtab.controller.jobs.server import ENDED

router = APIRouter()

CREATED: dict[int | str, dict[str, Any]] = {
    201: {"model": JobView},
    202: {"model": JobView, "description": "It is kept, and submitted as soon as Ray's job server answers."},
}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.post("/jobs", responses=CREATED)
async def submit_job(
    form: JobForm,
    caller: Caller,
    context: Ctx,
    request: Request,
    response: Response,
    idempotency_key: Annotated[str, Header(max_length=200)] = "",
) -> JobView:
    """Submit a job. The same request again, with its `submission_id` or its `Idempotency-Key`, answers the same job."""
    submission_id = form.submission_id or _id(caller.name, idempotency_key)
    wanted = JobRequest(**form.model_dump(exclude={"submission_id"}), submission_id=submission_id)
    job, standing = await jobs.submit(context.gateway, wanted, caller.name)
    response.status_code = {"new": 201, "known": 200, "waiting": 202}[standing]
    response.headers["Location"] = f"{request.url.path}/{submission_id}"
    return job


def _id(caller: str, key: str) -> str:
    """The id that belongs to the caller's key, or any."""
    text = hashlib.sha256(f"{caller}\n{key}".encode()).hexdigest() if key else secrets.token_hex(16)
    return f"trimtab-{text[:24]}"


@router.get("/jobs")
async def list_jobs(context: Ctx, query: Annotated[PageQuery, Query()]) -> Jobs:
    """All submitted jobs, newest first."""
    shown, token = await jobs.page(context.gateway, query.limit, query.page_token)
    return Jobs(server=context.gateway.jobs.address(), jobs=shown, next_page_token=token)


@router.get("/jobs/{submission_id}")
async def get_job(submission_id: SubmissionId, context: Ctx) -> JobView:
    return await jobs.find(context.gateway, submission_id)


@router.delete("/jobs/{submission_id}")
async def delete_job(submission_id: SubmissionId, caller: Caller, context: Ctx) -> Deleted:
    """Forget a job that has ended. An id that Ray has had cannot be used again."""
    await jobs.delete(context.gateway, submission_id, caller.name)
    return Deleted()


@router.post("/jobs/{submission_id}/stop")
async def stop_job(submission_id: SubmissionId, caller: Caller, context: Ctx) -> Stopped:
    """End a job at once; a run is ended at one step, with a checkpoint, by its own `stop`."""
    return Stopped(stopped=await jobs.stop(context.gateway, submission_id, caller.name))


@router.get("/jobs/{submission_id}/logs", response_model=Logs, responses=TEXT)
async def get_logs(submission_id: SubmissionId, context: Ctx, query: Annotated[LogsQuery, Query()]) -> Response | Logs:
    """What the job has printed; with `follow` as plain text, until its end."""
    job = await jobs.find(context.gateway, submission_id)
    if query.follow and job.status not in ENDED:
        printed = _from(context.gateway.jobs.tail(submission_id), query.skip)
        return StreamingResponse(printed, media_type="text/plain")
    text = (await context.gateway.jobs.logs(submission_id))[query.skip :]
    return PlainTextResponse(text) if query.follow else Logs(logs=text)


async def _from(printed: AsyncIterator[str], skip: int) -> AsyncIterator[str]:
    """What is printed after the first `skip` characters."""
    async for text in printed:
        if rest := text[skip:]:
            yield rest
        skip = max(0, skip - len(text))
