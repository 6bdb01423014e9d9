"""A hundred clients of the event stream, of whom twenty stall and the others come and go: no gap, no double.

TRIMTAB_LONG=1 sends them 20,000 events, TRIMTAB_SEED=… those of an earlier run again.
"""

import asyncio
import os
import random
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from plain import RUN, UNLIMITED, Door
from test_stream import open_stream, parsed, request_of_stream

from trimtab.api import stream
from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.serving import Server, bind
from trimtab.api.stream import Hub, Place, Wish
from trimtab.controller.feed import Feed

pytestmark = pytest.mark.anyio
LONG = os.environ.get("TRIMTAB_LONG") == "1"
SEED = int(os.environ.get("TRIMTAB_SEED", secrets.randbits(32) if LONG else 1))
COUNT = 20_000 if LONG else 300  # events for those that read
QUICK, STALLED = 80, 20  # clients
KEPT = 200  # events in the ring
FIRST = 4 * KEPT  # event that those who read begin with
LAST = FIRST + COUNT - 1
TEXT = "x" * 4_000  # so that what a stalled client does not take fills its socket


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Client:
    """What one client has seen."""

    last_id: str
    numbers: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  # other events
    visits: int = 0

    def take(self, blocks: list[bytes]) -> None:
        for event in parsed(b"\n\n".join([*blocks, b""]).decode()):
            self.last_id = event.id or self.last_id
            if event.event == "alerts":
                self.numbers.append(event.data["number"])
            else:
                self.told.append(event.event)

    async def read(self, port: int, token: str, until: int, chance: random.Random) -> None:
        """Read up to the event `until`, in visits of random length."""
        while not self.told and (not self.numbers or self.numbers[-1] < until):
            self.visits += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_of_stream(port, token, self.last_id))
            await reader.readuntil(b"\r\n\r\n")
            rest = b""
            for _ in range(chance.randint(1, 8)):  # chunks, as HTTP/1.1 sends them
                size = int(await reader.readline(), 16)
                *blocks, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n\n")
                self.take(blocks)
                if not size or self.told or (self.numbers and self.numbers[-1] >= until):
                    break
            writer.close()

    async def wake(self, connection: socket.socket) -> None:
        """Read to the end what was sent to a client that has stalled."""
        connection.setblocking(False)
        text = b""
        while piece := await asyncio.get_running_loop().sock_recv(connection, 1 << 20):
            text += piece
        connection.close()
        body, events = text.partition(b"\r\n\r\n")[2], b""
        while body:
            size, _, body = body.partition(b"\r\n")
            events, body = events + body[: int(size, 16)], body[int(size, 16) + 2 :]
        self.take(events.split(b"\n\n"))


@dataclass(frozen=True)
class Crowd:
    """What came of them all."""

    quick: list[Client]
    stalled: list[Client]
    grown: int  # bytes that this process has grown by for those that stall

    def faults(self) -> list[str]:
        """Gaps and doubles, and whoever was too slow and not told so."""
        whole = list(range(FIRST, LAST + 1))
        found = [f"{len(one.numbers)} events, {one.told}" for one in self.quick if one.numbers != whole]
        for one in self.stalled:
            if one.told != ["closed"] or one.numbers != list(range(KEPT, KEPT + len(one.numbers))):
                found.append(f"stalled: {len(one.numbers)} events, {one.told}")
        return found


async def crowd(door: Door) -> Crowd:
    """Publish events to some clients that stall until the end, then to others too that come and go."""
    hub = Hub(door.gateway, KEPT)
    app = create_app(door.gateway, door.tokens, hub, door.page, Hosts("127.0.0.1"), UNLIMITED)
    listening, feed = bind("127.0.0.1", 0), door.gateway.controller.feed
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)  # so that a client that stalls is soon noticed
    port, server = int(listening.getsockname()[1]), Server(app, hub)
    serving = asyncio.create_task(server.serve([listening]))
    publish(feed, 0, KEPT)  # a full ring: what grows from now on are the clients
    while hub._here.seq < feed._seq:
        await asyncio.sleep(0.01)
    before, stalled = resident(), [Client(str(hub._here)) for _ in range(STALLED)]
    sockets = [open_stream(port, door.token, one.last_id) for one in stalled]
    while hub.clients < STALLED:
        await asyncio.sleep(0.01)
    for start in range(KEPT, FIRST, 50):
        publish(feed, start, start + 50)
        await asyncio.sleep(0.02)
    grown = resident() - before
    chance = random.Random(SEED)
    quick = [Client(str(hub._here)) for _ in range(QUICK)]
    reading = [asyncio.create_task(one.read(port, door.token, LAST, random.Random(chance.random()))) for one in quick]
    for start in range(FIRST, LAST, 50):
        publish(feed, start, start + 50)
        while any(
            not task.done() and FIRST + len(one.numbers) < start - 100 for one, task in zip(quick, reading, strict=True)
        ):
            await asyncio.sleep(0.005)  # who reads is given the time to
    await asyncio.gather(*reading)
    while hub.clients > STALLED:  # who has left is forgotten
        await asyncio.sleep(0.01)
    for one, connection in zip(stalled, sockets, strict=True):
        await one.wake(connection)
    server.should_exit = True
    await serving
    return Crowd(quick, stalled, grown)


def publish(feed: Feed, start: int, end: int) -> None:
    for number in range(start, end):
        feed.publish("alerts", RUN, {"number": number, "text": TEXT})


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is cut off for taking nothing, however long the machine takes: `test_stream` has that."""
    monkeypatch.setattr(stream, "STALLED_S", 600.0)


@pytest.mark.timeout(900 if LONG else 60)
async def test_nobody_misses_an_event_and_the_slow_are_told(door: Door) -> None:
    found = await crowd(door)
    visits = sum(one.visits for one in found.quick)
    print(f"seed {SEED}: {COUNT:,} events, {visits:,} visits of {QUICK} clients, {found.grown / 2**20:.1f} MiB grown")
    assert found.faults() == []
    assert visits > 3 * QUICK
    assert found.grown <= 20 * 2**20


@pytest.mark.parametrize("broken", ["gap", "double", "silent"])
async def test_a_broken_stream_is_found_out(door: Door, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    after = Hub._after

    def broken_after(hub: Hub, place: Place, wish: Wish) -> tuple[Place, bytes]:
        there, frames = after(hub, place, wish)
        if broken == "gap" and there.seq % 7 == 0 and there != hub._here:
            return Place(there.term, there.seq + 1), frames
        return there, frames + frames if broken == "double" else frames

    monkeypatch.setattr("test_crowd.LAST", FIRST + 299)  # with more gaps than that the crowd waits in vain
    monkeypatch.setattr("test_crowd.QUICK", 4)
    monkeypatch.setattr("test_crowd.STALLED", 2)
    if broken == "silent":
        monkeypatch.setattr(stream, "_closing", lambda _: b": closed\n\n")
    else:
        monkeypatch.setattr(Hub, "_after", broken_after)
    assert (await crowd(door)).faults() != []
