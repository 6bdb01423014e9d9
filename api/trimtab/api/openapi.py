"""The OpenAPI description, completed with what FastAPI does not know: problem details, which routes are open, and how
numbers travel that are not finite."""

from typing import Any

from fastapi import FastAPI, Request

from trimtab.api.auth import OPEN
from trimtab.api.problems import Failure, Problem

NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}  # as `StrictJSON` writes one
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
        components = schema["components"]["schemas"]
        asked = _named(
            [one.get("requestBody") for path in schema["paths"].values() for one in path.values()], components
        )
        for name in components.keys() - asked:
            components[name] = _answered(components[name])
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


def _named(part: Any, components: dict[str, Any]) -> set[str]:
    """The components that a part of the description names, and those that they name."""
    found: set[str] = set()
    left = [part]
    while left:
        match left.pop():
            case {"$ref": str(ref)} if (name := ref.rpartition("/")[2]) not in found:
                found.add(name)
                left.append(components[name])
            case dict(inner):
                left += inner.values()
            case list(inner):
                left += inner
    return found


def _answered(part: Any) -> Any:
    """A part of an answer: where a number stands, a word may come for one that is not finite."""
    match part:
        case {"type": "number", **rest}:
            return rest | NUMBER
        case dict():
            return {name: _answered(inner) for name, inner in part.items()}
        case list():
            return [_answered(inner) for inner in part]
    return part
