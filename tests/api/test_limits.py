"""How often one may ask."""

import anyio
import httpx
from plain import Door

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.limits import KEPT, Limiter, Limits, network
from trimtab.api.tokens import Role


def test_a_burst_at_once_and_then_as_many_as_come_in() -> None:
    now = 100.0
    limiter = Limiter(per_s=2, burst=3, clock=lambda: now)
    assert [limiter.take("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert limiter.take("b") == 0
    now += 0.5
    assert [limiter.take("a") for _ in range(2)] == [0, 0.5]
    now += 100
    assert [limiter.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_it_does_not_grow_for_ever() -> None:
    now = 0.0
    limiter = Limiter(per_s=1, burst=1, clock=lambda: now)
    for number in range(3 * KEPT):
        limiter.take(str(number))
    assert len(limiter._full) <= KEPT
    assert limiter.take(str(3 * KEPT - 1)) > 0  # the newest are remembered
    now += 10
    limiter.take("new")
    assert limiter.take("new") > 0


def test_an_address_of_ipv6_stands_for_its_network() -> None:
    assert network("192.0.2.7") == "192.0.2.7"
    assert network("2001:db8::1") == network("2001:db8::ffff") != network("2001:db8:0:1::1")
    assert network("testclient") == "testclient"


def limited(door: Door) -> Door:
    limits = Limits(Limiter(per_s=1, burst=5, clock=lambda: 0.0), Limiter(per_s=0.1, burst=3, clock=lambda: 0.0))
    app = create_app(door.gateway, door.tokens, door.hub, door.page, Hosts("127.0.0.1"), limits)
    return Door(app, door.gateway, door.tokens, door.token, door.hub, door.page)


def test_a_token_that_asks_too_often_waits_and_no_other(door: Door) -> None:
    async def ask() -> None:
        async with narrow.client() as alice, narrow.client(door.tokens.new("bob", Role.VIEWER)) as bob:
            answers = [await alice.get("/api/v1/runs") for _ in range(6)]
            assert [answer.status_code for answer in answers] == [*[200] * 5, 429]
            assert answers[-1].json()["code"] == "too-many-requests"
            assert answers[-1].headers["retry-after"] == "1"
            assert (await bob.get("/api/v1/runs")).status_code == 200

    narrow = limited(door)
    anyio.run(ask)


def test_failed_attempts_from_one_place_are_limited_and_who_has_a_token_is_not(door: Door) -> None:
    async def ask() -> None:
        async with narrow.client("wrong") as eve, narrow.client(None) as page, narrow.client() as alice:
            attempts = [
                (await eve.get("/api/v1/runs")).status_code,
                (await page.post("/api/v1/session", json={"token": "wrong"})).status_code,
                (await page.get("/api/v1/runs", headers={"Cookie": "trimtab_session=alice.9999999999.0"})).status_code,
                (await eve.get("/api/v1/runs")).status_code,
                (await page.post("/api/v1/session", json={"token": "wrong"})).status_code,
            ]
            assert attempts == [401, 401, 401, 429, 429]
            refused: httpx.Response = await eve.get("/api/v1/runs")
            assert 1 <= int(refused.headers["retry-after"]) <= 10
            assert (await page.get("/api/v1/runs")).status_code == 401  # nothing was tried: sign in
            assert (await alice.get("/api/v1/runs")).status_code == 200

    narrow = limited(door)
    anyio.run(ask)
