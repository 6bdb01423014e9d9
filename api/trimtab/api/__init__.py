"""The door: REST API, event stream, command line, and a typed client of the API in Python.

from trimtab.api import Client

with Client() as api:
    for run in api.runs(state=["running"]):
        print(run.id, run.loss)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.api.client import Client
    from trimtab.api.errors import ApiError

__all__ = ["ApiError", "Client"]


def __getattr__(name: str) -> Any:
    """`Client` and `ApiError`, once they are asked for: who runs the server need not load a client."""
    if name == "Client":
        from trimtab.api.client import Client

        return Client
    if name == "ApiError":
        from trimtab.api.errors import ApiError

        return ApiError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
