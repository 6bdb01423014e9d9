"""A span for each request that may change something, as the middleware that stands before all else."""

from fastapi import FastAPI
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.api.auth import READING
from trimtab.controller.tracing import received


def traced(app: FastAPI, tracer: Tracer) -> FastAPI:
    """The same app, its changes told to `tracer`."""
    app.add_middleware(Traced, tracer=tracer)
    return app


class Traced:
    """Goes on with the caller's trace, if the request names one."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        attributes = {"http.request.method": method, "url.path": scope["path"]}
        context = received(Headers(scope=scope))
        with self._tracer.start_as_current_span(method, context, SpanKind.SERVER, attributes) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            await self._app(scope, receive, noted)
            if (route := scope.get("route")) is not None:
                span.update_name(route.name)  # the OpenAPI's operationId; FastAPI's routes do not know their whole path
