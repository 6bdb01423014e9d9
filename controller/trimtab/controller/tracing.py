"""Traces of changes: from the request, over the decision and the journal, to the step at which all ranks obey.

The edge to OpenTelemetry, on where its own variables name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) and the extra `trimtab[otel]` is installed; its other variables hold as well.

    put_pin          the API's request; a child of the caller's span, if `traceparent` names one
      pin            the controller: what was asked is decided
        journal      ... and made durable
        version      ... until the last rank runs with it, or it is superseded

A version that a policy asked for is a trace of its own. A span is sent when it ends: of a version that was under way
when its controller died the collector hears nothing.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from trimtab.controller.errors import Refused
from trimtab.controller.history import Record
from trimtab.controller.journal import Entry, Journal

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE = "service.name"
NANO = 1_000_000_000

log = logging.getLogger(__name__)
propagator = TraceContextTextMapPropagator()


def tracer(service: str) -> Tracer:
    """What makes this process's spans: `service` names it where OTEL_SERVICE_NAME does not; nothing comes of them
    unless traces are wanted."""
    if not any(map(os.environ.get, ENDPOINTS)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return NoOpTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces: %s; pip install 'trimtab[otel]', or unset %s", error, " and ".join(ENDPOINTS))
        return NoOpTracer()
    named = SERVICE in OTELResourceDetector().detect().attributes
    provider = TracerProvider(resource=Resource.create({} if named else {SERVICE: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("trimtab")


def carried() -> dict[str, str]:
    """The present trace in W3C's words, to be sent along; empty where there is none."""
    carrier: dict[str, str] = {}
    propagator.inject(carrier)
    return carrier


def received(carrier: Mapping[str, str]) -> Context:
    """The trace that was sent along, if one was."""
    return propagator.extract(carrier)


class Spans:
    """The controller's spans: of what it is asked, and of each version until it is applied."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._open: dict[tuple[str, int], Span] = {}  # run, version

    @contextmanager
    def call(self, carrier: Mapping[str, str], method: str, args: Sequence[Any]) -> Iterator[None]:
        """Around a call of the controller's `method` whose caller sent `carrier`."""
        attributes = {"trimtab.run": args[0]} if args and isinstance(args[0], str) else {}
        with self._tracer.start_as_current_span(method, received(carrier), attributes=attributes) as span:
            try:
                yield
            except Refused as refusal:
                span.set_attribute("error.type", refusal.code)
                raise

    def witness(self, run: str, record: Record) -> None:
        """A line of the run's audit is new or has changed; see Controller."""
        if record.version is None:
            return
        place = run, record.version
        if record.status == "accepted":
            if record.changes and not record.applied and place not in self._open:
                self._open[place] = self._begin(run, record.version, record)
        elif (span := self._open.pop(place, None)) is not None:
            if record.applied:
                span.set_attribute("trimtab.step", max(record.applied.values()))
            span.set_attribute("trimtab.status", record.status)
            span.end()

    def _begin(self, run: str, version: int, record: Record) -> Span:
        attributes: dict[str, AttributeValue] = {
            "trimtab.run": run,
            "trimtab.version": version,
            "trimtab.accepted_step": record.step,
            "trimtab.parameter": [change.param for change in record.changes],
            "trimtab.value": [str(change.after) for change in record.changes],
            "trimtab.by": [change.by for change in record.changes],
            "trimtab.reason": [change.reason for change in record.changes],
        }
        return self._tracer.start_span("version", attributes=attributes, start_time=int(record.time * NANO))


class TracedJournal:
    """A journal whose writes are told in the trace that they belong to, if they belong to one."""

    def __init__(self, journal: Journal, tracer: Tracer) -> None:
        self._journal = journal
        self._tracer = tracer

    def take_over(self) -> int:
        return self._journal.take_over()

    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        if not get_current_span().is_recording():
            return self._journal.append(term, time, run, events)
        attributes: dict[str, AttributeValue] = {"trimtab.run": run, "trimtab.events": len(events)}
        with self._tracer.start_as_current_span("journal", attributes=attributes):
            return self._journal.append(term, time, run, events)

    def check(self, term: int) -> None:
        self._journal.check(term)

    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        return self._journal.read(after, run)

    def close(self) -> None:
        self._journal.close()
