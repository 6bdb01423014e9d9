"""Traces over the plain controller: one of each change, from the request to the step at which all ranks obey."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, Tracer, format_span_id, format_trace_id
from plain import GROUP, RUN, UNLIMITED, LocalGateway, PlainJobServer, records, start_group

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens
from trimtab.api.tracing import traced
from trimtab.controller import tracing
from trimtab.controller.controller import Controller
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.journal import MemoryJournal
from trimtab.controller.state import RunState

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NONE: Mapping[str, str] = {}
UNSAMPLED = CALLER.removesuffix("01") + "00"


class Traced(LocalGateway):
    """As the controller's actor does it: what is asked comes with the trace that it belongs to."""

    def __init__(self, controller: Controller, metrics: Path, spans: tracing.Spans) -> None:
        super().__init__(controller, metrics)
        self._spans = spans

    async def call(self, method: str, *args: Any) -> Any:
        with self._spans.call(tracing.carried(), method, args):
            return await super().call(method, *args)


class World:
    """A controller with a group of two ranks, and the app over it, with their spans."""

    def __init__(self, home: Path, tracer: Tracer | None = None) -> None:
        self._spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        tracer = tracer or provider.get_tracer("test")
        spans = tracing.Spans(tracer)
        (home / "metrics").mkdir()
        journal = tracing.TracedJournal(MemoryJournal(), tracer)
        server = PlainJobServer()
        self.controller = Controller(journal, home / "metrics", job_server=server, witness=spans.witness)
        start_group(self.controller)
        self.gateway = gateway = Traced(self.controller, home / "metrics", spans)
        tokens = Tokens(home / "tokens.json")
        self._token = tokens.new("alice", Role.ADMIN)
        hub = Hub(gateway)
        self._app = traced(create_app(gateway, tokens, hub, home, Hosts("127.0.0.1"), UNLIMITED), tracer)

    def ask(self, method: str, path: str, json: Any = None, headers: Mapping[str, str] = NONE) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            own = {"Authorization": f"Bearer {self._token}", "If-Match": "*"}
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8270") as client:
                return await client.request(method, f"/api/v1{path}", json=json, headers=own | dict(headers))

        return anyio.run(ask)

    def pin(self, value: float = 0.01, headers: Mapping[str, str] = NONE) -> int:
        form = {"value": value, "reason": "by hand"}
        return int(self.ask("PUT", f"/runs/{GROUP}/pins/lr", form, headers).json()["version"])

    def begin(self, version: int, rank: int, step: int) -> None:
        """A rank tells that it runs with a version from `step` on."""
        shipped = replace(records(range(step, step + 5), run=GROUP), rank=rank, applied=((version, step),))
        self.controller.ingest(shipped)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if name in ("", span.name)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def parent(span: ReadableSpan) -> str:
    return format_span_id(span.parent.span_id) if span.parent else ""


def own(span: ReadableSpan) -> str:
    return format_span_id(span.get_span_context().span_id)


def test_a_change_is_one_trace_from_the_request_to_the_last_rank(world: World) -> None:
    version = world.pin()
    world.begin(version, 0, 12)
    assert world.spans("version") == []  # the other rank has yet to begin
    world.begin(version, 1, 13)
    (request,) = world.spans("put_pin")
    (call,) = world.spans("pin")
    (journal,) = world.spans("journal")
    (applied,) = world.spans("version")
    assert [parent(span) for span in (request, call, journal, applied)] == ["", own(request), own(call), own(call)]
    assert len({span.get_span_context().trace_id for span in world.spans()}) == 1
    assert dict(request.attributes or {}) == {
        "http.request.method": "PUT",
        "url.path": f"/api/v1/runs/{GROUP}/pins/lr",
        "http.response.status_code": 200,
    }
    assert dict(applied.attributes or {}) == {
        "trimtab.run": GROUP,
        "trimtab.version": version,
        "trimtab.accepted_step": 0,
        "trimtab.parameter": ("lr",),
        "trimtab.value": ("0.01",),
        "trimtab.by": ("alice",),
        "trimtab.reason": ("by hand",),
        "trimtab.step": 13,
        "trimtab.status": "applied",
    }


def test_the_caller_s_trace_goes_on(world: World) -> None:
    version = world.pin(headers={"traceparent": CALLER, "tracestate": "vendor=1"})
    world.begin(version, 0, 12)
    world.begin(version, 1, 12)
    assert {format_trace_id(span.get_span_context().trace_id) for span in world.spans()} == {CALLER.split("-")[1]}
    (request,) = world.spans("put_pin")
    assert parent(request) == CALLER.split("-")[2]
    (applied,) = world.spans("version")
    assert applied.get_span_context().trace_state["vendor"] == "1"


def test_a_caller_who_does_not_sample_leaves_no_span(world: World) -> None:
    version = world.pin(headers={"traceparent": UNSAMPLED})
    for rank in (0, 1):
        world.begin(version, rank, 12)
    assert world.spans() == []


def test_versions_that_never_rule_end_too(world: World) -> None:
    first, second, third = world.pin(0.01), world.pin(0.02), world.pin(0.03)
    for rank in (0, 1):
        world.begin(second, rank, 12)
    world.controller.set_state(GROUP, RunState.STOPPED)
    told = {(span.attributes or {})["trimtab.version"]: span.attributes or {} for span in world.spans("version")}
    assert {number: told[number]["trimtab.status"] for number in (first, second, third)} == {
        first: "superseded",
        second: "applied",
        third: "unapplied",
    }
    assert "trimtab.step" not in told[third]


def test_what_a_policy_decides_is_a_trace_of_its_own(world: World) -> None:
    world.ask("PUT", f"/runs/{GROUP}/policies/warmup", {"kind": "warmup", "params": {"steps": 100, "start": 0.5}})
    assert [span.name for span in world.spans("put_policy")] == ["put_policy", "put_policy"]
    before = len(world.spans("journal"))
    for rank in (0, 1):
        world.controller.ingest(replace(records(range(1, 20), run=GROUP), rank=rank))
    version = world.controller.changes(GROUP)[-1].version
    assert version is not None
    for rank in (0, 1):
        world.begin(version, rank, 30)
    (applied,) = world.spans("version")
    assert parent(applied) == ""
    assert (applied.attributes or {})["trimtab.by"] == ("warmup",)
    assert len(world.spans("journal")) == before  # ticks of policies are no traces


def test_a_refusal_is_told_with_its_code(world: World) -> None:
    assert world.ask("PUT", f"/runs/{GROUP}/pins/nix", {"value": 1.0}).status_code == 422
    (request,) = world.spans("put_pin")
    (call,) = world.spans("pin")
    assert (request.attributes or {})["http.response.status_code"] == 422
    assert request.status.is_ok
    assert (call.attributes or {})["error.type"] == "unknown-parameter"
    assert not call.status.is_ok


def test_a_controller_that_does_not_answer_is_an_error(world: World) -> None:
    world.gateway.error = ControllerUnreachable("it is gone")
    assert world.ask("PUT", f"/runs/{GROUP}/pins/lr", {"value": 1.0}).status_code == 503
    (request,) = world.spans("put_pin")
    assert not request.status.is_ok
    assert world.spans("version") == []


def test_who_only_reads_leaves_no_trace(world: World) -> None:
    world.ask("GET", f"/runs/{RUN}", headers={"traceparent": CALLER})
    world.ask("GET", "/runs")
    assert world.spans("GET") == []


def test_without_opentelemetry_s_variables_nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    off = tracing.tracer("trimtab-test")
    assert isinstance(off, NoOpTracer)
    world = World(tmp_path, off)
    version = world.pin()
    for rank in (0, 1):
        world.begin(version, rank, 12)
    assert world.controller.changes(GROUP)[-1].status == "applied"
    assert world.spans() == []


def test_the_variables_turn_traces_on_and_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for variable, service in (("", "trimtab-test"), ("mine", "mine")):
        monkeypatch.setenv("OTEL_SERVICE_NAME", variable)
        made: Any = tracing.tracer("trimtab-test")
        assert made.resource.attributes["service.name"] == service
        made.span_processor.shutdown()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.tracer("trimtab-test").start_span("nothing").is_recording()


def test_without_the_extra_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert isinstance(tracing.tracer("trimtab-test"), NoOpTracer)
    assert "pip install 'trimtab[otel]'" in caplog.text
