"""Nobody gets in: every route without a token, with a bad one and with a good one; Host, Origin, body."""

from typing import Any

import anyio
import httpx
import pytest
from plain import RUN, Door

from trimtab.api.auth import ASKING, OPEN
from trimtab.api.guard import MAX_BODY, Hosts
from trimtab.api.tokens import Role

HYPERPARAMETERS = f"/api/v1/runs/{RUN}/hyperparameters"


def routes(door: Door) -> list[tuple[str, str]]:
    """Every (method, path) that the app answers, read from the app itself."""
    schema: dict[str, Any] = door.app.openapi()
    found = [(method.upper(), path) for path, operations in schema["paths"].items() for method in operations]
    return [*found, ("GET", "/api/v1/openapi.json")]


def asking(door: Door) -> list[tuple[str, str]]:
    """Every (method, path) that has a body and changes nothing."""
    paths: dict[str, dict[str, Any]] = door.app.openapi()["paths"]
    found = [(m, p, one["operationId"]) for p, operations in paths.items() for m, one in operations.items()]
    return [(method.upper(), path) for method, path, name in found if name in ASKING]


def filled(path: str) -> str:
    values = {"{run}": RUN, "{param}": "lr", "{name}": "plateau"}
    for name, value in values.items():
        path = path.replace(name, value)
    return path


def request(door: Door, method: str, path: str, token: str | None = "", **rest: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with door.client(token, rest.pop("base_url", "http://127.0.0.1:8270")) as client:
            return await client.request(method, path, **rest)

    return anyio.run(ask)


def test_every_route_is_enumerated(door: Door) -> None:
    assert len(routes(door)) >= 18
    assert set(routes(door)) >= OPEN
    assert all(path.startswith("/api/v1/") or (method, path) in OPEN for method, path in routes(door))


def test_no_route_opens_without_a_token(door: Door) -> None:
    for method, path in set(routes(door)) - OPEN:
        for token in (None, "wrong"):
            answer = request(door, method, filled(path), token)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["code"] == "unauthenticated"


def test_every_route_opens_with_a_token(door: Door) -> None:
    for method, path in set(routes(door)) - {("GET", "/api/v1/events")}:  # a stream has no end; see test_stream
        assert request(door, method, filled(path)).status_code not in (401, 403, 500), (method, path)


def test_a_viewer_reads_and_changes_nothing(door: Door) -> None:
    token = door.tokens.new("eve", Role.VIEWER)
    for method, path in set(routes(door)) - OPEN - {("GET", "/api/v1/events")}:
        refused = request(door, method, filled(path), token).status_code == 403
        assert refused == (method != "GET" and (method, path) not in asking(door)), (method, path)


def test_what_only_asks_changes_nothing(door: Door) -> None:
    assert asking(door) == [("POST", "/api/v1/runs/{run}/replay")]
    journal = door.gateway.controller._journal
    before = list(journal.read())
    for method, path in asking(door):
        assert request(door, method, filled(path), door.tokens.new("eve", Role.VIEWER)).status_code == 200
    assert list(journal.read()) == before


def test_the_page_exchanges_its_token_for_a_cookie(door: Door) -> None:
    async def visit() -> None:
        async with door.client(None) as client:
            assert (await client.post("/api/v1/session", json={"token": "wrong"})).status_code == 401
            answer = await client.post("/api/v1/session", json={"token": door.token})
            assert answer.status_code == 204
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("trimtab_session=")
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            about = await client.get("/api/v1/version")
            assert about.json()["role"] == "admin"
            assert (await client.delete("/api/v1/session")).status_code == 204
            assert (await client.get("/api/v1/version")).status_code == 401

    anyio.run(visit)


def test_a_session_survives_a_restart_of_the_api(door: Door) -> None:
    signed_in = request(door, "POST", "/api/v1/session", None, json={"token": door.token})
    cookie = signed_in.headers["set-cookie"].partition(";")[0]
    door.tokens._load()
    assert request(door, "GET", "/api/v1/version", None, headers={"Cookie": cookie}).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(("127.0.0.1", True), ("127.0.0.1:8270", True), ("localhost:8270", True), ("[::1]:8270", True)),
        *(("evil.example", False), ("evil.example:8270", False), ("127.0.0.1.evil.example", False), ("", False)),
        *(("10.1.2.3:8270", False), ("localhost.", False), ("[::1", False), ("user@evil.example", False)),
    ],
)
def test_hosts(door: Door, host: str, allowed: bool) -> None:
    for path in ("/api/v1/version", "/", "/healthz"):
        answer = request(door, "GET", path, headers={"Host": host})
        assert (answer.status_code == 403) != allowed
        if not allowed:
            assert answer.json()["code"] == "host-not-allowed"


def test_beyond_the_loopback_addresses_are_hosts_and_strange_names_are_not() -> None:
    hosts = Hosts("0.0.0.0", "trainer")
    assert all(host in hosts for host in ("10.1.2.3:8270", "trainer:8270", "[fe80::1]:8270", "localhost"))
    assert "evil.example" not in hosts


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:8270"}, True),
        ({"Origin": "http://127.0.0.1:8270", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://127.0.0.1:9999"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://127.0.0.1:8270", "Sec-Fetch-Site": "cross-site"}, False),
    ],
)
def test_origins(door: Door, method: str, headers: dict[str, str], allowed: bool) -> None:
    answer = request(door, method, f"/api/v1/runs/{RUN}/pins/lr", headers=headers)
    refused = answer.status_code == 403 and answer.json()["code"] == "cross-site"
    assert refused != allowed
    assert request(door, "GET", HYPERPARAMETERS, headers=headers).status_code == 200  # reading changes nothing


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_must_be_json(door: Door, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = request(door, "POST", f"/api/v1/runs/{RUN}/pause", content=b'{"reason": ""}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")


def test_a_body_must_be_small_and_say_so(door: Door) -> None:
    path, json = f"/api/v1/runs/{RUN}/pause", {"Content-Type": "application/json; charset=utf-8"}
    large = b'{"reason": "' + b"x" * MAX_BODY + b'"}'
    assert request(door, "POST", path, content=large, headers=json).status_code == 413

    async def pieces() -> Any:
        yield large

    assert request(door, "POST", path, content=pieces(), headers=json).status_code == 411


def test_security_headers_are_on_every_answer(door: Door) -> None:
    for path in ("/", "/api/v1/version", "/api/v1/nothing", "/healthz"):
        headers = request(door, "GET", path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    assert request(door, "GET", "/api/v1/version").headers["cache-control"] == "no-store"
