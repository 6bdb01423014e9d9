"""The live stream of server-sent events."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Header, Query

from trimtab.api.auth import Caller
from trimtab.api.context import Ctx
from trimtab.api.forms import EventsQuery
from trimtab.api.stream import EventStream, Wish
from trimtab.controller.feed import Topic

router = APIRouter()

NO_BUFFERING = {"X-Accel-Buffering": "no"}


EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}


@router.get("/events", response_class=EventStream, responses=STREAM)
async def stream_events(
    context: Ctx,
    caller: Caller,
    query: Annotated[EventsQuery, Query()],
    last_event_id: Annotated[str, Header(max_length=100)] = "",
) -> EventStream:
    """Events `metrics`, `hparams`, `changes`, `runs`, `alerts` as they happen; `reset` where a client must load the
    state anew, and `closed` with a reason before the server ends a stream."""
    wish = Wish(_topics(query.topic), frozenset(query.run), _topics(query.everywhere))
    events = context.hub.stream(wish, last_event_id or query.last_event_id, lambda: caller in context.tokens)
    return EventStream(events, headers=NO_BUFFERING)


def _topics(joined: str) -> frozenset[Topic]:
    return frozenset(cast(list[Topic], joined.split(",")))
