"""The event stream: one reader of the controller's feed, however many clients.

All clients read from one ring, and a client is only a place in it: a slow one costs nothing and holds up nobody.
When the ring has gone past its place it is told so and closed. The id of an event is its place, `term-seq`; a client
that comes back with one goes on exactly there, or is told to `reset` where that place is no longer known.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from trimtab.api.gateway import Gateway
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.feed import Item, Topic

log = logging.getLogger(__name__)

KEPT = 5_000  # events
KEPT_SIZE = 16_000_000  # bytes of them all
CHUNK = 64  # events sent at once, at most
CHUNK_SIZE = 32_768  # bytes sent at once, about: what is held for a client that takes nothing
POLL_S = 10.0  # a call to the controller that waits for news
RETRY_S = 0.5
KEEP_ALIVE_S = 10.0
STALLED_S = 30.0  # a client that takes nothing for so long is cut off
GOING_DOWN = "the server is going down"
NOT_ADMITTED = "the token was revoked or has expired"
TOO_SLOW = "too slow: the events that come next are no longer kept"


@dataclass(frozen=True, slots=True)
class Place:
    """After the event `seq` of a controller's `term`."""

    term: int
    seq: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        term, _, seq = text.partition("-")
        known = text.isascii() and len(text) < 40 and term.isdecimal() and seq.isdecimal()
        return cls(int(term), int(seq)) if known else None

    def __str__(self) -> str:
        return f"{self.term}-{self.seq}"


@dataclass(frozen=True, slots=True)
class Wish:
    """Which events a client wants."""

    topics: frozenset[Topic]
    runs: frozenset[str] = frozenset()  # none: of all
    everywhere: frozenset[Topic] = frozenset()  # topics of all runs, whatever `runs` says

    def __contains__(self, item: Item) -> bool:
        if item.topic in self.everywhere:
            return True
        return item.topic in self.topics and (not self.runs or item.run in self.runs)


@dataclass(frozen=True, slots=True)
class _Kept:
    """An event in the ring, as every client is sent it."""

    item: Item  # without its data, which the frame has
    frame: bytes


class Hub:
    """Reads the controller's feed into a ring, and makes each client's stream from it."""

    def __init__(self, gateway: Gateway, kept: int = KEPT) -> None:
        self._gateway = gateway
        self._ring: deque[_Kept] = deque()
        self._size = 0
        self._kept = kept
        self._here = Place(0, 0)  # after the ring's last item; term 0: not known yet
        self._news = asyncio.Event()  # set and exchanged whenever something has happened
        self._closed = False
        self._reader: asyncio.Task[None] | None = None
        self.clients = 0  # whose streams are open

    def start(self) -> None:
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        """End all streams; the server can stop only after that."""
        self._closed = True
        self._wake()
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _read(self) -> None:
        # A cancellation alone may be lost: `wait_for` (Python 3.11) prefers an answer that comes with it.
        while not self._closed:
            try:
                if self._here.term == 0:
                    await self._locate()
                await self._follow()
            except ControllerUnreachable as error:
                log.warning("no events: %s", error)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("reading the controller's feed failed")
                await asyncio.sleep(RETRY_S)

    async def _locate(self) -> None:
        """Stand at the feed's end with as much of its past as the ring holds, so that a restart of the API breaks no
        client's stream."""
        end = await self._gateway.events(0, -1, 0.0)
        seq = end.items[0].seq
        past = await self._gateway.events(end.term, max(0, seq - self._kept), 0.0)
        self._ring.clear()
        self._size = 0
        self._keep(end.term, seq, past.items)

    async def _follow(self) -> None:
        batch = await self._gateway.events(self._here.term, self._here.seq, POLL_S)
        if batch.gap:
            await self._locate()
        elif batch.items:
            self._keep(batch.term, self._here.seq, batch.items)

    def _keep(self, term: int, seq: int, items: Sequence[Item]) -> None:
        """Take `items` into the ring, the oldest out, and tell the clients."""
        for item in items:
            kept = _Kept(replace(item, data=""), _frame(term, item))
            self._ring.append(kept)
            self._size += len(kept.frame)
            while len(self._ring) > self._kept or (self._size > KEPT_SIZE and len(self._ring) > 1):
                self._size -= len(self._ring.popleft().frame)
        self._here = Place(term, items[-1].seq if items else seq)
        self._wake()

    async def stream(
        self, wish: Wish, last_id: str = "", admitted: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[bytes]:
        """What one client is sent, from after `last_id` or from now on, for as long as it is `admitted`."""
        self.clients += 1
        try:
            async for part in self._stream(wish, last_id, admitted):
                yield part
        finally:
            self.clients -= 1

    async def _stream(self, wish: Wish, last_id: str, admitted: Callable[[], bool]) -> AsyncIterator[bytes]:
        while self._here.term == 0 and not self._closed:
            if await self._silence():
                yield b": waiting for the controller\n\n"
        place = Place.parse(last_id) if last_id else self._here
        if place is not None and not self._holds(place):
            place = None
        if not last_id:
            yield f"id: {place}\n\n".encode()
        while not self._closed:
            if not admitted():
                yield _closing(NOT_ADMITTED)
                return
            if place is None or place.term != self._here.term:
                place = self._here
                yield f"id: {place}\nevent: reset\ndata: {{}}\n\n".encode()
            elif place == self._here:
                if await self._silence():
                    yield f": keep-alive\nid: {place}\n\n".encode()
            elif not self._holds(place):
                yield _closing(TOO_SLOW)
                return
            else:
                place, wanted = self._after(place, wish)
                if wanted:
                    yield wanted
        yield _closing(GOING_DOWN)

    def _holds(self, place: Place) -> bool:
        """Whether all that came after `place` is in the ring."""
        return place.term == self._here.term and 0 <= self._here.seq - place.seq <= len(self._ring)

    def _after(self, place: Place, wish: Wish) -> tuple[Place, bytes]:
        """What is sent next to a client at `place`, and its place then."""
        frames, size = [], 0
        start = place.seq - self._here.seq  # counted from the ring's end, where a deque is quick
        for i in range(start, min(0, start + CHUNK)):
            kept = self._ring[i]
            place = Place(place.term, kept.item.seq)
            if kept.item in wish:
                frames.append(kept.frame)
                size += len(kept.frame)
                if size >= CHUNK_SIZE:
                    break
        return place, b"".join(frames)

    async def _silence(self) -> bool:
        """Wait for news; True if there is none for a while."""
        try:
            await asyncio.wait_for(self._news.wait(), KEEP_ALIVE_S)
        except TimeoutError:
            return True
        return False


def _frame(term: int, item: Item) -> bytes:
    return f"id: {Place(term, item.seq)}\nevent: {item.topic}\ndata: {item.data}\n\n".encode()


def _closing(reason: str) -> bytes:
    return f'event: closed\ndata: {{"reason": "{reason}"}}\n\n'.encode()


class EventStream(StreamingResponse):
    """Server-sent events to a client that may stop taking them."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            log.warning("a client of the event stream took nothing for %.0f s and is cut off", STALLED_S)
