"""The event stream: increments, filters, resuming, slow clients, and an end that waits for nobody."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from plain import RUN, SPEC, Door, LocalGateway, controller_with_run, free_port, train

from trimtab.api import stream
from trimtab.api.serving import Server, bind
from trimtab.api.stream import Hub, Place, Wish
from trimtab.api.tokens import Role
from trimtab.controller.controller import Controller
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.feed import Batch, Feed

pytestmark = pytest.mark.anyio
ALL = Wish(frozenset({"metrics", "hparams", "changes", "runs", "alerts"}))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Event:
    id: str
    event: str
    data: Any


def parsed(text: str) -> list[Event]:
    """As a browser reads it: blocks without data dispatch nothing."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            events.append(Event(fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Controller, Hub]]:
    controller = controller_with_run(tmp_path)
    hub = Hub(LocalGateway(controller, tmp_path), kept=50)
    hub.start()
    while hub._here.term == 0:
        await asyncio.sleep(0)
    yield controller, hub
    await hub.close()


class Client:
    """Reads a stream as fast as asked to."""

    def __init__(self, hub: Hub, wish: Wish = ALL, last_id: str = "") -> None:
        self._frames = hub.stream(wish, last_id)

    async def until_quiet(self) -> list[Event]:
        """What has been sent; ends when nothing comes for a moment, or the stream does."""
        text = ""
        try:
            while True:
                async with asyncio.timeout(0.05):
                    text += (await anext(self._frames)).decode()
        except (TimeoutError, StopAsyncIteration):
            return parsed(text)


def publish(controller: Controller, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        controller.feed.publish("alerts", RUN, {"number": number})


def numbers(events: list[Event]) -> list[int]:
    return [event.data["number"] for event in events if event.event == "alerts"]


async def test_a_client_gets_what_happens_from_now_on(running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    client = hub.stream(ALL)
    hello = await anext(client)
    assert hello == f"id: {hub._here}\n\n".encode()
    train(controller, range(1, 11))
    async with asyncio.timeout(1):
        events = parsed((await anext(client)).decode())
    assert {event.event for event in events} >= {"metrics", "hparams", "runs"}
    metrics = next(event for event in events if event.event == "metrics")
    assert metrics.data["run"] == RUN
    assert metrics.data["step"] == list(range(1, 11))
    await client.aclose()


async def test_filters(running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    wanted = hub.stream(Wish(frozenset({"changes"}), frozenset({RUN})))
    await anext(wanted)
    controller.create_run("other", SPEC)
    controller.start_formation("other", 2, controller.hyperparameters("other").progress)
    train(controller, range(1, 11))
    controller.pin(RUN, "lr", 0.01, "alice", "", None)
    async with asyncio.timeout(1):
        events = parsed((await anext(wanted)).decode())
    assert [(event.event, event.data["run"]) for event in events] == [("changes", RUN)]
    assert events[0].data["change"]["changes"][0]["param"] == "lr"
    await wanted.aclose()


async def test_some_topics_of_every_run(running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    wish = Wish(frozenset({"changes"}), frozenset({RUN}), everywhere=frozenset({"runs"}))
    frames = hub.stream(wish)
    await anext(frames)
    controller.create_run("other", SPEC)
    async with asyncio.timeout(1):
        events = parsed((await anext(frames)).decode())
    assert {(event.event, event.data["id"]) for event in events} == {("runs", "other")}
    await frames.aclose()


async def test_resuming_has_no_gap_and_no_double(running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    seen: list[int] = []
    last_id = str(hub._here)
    for turn in range(8):
        publish(controller, 5, start=turn * 10)
        async with aclosing(hub.stream(ALL, last_id)) as frames:
            async with asyncio.timeout(1):
                events = parsed((await anext(frames)).decode())
        seen += numbers(events)
        last_id = events[-1].id
        publish(controller, 5, start=turn * 10 + 5)  # while the client is away
        await asyncio.sleep(0.01)
    seen += numbers(await Client(hub, last_id=last_id).until_quiet())
    assert seen == list(range(80))


async def test_a_restarted_api_goes_on_where_its_clients_were(running: tuple[Controller, Hub], tmp_path: Path) -> None:
    controller, hub = running
    last_id = str(hub._here)
    publish(controller, 10)
    again = Hub(LocalGateway(controller, tmp_path), kept=50)
    again.start()
    assert numbers(await Client(again, last_id=last_id).until_quiet()) == list(range(10))
    await again.close()


@pytest.mark.parametrize("last_id", ["7-1", "1-999999", "nonsense", "1-", "-1", "1-1-1", "١-٢", "9" * 50 + "-1"])
async def test_an_unknown_place_gets_reset(running: tuple[Controller, Hub], last_id: str) -> None:
    controller, hub = running
    client = Client(hub, last_id=last_id)
    events = await client.until_quiet()
    assert [(event.event, event.data) for event in events] == [("reset", {})]
    assert Place.parse(events[0].id) == hub._here
    publish(controller, 3)
    assert numbers(await Client(hub, last_id=events[0].id).until_quiet()) == [0, 1, 2]


async def test_a_place_that_is_no_longer_kept_gets_reset(running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    last_id = str(hub._here)
    publish(controller, 51)
    await asyncio.sleep(0.01)
    assert [event.event for event in await Client(hub, last_id=last_id).until_quiet()] == ["reset"]


async def test_large_events_are_kept_by_size(running: tuple[Controller, Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    controller, hub = running
    monkeypatch.setattr(stream, "KEPT_SIZE", 10_000)
    for _ in range(20):
        controller.feed.publish("alerts", RUN, {"text": "x" * 1000})
    await asyncio.sleep(0.01)
    assert len(hub._ring) == 9
    assert hub._size == sum(len(kept.frame) for kept in hub._ring)


async def test_a_new_term_resets_those_who_are_there(running: tuple[Controller, Hub], monkeypatch: Any) -> None:
    controller, hub = running
    frames = hub.stream(ALL)
    await anext(frames)
    monkeypatch.setattr(stream, "POLL_S", 0.05)
    publish(controller, 1)
    await anext(frames)
    controller.feed = Feed(controller.term + 1)  # as of a controller that was restarted
    publish(controller, 2)
    async with asyncio.timeout(2):
        events = parsed((await anext(frames)).decode())
    assert [event.event for event in events] == ["reset"]
    publish(controller, 1, start=9)
    async with asyncio.timeout(2):
        assert numbers(parsed((await anext(frames)).decode())) == [9]
    await frames.aclose()


async def test_a_slow_client_is_closed_with_a_reason_and_nobody_waits(running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    slow, quick = hub.stream(ALL), hub.stream(ALL)
    await anext(slow)
    await anext(quick)
    seen: list[int] = []
    for turn in range(10):
        publish(controller, 20, start=turn * 20)
        async with asyncio.timeout(1):
            seen += numbers(parsed((await anext(quick)).decode()))
    assert seen == list(range(200))
    events = parsed((await anext(slow)).decode())
    assert [(event.event, event.data) for event in events] == [("closed", {"reason": stream.TOO_SLOW})]
    with pytest.raises(StopAsyncIteration):
        await anext(slow)
    await quick.aclose()


async def test_a_quiet_stream_is_kept_alive_and_moves_its_id(
    running: tuple[Controller, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, hub = running
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.05)
    frames = hub.stream(Wish(frozenset({"metrics"})))
    await anext(frames)
    publish(controller, 5)  # not wanted
    async with asyncio.timeout(1):
        comment = (await anext(frames)).decode()
    assert comment == f": keep-alive\nid: {hub._here}\n\n"
    assert hub._here.seq == controller.feed._seq
    await frames.aclose()


async def test_streams_wait_for_a_controller_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RETRY_S", 0.02)
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.05)
    gateway = LocalGateway(controller_with_run(tmp_path), tmp_path)
    gateway.error = ControllerUnreachable("gone")
    hub = Hub(gateway)
    hub.start()
    frames = hub.stream(ALL)
    assert await anext(frames) == b": waiting for the controller\n\n"
    gateway.error = None
    async with asyncio.timeout(1):
        while (await anext(frames)).startswith(b":"):
            pass
    publish(gateway.controller, 1)
    async with asyncio.timeout(1):
        assert numbers(parsed((await anext(frames)).decode())) == [0]
    await hub.close()


async def test_closing_ends_every_stream(running: tuple[Controller, Hub]) -> None:
    _, hub = running
    frames = hub.stream(ALL)
    await anext(frames)
    await hub.close()
    events = parsed((await anext(frames)).decode())
    assert [(event.event, event.data) for event in events] == [("closed", {"reason": stream.GOING_DOWN})]
    with pytest.raises(StopAsyncIteration):
        await anext(frames)


async def test_closing_waits_for_nobody_though_news_comes_with_it(
    running: tuple[Controller, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, hub = running
    asked = asyncio.Event()

    async def events(term: int, seq: int, timeout_s: float) -> Batch:  # noqa: ARG001
        asked.set()
        with suppress(asyncio.CancelledError):  # as `wait_for` does where the answer is there already
            await asyncio.sleep(timeout_s)
        return Batch(term, ())

    monkeypatch.setattr(hub._gateway, "events", events)
    publish(running[0], 1)
    async with asyncio.timeout(2):
        await asked.wait()
        await hub.close()


async def test_a_stream_ends_with_its_token(door: Door, running: tuple[Controller, Hub]) -> None:
    controller, hub = running
    eve = door.tokens.identify(door.tokens.new("eve", Role.VIEWER))
    assert eve is not None
    frames = hub.stream(ALL, "", lambda: eve in door.tokens)
    await anext(frames)
    publish(controller, 1)
    assert numbers(parsed((await anext(frames)).decode())) == [0]
    door.tokens.remove("eve")
    publish(controller, 1)
    events = parsed((await anext(frames)).decode())
    assert [(event.event, event.data) for event in events] == [("closed", {"reason": stream.NOT_ADMITTED})]
    with pytest.raises(StopAsyncIteration):
        await anext(frames)


async def test_over_http(door: Door, served: str) -> None:
    headers = {"Authorization": f"Bearer {door.token}"}
    async with httpx.AsyncClient(base_url=served, headers=headers) as client:
        bad = await client.get("/api/v1/events?topic=weather")
        assert (bad.status_code, bad.json()["errors"][0]["field"]) == (422, "topic")
        for how in ({"params": {"last_event_id": "1-1"}}, {"headers": {"Last-Event-ID": "1-1"}}):
            async with client.stream("GET", "/api/v1/events", **how) as answer:
                assert answer.status_code == 200
                assert answer.headers["content-type"].startswith("text/event-stream")
                assert answer.headers["cache-control"] == "no-store"
                text = ""
                async for piece in answer.aiter_text():
                    text += piece
                    if text.count("data:") >= 2:
                        break
                assert parsed(text)[0].id == "1-2"


async def test_clients_that_stall_are_cut_off_and_do_not_hold_up_the_end(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STALLED_S", 0.3)
    listening = bind("127.0.0.1", 0)
    server = Server(door.app, door.hub)
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    stalled = [open_stream(listening.getsockname()[1], door.token) for _ in range(5)]
    while len(server.server_state.tasks) < 5:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while server.server_state.tasks:
            for _ in range(100):  # more and more, until the kernel takes no more for a client that does not read
                door.gateway.controller.feed.publish("alerts", RUN, {"text": "x" * 20_000})
            await asyncio.sleep(0.02)
        server.should_exit = True
        await serving
    for one in stalled:
        one.close()


@pytest.mark.parametrize("reading", [True, False])
def test_sigterm_with_fifty_streams_open_ends_within_five_seconds(tmp_path: Path, reading: bool) -> None:
    port = free_port()
    script = str(Path(__file__).parent / "plain.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, script, str(tmp_path), str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        token = server.stdout.readline().strip()
        streams = [open_stream(port, token) for _ in range(50)]
        for one in streams if reading else []:
            one.settimeout(5)
            assert b"text/event-stream" in one.recv(4096)
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert time.monotonic() - start < 5
        for one in streams:
            one.close()


def open_stream(port: int, token: str, last_id: str = "") -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    connection.sendall(request_of_stream(port, token, last_id))
    return connection


def request_of_stream(port: int, token: str, last_id: str = "") -> bytes:
    lines = [
        "GET /api/v1/events HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: Bearer {token}",
        "Connection: close",
        *([f"Last-Event-ID: {last_id}"] if last_id else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()
