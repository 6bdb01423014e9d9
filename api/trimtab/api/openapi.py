"""The OpenAPI description, completed with what FastAPI does not know: problem details, and which routes are open."""

from typing import Any

from fastapi import FastAPI

from trimtab.api.auth import OPEN
from trimtab.api.problems import Problem

PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}


def install(app: FastAPI) -> None:
    describe = app.openapi

    def described() -> dict[str, Any]:
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
