"""The app: routes, page, and everything around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute

from trimtab.api import openapi, problems, routes
from trimtab.api.auth import authenticated
from trimtab.api.context import Context
from trimtab.api.gateway import Gateway
from trimtab.api.guard import Guard, Hosts
from trimtab.api.limits import Limits
from trimtab.api.page import Page
from trimtab.api.responses import StrictJSON
from trimtab.api.stream import Hub
from trimtab.api.tokens import Tokens


def create_app(
    gateway: Gateway,
    tokens: Tokens,
    hub: Hub,
    page: Path,
    hosts: Hosts,
    limits: Limits | None = None,
    open_metrics: bool = False,
) -> FastAPI:
    """The app over `gateway`; its server must close `hub` before it waits for open responses (`serving.Server`).

    With `open_metrics` /metrics needs no token.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hub.start()
        yield
        await hub.close()

    app = FastAPI(
        title="Trimtab",
        summary="Adaptive hyper-parameter control for training on Ray",
        version=version("trimtab"),
        lifespan=lifespan,
        # Of every route, so that a new one is closed until `auth` opens it.
        dependencies=[Depends(authenticated), Depends(openapi.only_known)],
        default_response_class=StrictJSON,
        generate_unique_id_function=_operation_id,
        responses=openapi.PROBLEMS,
        redirect_slashes=False,
        openapi_url=None,  # served by a route of ours, behind the same door
    )
    app.state.context = Context(gateway, tokens, hub, limits or Limits(), open_metrics)
    app.include_router(routes.router())
    app.router.default = Page(page)
    app.add_middleware(Guard, hosts=hosts)
    problems.install(app)
    openapi.install(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
