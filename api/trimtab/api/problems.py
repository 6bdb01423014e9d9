"""Errors as RFC 9457 problem details: one shape, with a stable `code` and the offending fields; never a traceback."""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from trimtab.api.responses import StrictJSON
from trimtab.controller.errors import ControllerUnreachable, Refused
from trimtab.controller.jobs import JobServerUnreachable
from trimtab.controller.journal import JournalUnavailable

log = logging.getLogger(__name__)

IF_MATCH = "If-Match"
CONFLICTS = frozenset(
    {
        "run-ended",
        "run-exists",
        "run-stopping",
        "base-owned",
        "fixed-size",
        "not-with-attach",
        "not-pinned",
        "stale-formation",
        "no-checkpoint",
        "no-decay",
        "rolling-back",
        "cannot-replay",
        "token-exists",
        "last-admin",
        "job-exists",
        "job-gone",
        "job-running",
        "no-job-server",
    }
)
CODES = {401: "unauthenticated", 403: "forbidden", 404: "not-found", 405: "method-not-allowed"}


class FieldError(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """What every failed request is answered with."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []
    current: dict[str, Any] | None = None  # the present state, where the request was made on a stale one


class Failure(Exception):
    """A request that the API itself refuses."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        fields: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(status, code, detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = dict(fields or {})
        self.retry_after_s = retry_after_s


def answer(
    status: int,
    code: str,
    detail: str,
    fields: Mapping[str, str] | None = None,
    current: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> StrictJSON:
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        errors=[FieldError(field=field, message=message) for field, message in (fields or {}).items()],
        current=None if current is None else dict(current),
    )
    body = problem.model_dump(exclude={"current"} if current is None else None)
    return StrictJSON(body, status, headers, media_type="application/problem+json")


def status_of(code: str) -> int:
    """The HTTP status of a controller's refusal."""
    if code.endswith("-not-found"):
        return 404
    if code in ("stale-revision", "policy-exists"):
        return 412
    return 409 if code in CONFLICTS else 422


async def _failure(_: Request, error: Failure) -> StrictJSON:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return answer(error.status, error.code, error.detail, error.fields, headers=headers)


async def _refused(_: Request, error: Refused) -> StrictJSON:
    return answer(status_of(error.code), error.code, error.message, error.fields, error.current)


async def _unavailable(_: Request, error: JournalUnavailable) -> StrictJSON:
    return answer(507, "journal-unavailable", f"nothing was changed: {error}")


async def _unreachable(_: Request, error: ControllerUnreachable) -> StrictJSON:
    return answer(503, "controller-unreachable", str(error), headers={"Retry-After": "2"})


async def _no_job_server(_: Request, error: JobServerUnreachable) -> StrictJSON:
    return answer(503, "job-server-unreachable", str(error), headers={"Retry-After": "2"})


async def _http(request: Request, error: HTTPException) -> StrictJSON:
    if error.status_code == 405 and (methods := methods_of(request.app, request.url.path)):
        detail = f"{request.url.path} takes {', '.join(methods)}"
        return answer(405, CODES[405], detail, headers={"Allow": ", ".join(methods)})
    return answer(error.status_code, CODES.get(error.status_code, "bad-request"), error.detail, headers=error.headers)


def methods_of(app: FastAPI, path: str) -> list[str]:
    """The methods that a path takes; the router itself names only those of one of its routes."""
    paths = app.openapi()["paths"]
    matching = (paths[one] for one in paths if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one), path))
    return sorted({method.upper() for operations in matching for method in operations})


async def _invalid(_: Request, error: RequestValidationError) -> StrictJSON:
    for one in error.errors():
        if one["loc"][0] == "path":  # an id that cannot be one names nothing
            name = str(one["loc"][-1])
            return answer(404, f"{name}-not-found", f"there is no such {name}")
        if (one["type"], one["loc"][-1]) == ("missing", IF_MATCH):
            return answer(428, "precondition-required", "say in If-Match which revision you saw, or * for any")
    fields = {_field(one["loc"]): str(one["msg"]) for one in error.errors()}
    detail = "; ".join(f"{field}: {message}" for field, message in fields.items())
    return answer(422, "invalid-parameters", detail, fields)


def _field(loc: Sequence[str | int]) -> str:
    where, *rest = loc
    return ".".join(map(str, rest)) if rest and isinstance(rest[0], str) else str(where)


async def _fault(request: Request, error: Exception) -> StrictJSON:
    known = {"run": run} if (run := request.path_params.get("run")) else {}
    log.error("%s %s failed", request.method, request.url.path, exc_info=error, extra=known)
    return answer(500, "internal-error", "the server met a fault of its own; its log tells more")


def install(app: FastAPI) -> None:
    handlers: dict[type[Exception], Any] = {
        Failure: _failure,
        Refused: _refused,
        JournalUnavailable: _unavailable,
        ControllerUnreachable: _unreachable,
        JobServerUnreachable: _no_job_server,
        HTTPException: _http,
        RequestValidationError: _invalid,
        Exception: _fault,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
