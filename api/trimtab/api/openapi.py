"""The OpenAPI description, completed with what FastAPI does not know: problem details, and which routes are open."""

from typing import Any

from fastapi import FastAPI, Request

from trimtab.api.auth import OPEN
from trimtab.api.problems import Failure, Problem

PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}


async def only_known(request: Request) -> None:
    """Refuse a query that the route does not know: whoever asks for a dry run must not get a change."""
    operations = (one for path in request.app.openapi()["paths"].values() for one in path.values())
    route = request.scope["route"].name
    described: list[dict[str, Any]] = next(
        (one.get("parameters", []) for one in operations if one["operationId"] == route), []
    )
    known = [one["name"] for one in described if one["in"] == "query"]
    if unknown := request.query_params.keys() - set(known):
        told = f"not known here; {', '.join(known) or 'nothing'} may be asked for"
        raise Failure(422, "invalid-parameters", f"{', '.join(sorted(unknown))}: {told}", dict.fromkeys(unknown, told))


def install(app: FastAPI) -> None:
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = describe()
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _complete(operation, is_open=(method.upper(), path) in OPEN)
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _complete(operation: dict[str, Any], is_open: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own shape of validation errors; 4XX says what is answered
    for status, response in responses.items():
        if status in PROBLEMS:
            (content,) = response["content"].values()  # under the media type of the route's own answer
            response["content"] = {"application/problem+json": content}
    if is_open:
        operation["security"] = []
