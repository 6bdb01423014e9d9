"""How everything fares, by REST."""

from typing import Any

import anyio
import httpx
import pytest
from plain import RUN, Door, train

from trimtab.api.stream import Wish
from trimtab.api.tokens import Role
from trimtab.controller.errors import ControllerUnreachable


def get(door: Door, token: str = "") -> dict[str, Any]:
    async def ask() -> httpx.Response:
        async with door.client(token) as client:
            return await client.get("/api/v1/health")

    answer = anyio.run(ask)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_a_viewer_sees_how_everything_fares(door: Door) -> None:
    train(door.gateway.controller, range(1, 11))
    health = get(door, door.tokens.new("eve", Role.VIEWER))
    assert [run["id"] for run in health["controller"]["live"]] == [RUN]
    assert health["home"]["journal_bytes"] == 4096
    assert health["nodes"][0]["resources"]["CPU"] == {"total": 4, "free": 3}
    assert health["api"]["stream_clients"] == 0
    assert health["software"].keys() == {"trimtab", "ray", "torch", "python"}
    assert health["problems"] == []


def test_what_does_not_answer_hides_nothing_else(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.gateway.error = ControllerUnreachable("there is no controller")
    health = get(door)
    assert (health["controller"], health["problems"]) == (None, ["there is no controller"])
    assert health["nodes"]
    door.gateway.error = None

    async def for_ever() -> None:
        await anyio.sleep(60)

    monkeypatch.setattr("trimtab.api.health.PATIENCE_S", 0.05)
    monkeypatch.setattr(door.gateway, "nodes", for_ever)
    health = get(door)
    assert (health["nodes"], health["problems"]) == (None, ["Ray did not answer within 0 s"])
    assert health["controller"]["term"] == 1


def test_open_streams_are_counted(door: Door) -> None:
    async def count() -> list[int]:
        door.hub.start()
        stream = door.hub.stream(Wish(frozenset({"runs"})))
        await anext(stream)
        during = door.hub.clients
        await stream.aclose()  # type: ignore[attr-defined]
        await door.hub.close()
        return [during, door.hub.clients]

    assert anyio.run(count) == [1, 0]
