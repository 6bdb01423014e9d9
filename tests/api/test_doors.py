"""Nobody gets in: every route for every kind of caller, streams and files too; Host, Origin, body.

Each suite is a function that lists what it finds; it must find nothing in the app, and something in a broken one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from plain import RUN, Door
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from trimtab.api.auth import authenticated
from trimtab.api.guard import MAX_BODY, Hosts
from trimtab.api.tokens import Identity, Role, Tokens

HYPERPARAMETERS = f"/api/v1/runs/{RUN}/hyperparameters"
ADMIN, OPERATOR, VIEWER, ANYBODY = Role.ADMIN, Role.OPERATOR, Role.VIEWER, None
ACCESS: dict[str, Role | None] = {  # by a route's name: who may; a new route needs its line here
    "health": ANYBODY,
    "readiness": ANYBODY,
    "sign_in": ANYBODY,
    "sign_out": ANYBODY,
    "about": VIEWER,
    "openapi": VIEWER,
    "prometheus": VIEWER,
    "system_health": VIEWER,
    "list_runs": VIEWER,
    "get_run": VIEWER,
    "list_changes": VIEWER,
    "audit": VIEWER,
    "get_hyperparameters": VIEWER,
    "list_policies": VIEWER,
    "list_policy_kinds": VIEWER,
    "get_policy": VIEWER,
    "replay_run": VIEWER,
    "compare_metrics": VIEWER,
    "get_metrics": VIEWER,
    "stream_events": VIEWER,
    "pause_run": OPERATOR,
    "resume_run": OPERATOR,
    "stop_run": OPERATOR,
    "checkpoint_run": OPERATOR,
    "decay_run": OPERATOR,
    "rollback_run": OPERATOR,
    "put_pin": OPERATOR,
    "delete_pin": OPERATOR,
    "put_policy": OPERATOR,
    "delete_policy": OPERATOR,
    "list_jobs": VIEWER,
    "get_job": VIEWER,
    "get_logs": VIEWER,
    "submit_job": ADMIN,
    "stop_job": ADMIN,
    "delete_job": ADMIN,
    "list_tokens": ADMIN,
    "create_token": ADMIN,
    "delete_token": ADMIN,
}
FILLED = {"{run}": RUN, "{param}": "lr", "{name}": "plateau", "{token}": "nix", "{submission_id}": "nix"}


def routes(app: FastAPI) -> list[tuple[str, str, str]]:
    """Every (name, method, path) that the app has, read from the app itself."""
    found = []
    for route in iter_route_contexts(app.routes):
        path = str(route.path)
        for name, value in FILLED.items():
            path = path.replace(name, value)
        found += [(str(route.name), method, path) for method in sorted(route.methods or {"GET"})]
    return found


def callers(door: Door) -> dict[str, tuple[Role | None, dict[str, str]]]:
    """Everybody who may come along: what they may (None: nothing), and what they show for it."""
    tokens = {role.word: door.tokens.new(role.word, role) for role in Role}
    tokens["expired"] = door.tokens.new("expired", Role.ADMIN, expires=1.0)
    tokens["removed"] = door.tokens.new("removed", Role.ADMIN)
    sessions = {one.name: door.tokens.open_session(one) for one in door.tokens}
    door.tokens.remove("removed")
    allowed = {role.word: role for role in Role}
    shown: dict[str, tuple[Role | None, dict[str, str]]] = {
        "nobody": (None, {}),
        "wrong": (None, {"Authorization": "Bearer wrong"}),
        "basic": (None, {"Authorization": "Basic YWRtaW46YWRtaW4="}),
        "forged": (None, {"Cookie": f"trimtab_session={sessions['admin'][:-1]}x"}),
        "both": (None, {"Authorization": "Bearer wrong", "Cookie": f"trimtab_session={sessions['admin']}"}),
    }
    shown |= {name: (allowed.get(name), {"Authorization": f"Bearer {token}"}) for name, token in tokens.items()}
    shown |= {
        f"{name}'s session": (allowed.get(name), {"Cookie": f"trimtab_session={session}"})
        for name, session in sessions.items()
        if name in tokens
    }
    return shown


async def let_in_or_shut_out(door: Door) -> list[str]:
    """Every route × caller where the answer is not what ACCESS says."""
    door.hub._closed = True  # so that a stream ends as soon as it has begun
    found, everybody = [], callers(door)
    async with door.client(None) as client:
        for name, method, path in routes(door.app):
            if name not in ACCESS:
                found.append(f"{name} has no line in ACCESS")
                continue
            needed = ACCESS[name]
            for who, (role, headers) in everybody.items():
                status = (await client.request(method, path, headers=headers)).status_code
                expected = 401 if role is None else 403 if needed and role < needed else None
                open_ = needed is ANYBODY or expected is None
                if (status in (401, 403) or status >= 500) if open_ else status != expected:
                    found.append(f"{who} gets {status} from {method} {name}")
                client.cookies.clear()
    return found


def test_every_route_for_every_caller(door: Door) -> None:
    assert anyio.run(let_in_or_shut_out, door) == []
    assert len(routes(door.app)) >= len(ACCESS)
    assert set(ACCESS) == {name for name, *_ in routes(door.app)}


async def _leak(_: Request) -> PlainTextResponse:
    return PlainTextResponse("secret")


async def _admin() -> Identity:
    return Identity("admin", Role.ADMIN)


def _open(app: FastAPI) -> None:
    app.dependency_overrides[authenticated] = _admin


def _beside_the_door(app: FastAPI) -> None:
    app.router.routes.append(Route("/api/v1/leak", _leak, name="get_run"))


def _without_a_line(app: FastAPI) -> None:
    app.get("/api/v1/new", name="new")(_admin)


@pytest.mark.parametrize("broken", [_open, _beside_the_door, _without_a_line])
def test_a_broken_door_is_found_out(door: Door, broken: Callable[[FastAPI], None]) -> None:
    broken(door.app)
    assert anyio.run(let_in_or_shut_out, door) != []


def test_a_new_route_is_closed_by_itself(door: Door) -> None:
    door.app.post("/api/v1/new", name="new")(_admin)
    ACCESS["new"] = ADMIN
    try:
        assert anyio.run(let_in_or_shut_out, door) == []
    finally:
        del ACCESS["new"]


def test_files_are_open_and_hold_no_secret(door: Door) -> None:
    (door.page / "assets").mkdir(parents=True)
    (door.page / "index.html").write_text("<!doctype html>")
    (door.page / "assets" / "main.js").write_text("go()")
    for path in ("/", "/assets/main.js", "/runs/a", "/metrics.json"):
        assert request(door, "GET", path, None).status_code == 200
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert request(door, method, path, None).status_code == 405
    for path in ("/api", "/api/v1/nothing", "/assets/%2e%2e/%2e%2e/tokens.json"):
        assert request(door, "GET", path, None).status_code == 404, path


def request(door: Door, method: str, path: str, token: str | None = "", **rest: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with door.client(token, rest.pop("base_url", "http://127.0.0.1:8270")) as client:
            return await client.request(method, path, **rest)

    return anyio.run(ask)


def test_what_only_asks_changes_nothing(door: Door) -> None:
    journal = door.gateway.controller._journal
    before = list(journal.read())
    token = door.tokens.new("eve", Role.VIEWER)
    asking = [(method, path) for name, method, path in routes(door.app) if ACCESS[name] is VIEWER and method != "GET"]
    assert ("POST", f"/api/v1/runs/{RUN}/replay") in asking
    for method, path in asking:
        assert request(door, method, path, token).status_code in (200, 422)
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
    app, hub = door.again()
    door = replace(door, app=app, hub=hub, tokens=Tokens(door.page.parent / "tokens.json"))
    assert request(door, "GET", "/api/v1/version", None, headers={"Cookie": cookie}).status_code == 200


HOSTS = {
    **dict.fromkeys(("127.0.0.1", "127.0.0.1:8270", "localhost:8270", "LOCALHOST", "[::1]:8270"), True),
    **dict.fromkeys(("evil.example", "evil.example:8270", "127.0.0.1.evil.example", "", "10.1.2.3:8270"), False),
    **dict.fromkeys(
        ("localhost.", "[::1", "user@evil.example", "127.0.0.1@evil.example", "0.0.0.0", "2130706433"), False
    ),
}


async def wrong_hosts(door: Door) -> list[str]:
    """Every path × host that is answered otherwise than HOSTS says."""
    found = []
    async with door.client() as client:
        for path in ("/api/v1/version", "/", "/healthz", "/assets/a.js"):
            for host, allowed in HOSTS.items():
                answer = await client.get(path, headers={"Host": host})
                refused = answer.status_code == 403 and answer.json()["code"] == "host-not-allowed"
                if refused == allowed:
                    found.append(f"{path} for {host!r}: {answer.status_code}")
    return found


def test_beyond_the_loopback_addresses_are_hosts_and_strange_names_are_not() -> None:
    hosts = Hosts("0.0.0.0", "trainer")
    assert all(host in hosts for host in ("10.1.2.3:8270", "trainer:8270", "[fe80::1]:8270", "localhost"))
    assert "evil.example" not in hosts


ORIGINS: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Origin": "http://127.0.0.1:8270"}, True),
    ({"Origin": "http://127.0.0.1:8270", "Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Origin": "http://127.0.0.1:9999"}, False),
    ({"Origin": "http://evil.example"}, False),
    ({"Origin": "http://127.0.0.1:8270.evil.example"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Origin": "http://127.0.0.1:8270", "Sec-Fetch-Site": "cross-site"}, False),
]


async def wrong_origins(door: Door) -> list[str]:
    """Every unsafe route × origin that is answered otherwise than ORIGINS says; reading changes nothing."""
    door.hub._closed = True
    found = []
    unsafe = [(method, path) for _, method, path in routes(door.app) if method in ("POST", "PUT", "PATCH", "DELETE")]
    async with door.client() as client:
        for method, path in [*unsafe, ("PATCH", HYPERPARAMETERS), ("DELETE", "/"), ("GET", HYPERPARAMETERS)]:
            for headers, allowed in ORIGINS:
                answer = await client.request(method, path, headers=headers)
                refused = answer.status_code == 403 and answer.json()["code"] == "cross-site"
                if refused == (allowed or method == "GET"):
                    found.append(f"{method} {path} from {headers}: {answer.status_code}")
    return found


def _unguarded(app: FastAPI) -> None:
    app.user_middleware.clear()


@pytest.mark.parametrize("suite", [wrong_hosts, wrong_origins])
def test_hosts_and_origins(door: Door, suite: Callable[[Door], Awaitable[list[str]]]) -> None:
    assert anyio.run(suite, door) == []


@pytest.mark.parametrize("suite", [wrong_hosts, wrong_origins])
def test_a_missing_guard_is_found_out(door: Door, suite: Callable[[Door], Awaitable[list[str]]]) -> None:
    _unguarded(door.app)
    assert anyio.run(suite, door) != []


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
