"""The REST contract: answers, ETags, problems, CSV."""

import csv
import io
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from plain import GROUP, RUN, SPEC, Door, keep_checkpoints, records, regroup, start_group, train

from trimtab.api.tokens import Role
from trimtab.controller.controller import Controller
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.journal import JournalUnavailable
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.records import Branch
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress

pytestmark = pytest.mark.anyio
BASE = f"/api/v1/runs/{RUN}"
JSON = {"Content-Type": "application/json", "If-Match": "*"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def api(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    async with door.client() as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) - {"current"} == {"type", "title", "status", "detail", "code", "errors"}
    assert body["status"] == status
    assert body["detail"]
    return body


async def test_runs_come_newest_first_in_pages(door: Door, api: httpx.AsyncClient) -> None:
    for name in ("second", "third"):
        door.gateway.controller.create_run(name, SPEC)
    first = (await api.get("/api/v1/runs?limit=2")).json()
    assert [run["id"] for run in first["runs"]] == ["third", "second"]
    rest = (await api.get("/api/v1/runs", params={"page_token": first["next_page_token"]})).json()
    assert [run["id"] for run in rest["runs"]] == [RUN]
    assert rest["next_page_token"] is None
    body = problem(await api.get("/api/v1/runs?page_token=nix"), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "page_token"


async def test_runs_are_filtered_and_sorted(door: Door, api: httpx.AsyncClient) -> None:
    controller = door.gateway.controller
    for number, owner in enumerate(("eve", "bob", "eve"), 1):
        controller.create_run(f"Probe-{number}", replace(SPEC, name=f"x{number}", owner=owner))
    controller.set_state("Probe-2", RunState.FAILED, "no luck")

    async def ids(query: str) -> list[str]:
        return [run["id"] for run in (await api.get(f"/api/v1/runs?{query}")).json()["runs"]]

    assert await ids("name=probe") == ["Probe-3", "Probe-2", "Probe-1"]
    assert await ids("name=X1") == ["Probe-1"]
    assert await ids("owner=eve&sort=created") == ["Probe-1", "Probe-3"]
    assert await ids("state=failed&state=starting") == ["Probe-2", RUN]
    assert await ids("sort=name") == [RUN, "Probe-1", "Probe-2", "Probe-3"]
    assert await ids("sort=-state&name=probe") == ["Probe-3", "Probe-1", "Probe-2"]
    assert await ids("state=lost") == []
    for sort in ("-created", "created", "updated", "-name", "state", "-owner"):
        whole, place, pages = await ids(f"sort={sort}"), "", 0
        seen: list[str] = []
        while place is not None:
            query = {"limit": 1, "sort": sort} | ({"page_token": place} if place else {})
            page = (await api.get("/api/v1/runs", params=query)).json()
            seen += [run["id"] for run in page["runs"]]
            place, pages = page["next_page_token"], pages + 1
        assert (seen, pages) == (whole, 4)
    page = (await api.get("/api/v1/runs?limit=1&sort=name")).json()["next_page_token"]
    for wrong in (f"page_token={page}", f"page_token={page}x&sort=name", "page_token=W10&sort=name", "page_token=é"):
        body = problem(await api.get(f"/api/v1/runs?{wrong}"), 422, "invalid-parameters")
        assert body["errors"][0]["field"] == "page_token"
    for wrong in ("state=happy", "sort=loss", "limit=0", "limit=1001"):
        assert problem(await api.get(f"/api/v1/runs?{wrong}"), 422, "invalid-parameters")["errors"]


async def test_a_page_of_thousands_of_runs_moves_no_run_when_others_come(door: Door, api: httpx.AsyncClient) -> None:
    controller = door.gateway.controller
    for number in range(1500):
        controller.create_run(f"many-{number:04}", SPEC)
    first = (await api.get("/api/v1/runs?limit=1000")).json()
    for number in range(5):
        controller.create_run(f"later-{number}", SPEC)
    rest = (await api.get("/api/v1/runs", params={"limit": 1000, "page_token": first["next_page_token"]})).json()
    seen = [run["id"] for page in (first, rest) for run in page["runs"]]
    assert seen == [*(f"many-{number:04}" for number in reversed(range(1500))), RUN]
    assert rest["next_page_token"] is None


async def test_a_run_in_full(door: Door, api: httpx.AsyncClient) -> None:
    train(door.gateway.controller, range(1, 11))
    run = (await api.get(BASE)).json()
    assert run["progress"] == {"steps": 10, "samples": 320}
    assert run["plan"] == {"batch_size": 32, "micro_batch": 8, "accumulation": 4, "world_size": 1}
    assert run["state"] == "running"


async def test_not_a_number_travels_as_a_string(door: Door, api: httpx.AsyncClient) -> None:
    train(door.gateway.controller, range(1, 11), loss=float("nan"))
    door.gateway.controller.expire()
    assert (await api.get(BASE)).json()["loss"] == "NaN"
    assert (await api.get("/api/v1/runs")).json()["runs"][0]["loss_trace"] == ["NaN"]
    series = (await api.get(f"{BASE}/metrics?key=loss&max_points=1")).json()["series"]
    assert series["loss"]["mean"] == ["NaN"]


@pytest.mark.parametrize("name", ["nix", "..", "a b", "-a", "x" * 200, "%00"])
async def test_an_unknown_run_is_not_found(api: httpx.AsyncClient, name: str) -> None:
    for rest in ("hyperparameters", "policies", "changes", "metrics", "metrics?key=loss"):
        url = httpx.URL(f"http://127.0.0.1:8270/api/v1/runs/{name.replace('..', '%2e%2e')}/{rest}")
        problem(await api.get(url), 404, "run-not-found")


async def test_commands(door: Door, api: httpx.AsyncClient) -> None:
    problem(await api.post(f"{BASE}/decay"), 409, "no-decay")
    wsd = {"kind": "schedule", "params": {"shape": "wsd"}, "mode": "shadow"}
    await api.put(f"{BASE}/policies/wsd", json=wsd, headers={"If-Match": "*"})
    for version, command in enumerate(("pause", "resume", "checkpoint", "decay", "stop"), 2):
        answer = await api.post(f"{BASE}/{command}", json={"reason": "because"})
        assert (answer.status_code, answer.json()) == (202, {"version": version})
    assert (await api.post(f"{BASE}/checkpoint")).status_code == 202  # the body is optional
    changes = (await api.get(f"{BASE}/changes")).json()["changes"]
    assert changes[1]["changes"][0] == {
        "param": "paused",
        "from": False,
        "to": True,
        "by": "alice",
        "reason": "because",
    }
    problem(await api.post(f"{BASE}/rewind"), 404, "not-found")
    door.gateway.controller.set_state(RUN, RunState.STOPPED)
    problem(await api.post(f"{BASE}/pause"), 409, "run-ended")


async def test_a_roll_back_goes_to_a_checkpoint_that_is_kept(door: Door, api: httpx.AsyncClient) -> None:
    controller = door.gateway.controller
    problem(await api.post(f"{BASE}/rollback"), 409, "no-checkpoint")
    train(controller, range(1, 301))
    keep_checkpoints(controller, 100, 200)
    shown = (await api.get(BASE)).json()["checkpoints"]
    assert shown == [{"step": 100, "samples": 3200, "version": 1}, {"step": 200, "samples": 6400, "version": 1}]
    body = problem(await api.post(f"{BASE}/rollback", json={"step": 150}), 422, "checkpoint-not-kept")
    assert body["errors"][0]["field"] == "step"
    assert "100, 200" in body["detail"]
    for wrong in ({"step": -1}, {"step": 1.5}, {"step": "100"}, {"skip_data": "yes"}, {"to": 100}):
        problem(await api.post(f"{BASE}/rollback", json=wrong), 422, "invalid-parameters")
    answer = await api.post(f"{BASE}/rollback", json={"step": 100, "skip_data": True, "reason": "spikes"})
    assert (answer.status_code, answer.json()) == (202, {"version": 2})
    problem(await api.post(f"{BASE}/rollback"), 409, "rolling-back")
    branch = Branch(2, Progress(310, 9920), Progress(100, 3200))
    controller.ingest(replace(records(range(101, 111)), formation=2, branch=branch, applied=((2, 101),)))
    run = (await api.get(BASE)).json()
    assert (run["formation"], run["progress"]["steps"]) == (2, 110)
    assert [one["step"] for one in run["checkpoints"]] == [100]
    change = (await api.get(f"{BASE}/changes")).json()["changes"][-1]
    assert (change["status"], change["applied"]) == ("applied", {"0": 101})
    assert change["changes"] == [
        {
            "param": "rollback",
            "from": 310,
            "to": 100,
            "by": "alice",
            "reason": "rolled back from step 310 to step 100: spikes",
        }
    ]
    assert (await api.post(f"{BASE}/rollback")).json() == {"version": 3}  # the body is optional: to the newest


async def test_the_group_of_workers_is_told_with_what_is_wanted_of_it(door: Door, api: httpx.AsyncClient) -> None:
    controller, path = door.gateway.controller, f"/api/v1/runs/{GROUP}"
    start_group(controller)
    run = (await api.get(path)).json()
    there = {"workers": 2, "learners": 1, "world_size": 2}
    assert (run["world_size"], run["wanted"], run["sync"], run["formation"]) == (2, there, "allreduce", 1)
    assert run["recoveries"] == []
    pinned = await api.put(f"{path}/pins/workers", json={"value": 3, "reason": "more room"}, headers=JSON)
    assert pinned.status_code == 200
    await api.put(f"{path}/pins/sync", json={"value": "sma"}, headers=JSON)
    line = next(one for one in (await api.get("/api/v1/runs")).json()["runs"] if one["id"] == GROUP)
    assert (line["world_size"], line["wanted"]["world_size"], line["sync"], line["formation"]) == (2, 3, "sma", 1)
    controller.resize(GROUP, 2, 3, "2 → 3 workers")
    regroup(controller, 2, "resize", 3, at=10)
    regroup(controller, 3, "loss", 3, at=20, lost=1)
    regroup(controller, 4, "loss", 2, at=30, lost=1)
    controller.start_formation(GROUP, 2, Progress(5, 160))
    run = (await api.get(path)).json()
    assert (run["world_size"], run["formation"]) == (2, 5)
    told = [list(one.values())[:-1] for one in run["recoveries"]]
    assert list(run["recoveries"][0]) == [
        *("formation", "cause", "step", "world_size", "lost", "pause_s", "redone", "time"),
    ]
    assert told == [
        [2, "resize", 10, 3, 0, 0.31, 0],
        [3, "loss", 20, 3, 1, 0.31, 0],
        [4, "loss", 30, 2, 1, 0.31, 0],
        [5, "start", 5, 2, 0, None, 25],
    ]
    reasons = [
        change["reason"]
        for record in (await api.get(f"{path}/changes")).json()["changes"]
        for change in record["changes"]
        if change["param"] == "world_size"
    ]
    assert reasons == [
        "2 → 3 workers; training stood still for 0.31 s",
        "1 of 3 workers lost, others came in; training stood still for 0.31 s",
        "1 of 3 workers lost; training stood still for 0.31 s",
    ]
    again = Controller(controller._journal, door.gateway._metrics)  # as after a restart
    assert again.run(GROUP).model_dump(mode="json")["recoveries"] == run["recoveries"]


async def test_a_size_that_cannot_be_is_refused(door: Door, api: httpx.AsyncClient) -> None:
    start_group(door.gateway.controller)
    path = f"/api/v1/runs/{GROUP}"
    for param, value in (("workers", 5), ("workers", 0), ("learners", 3), ("sync", "gossip")):
        body = problem(await api.put(f"{path}/pins/{param}", json={"value": value}, headers=JSON), 422, "out-of-bounds")
        assert str(value) in body["errors"][0]["message"]
    assert (await api.get(BASE)).json()["wanted"] is None
    for param in ("workers", "learners"):
        body = problem(await api.put(f"{BASE}/pins/{param}", json={"value": 2}, headers=JSON), 409, "fixed-size")
        assert "start it with `trimtab run`" in body["detail"]


async def test_changes_come_in_pages(api: httpx.AsyncClient) -> None:
    for command in ("pause", "resume", "checkpoint"):
        await api.post(f"{BASE}/{command}")
    first = (await api.get(f"{BASE}/changes?limit=2")).json()
    assert [change["id"] for change in first["changes"]] == [1, 2]
    rest = (await api.get(f"{BASE}/changes", params={"after": first["next_after"]})).json()
    assert [change["id"] for change in rest["changes"]] == [3]
    assert rest["next_after"] is None


async def test_the_audit_over_all_runs(door: Door, api: httpx.AsyncClient) -> None:
    door.gateway.controller.create_run("other", SPEC)
    eve = door.tokens.new("eve", Role.OPERATOR)
    for turn in range(3):
        for run, token in ((RUN, door.token), ("other", eve)):
            path = f"/api/v1/runs/{run}/pins/lr"
            headers = JSON | {"Authorization": f"Bearer {token}"}
            assert (await api.put(path, json={"value": 0.1 + turn}, headers=headers)).status_code == 200

    async def pages(**query: Any) -> list[dict[str, Any]]:
        found, place = [], None
        while place is not None or not found:
            turn = query | ({} if place is None else {"page_token": place})
            page = (await api.get("/api/v1/changes", params=turn)).json()
            found += page["changes"]
            place = page["next_page_token"]
            if place is None:
                break
        return found

    whole = await pages()
    assert [(one["run"], one["changes"][0]["by"]) for one in whole] == [("other", "eve"), (RUN, "alice")] * 3
    assert [one["changes"][0]["to"] for one in whole] == [2.1, 2.1, 1.1, 1.1, 0.1, 0.1]
    assert [one["accepted_at"] for one in whole] == sorted((one["accepted_at"] for one in whole), reverse=True)
    assert set(whole[0]) == {"run", *(await api.get(f"{BASE}/changes")).json()["changes"][0]}
    for limit in (1, 2, 4, 6):
        assert await pages(limit=limit) == whole
    assert await pages(by="eve", limit=2) == whole[::2]
    assert await pages(run=RUN) == whole[1::2]
    assert await pages(run=RUN, by="eve") == []
    problem(await api.get("/api/v1/changes?run=nix"), 404, "run-not-found")
    problem(await api.get("/api/v1/changes?page_token=nix"), 422, "invalid-parameters")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{BASE}/pause?dry_run=true"),
        ("DELETE", f"{BASE}/policies/a?dry_run=true"),
        ("GET", f"{BASE}?full=1"),
        ("GET", "/api/v1/version?x"),
        ("GET", "/api/v1/openapi.json?x=1"),
    ],
)
async def test_a_query_that_is_not_known_is_refused(api: httpx.AsyncClient, method: str, path: str) -> None:
    body = problem(await api.request(method, path, headers={"If-Match": "*"}), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == path.partition("?")[2].partition("=")[0]


async def test_pins_are_changed_on_a_revision(api: httpx.AsyncClient) -> None:
    path, body = f"{BASE}/pins/lr", {"value": 0.01, "reason": "too high"}
    etag = (await api.get(f"{BASE}/hyperparameters")).headers["etag"]
    problem(await api.put(path, json=body), 428, "precondition-required")
    pinned = await api.put(path, json=body, headers={"If-Match": etag})
    assert (pinned.status_code, pinned.json()) == (200, {"revision": 2, "version": 2, "value": 0.01})
    assert pinned.headers["etag"] == '"2"'
    stale = problem(await api.put(path, json=body, headers={"If-Match": etag}), 412, "stale-revision")
    assert stale["current"]["revision"] == 2
    problem(await api.delete(path), 428, "precondition-required")
    freed = await api.delete(path, headers={"If-Match": pinned.headers["etag"]})
    assert freed.json() == {"revision": 3, "version": 3, "value": 0.1}
    problem(await api.delete(path, headers={"If-Match": "*"}), 409, "not-pinned")


async def test_a_pin_without_a_value_holds_the_present_one(api: httpx.AsyncClient) -> None:
    assert (await api.put(f"{BASE}/pins/lr", json={"value": None}, headers=JSON)).status_code == 200
    values = (await api.get(f"{BASE}/hyperparameters")).json()["hyperparameters"]
    assert values[1]["pin"] == {"value": 0.1, "by": "alice", "reason": ""}


async def test_policies_are_changed_on_a_revision(api: httpx.AsyncClient) -> None:
    path = f"{BASE}/policies/cut"
    body = {"kind": "plateau", "params": {"patience": 3}, "mode": "active", "reason": ""}
    problem(await api.get(path), 404, "policy-not-found")
    problem(await api.put(path, json=body), 428, "precondition-required")
    problem(await api.put(path, json=body, headers={"If-Match": '"1"'}), 412, "stale-revision")
    made = await api.put(path, json=body, headers={"If-Match": "*"})
    assert (made.status_code, made.headers["etag"], made.headers["location"]) == (201, '"1"', path)
    got = await api.get(path)
    assert got.json() == made.json()
    edited = await api.put(path, json=body | {"mode": "off"}, headers={"If-Match": got.headers["etag"]})
    assert (edited.status_code, edited.json()["revision"], edited.json()["mode"]) == (200, 2, "off")
    stale = problem(await api.put(path, json=body, headers={"If-Match": '"1"'}), 412, "stale-revision")
    assert stale["current"]["revision"] == 2
    problem(await api.delete(path), 428, "precondition-required")
    problem(await api.delete(path, headers={"If-Match": '"1"'}), 412, "stale-revision")
    assert (await api.delete(path, headers={"If-Match": '"2"'})).status_code == 204
    assert (await api.get(f"{BASE}/policies")).json() == {"policies": []}


async def test_a_policy_that_is_added_replaces_none(api: httpx.AsyncClient) -> None:
    path, absent = f"{BASE}/policies/cut", {"If-None-Match": "*"}
    body = {"kind": "plateau", "params": {"patience": 3}, "mode": "shadow", "reason": ""}
    made = await api.put(path, json=body, headers=absent)
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    there = problem(await api.put(path, json=body | {"mode": "active"}, headers=absent), 412, "policy-exists")
    assert there["errors"] == [{"field": "name", "message": "run bytes-lm-3f9a has a policy 'cut' already"}]
    assert there["current"] == (await api.get(path)).json() == made.json()
    problem(await api.put(path, json=body, headers={"If-None-Match": '"1"'}), 422, "invalid-parameters")
    problem(await api.put(f"{BASE}/pins/lr", json={"value": 0.01}, headers=absent), 428, "precondition-required")


async def test_a_base_has_one_owner(api: httpx.AsyncClient) -> None:
    body = {"kind": "noise_scale"}
    assert (await api.put(f"{BASE}/policies/one", json=body, headers=JSON)).status_code == 201
    problem(await api.put(f"{BASE}/policies/two", json=body, headers=JSON), 409, "base-owned")


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        ("policies/a", {"kind": "nix"}, "unknown-policy-kind", "kind"),
        ("policies/a", {"kind": "plateau", "params": {"patience": -1}}, "invalid-parameters", "params.patience"),
        ("policies/a", {"kind": "plateau", "params": {"patienc": 1}}, "invalid-parameters", "params.patienc"),
        ("policies/a", {"kind": "plateau", "params": []}, "invalid-parameters", "params"),
        ("policies/a", {"kind": "plateau", "mode": "on"}, "invalid-parameters", "mode"),
        ("policies/a", {"kind": "plateau", "param": {}}, "invalid-parameters", "param"),
        ("policies/a", {}, "invalid-parameters", "kind"),
        ("policies/a-b", {"kind": "plateau"}, "invalid-parameters", "name"),
        ("pins/lr", {"value": -1}, "out-of-bounds", "value"),
        ("pins/lr", {"value": "NaN"}, "out-of-bounds", "value"),
        ("pins/lr", {"value": True}, "invalid-parameters", "value"),
        ("pins/lr", {"value": 10**400}, "invalid-parameters", "value"),
        ("pins/lr", {}, "invalid-parameters", "value"),
        ("pins/lr", {"value": 1, "why": ""}, "invalid-parameters", "why"),
        ("pins/lr", {"value": 1, "reason": "x" * 2000}, "invalid-parameters", "reason"),
        ("pins/batch_size", {"value": 1.5}, "out-of-bounds", "value"),
        ("pins/precision", {"value": "fp8"}, "out-of-bounds", "value"),
        ("pins/nix", {"value": 1}, "unknown-parameter", "param"),
    ],
)
async def test_bad_input_names_its_field(
    api: httpx.AsyncClient, path: str, body: dict[str, Any], code: str, field: str
) -> None:
    answer = problem(await api.put(f"{BASE}/{path}", json=body, headers=JSON), 422, code)
    assert any(error["field"].startswith(field) and error["message"] for error in answer["errors"]), answer


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b"null", b"1" * 5000, b'{"value": "\\ud800"}', b"\xff", b"[" * 9999]
)
async def test_a_broken_body_is_refused(api: httpx.AsyncClient, body: bytes) -> None:
    answer = await api.put(f"{BASE}/pins/lr", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_not_a_number_as_a_bare_word_is_out_of_bounds(api: httpx.AsyncClient) -> None:
    problem(await api.put(f"{BASE}/pins/lr", content=b'{"value": NaN}', headers=JSON), 422, "out-of-bounds")


@pytest.mark.parametrize("query", ["max_points=0", "max_points=1e9", "x=epoch", "from=NaN", "keys=loss", "to=later"])
async def test_a_bad_query_names_its_field(api: httpx.AsyncClient, query: str) -> None:
    body = problem(await api.get(f"{BASE}/metrics?{query}"), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("match", ["seven", '"-1"', '"1", "2"', 'W/"1"', '"9999999999999999999"', '"١"'.encode()])
async def test_a_bad_precondition_is_refused(api: httpx.AsyncClient, match: str | bytes) -> None:
    body = problem(await api.delete(f"{BASE}/pins/lr", headers={"If-Match": match}), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "If-Match"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (JournalUnavailable("disk full"), 507, "journal-unavailable"),
        (ControllerUnreachable("gone"), 503, "controller-unreachable"),
        (RuntimeError("secret"), 500, "internal-error"),
    ],
)
async def test_faults_are_problems(
    door: Door, api: httpx.AsyncClient, error: Exception, status: int, code: str
) -> None:
    door.gateway.error = error
    body = problem(await api.get(BASE), status, code)
    assert "secret" not in str(body)
    assert "Traceback" not in str(body)


async def test_probes(door: Door) -> None:
    async with door.client(None) as client:
        assert (await client.get("/readyz")).json() == {"status": "ok"}
        door.gateway.error = ControllerUnreachable("gone")
        answer = await client.get("/readyz")
        problem(answer, 503, "controller-unreachable")
        assert answer.headers["retry-after"]
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_metrics_by_name_and_in_buckets(door: Door, api: httpx.AsyncClient) -> None:
    assert (await api.get(f"{BASE}/metrics")).json() == {"keys": []}
    train(door.gateway.controller, range(1, 101))
    door.gateway.controller.expire()
    assert "loss" in (await api.get(f"{BASE}/metrics")).json()["keys"]
    answer = (await api.get(f"{BASE}/metrics?key=loss&key=nix&x=samples&from=320&to=640&max_points=2")).json()
    assert answer["x"] == "samples"
    assert answer["series"]["loss"]["x"][-1] == 640
    assert {len(column) for column in answer["series"]["loss"].values()} == {2}
    assert {len(column) for column in answer["series"]["nix"].values()} == {0}


async def test_runs_on_one_grid(door: Door, api: httpx.AsyncClient) -> None:
    start_group(door.gateway.controller)
    train(door.gateway.controller, range(1, 101), loss=math.nan)
    door.gateway.controller.expire()
    body: dict[str, Any] = {"runs": [RUN, GROUP], "keys": ["loss", "step_time"], "grid": {"points": 4}}
    answer = (await api.post("/api/v1/metrics:query", json=body)).json()
    assert (answer["x"], answer["grid"]) == ("step", [25, 50, 75, 100])
    assert answer["runs"][RUN]["step_time"]["mean"] == pytest.approx([0.02] * 4)
    assert answer["runs"][RUN]["loss"]["last"] == ["NaN"] * 4
    assert answer["runs"][GROUP]["loss"]["last"] == [None] * 4
    problem(await api.post("/api/v1/metrics:query", json=body | {"runs": ["nix"]}), 404, "run-not-found")
    many = body | {"keys": [f"k{i}" for i in range(50)], "grid": {"points": 5000}}
    told = problem(await api.post("/api/v1/metrics:query", json=many), 422, "too-many-points")
    assert "500,000 cells, more than 200,000: take fewer points" in told["detail"]
    for wrong in ({"runs": []}, {"runs": ["../x"]}, {"grid": {"from": 2, "to": 1}}, {"grid": {"x": "epoch"}}):
        problem(await api.post("/api/v1/metrics:query", json=body | wrong), 422, "invalid-parameters")


async def test_one_rank_s_own_values(door: Door, api: httpx.AsyncClient) -> None:
    train(door.gateway.controller, range(1, 101))
    door.gateway.controller.expire()
    own = (await api.get(f"{BASE}/metrics?key=loss&rank=0&from=99")).json()["series"]["loss"]
    assert own == (await api.get(f"{BASE}/metrics?key=loss&from=99")).json()["series"]["loss"]
    assert (await api.get(f"{BASE}/metrics?key=loss&rank=1")).json()["series"]["loss"]["x"] == []
    text = (await api.get(f"{BASE}/metrics?key=loss&rank=0", headers={"Accept": "text/csv"})).text
    assert text.splitlines()[:2] == ["step,samples,time,loss", "1,32,1700000000.02,2.0"]


async def test_all_points_as_csv(door: Door, api: httpx.AsyncClient) -> None:
    train(door.gateway.controller, range(1, 101))
    door.gateway.controller.expire()
    answer = await api.get(f"{BASE}/metrics?key=loss&key=grad_norm&max_points=2", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="{RUN}.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert list(rows[0]) == ["step", "samples", "time", "loss", "grad_norm"]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 101)]
    assert (rows[0]["loss"], rows[0]["grad_norm"]) == ("2.0", "")
    problem(await api.get("/api/v1/runs/nix/metrics", headers={"Accept": "text/csv"}), 404, "run-not-found")


# ---- replay and dry run --------------------------------------------------------------------------------------------

CUT = {"kind": "plateau", "params": {"metric": "loss", "patience": 0, "factor": 0.5, "threshold": 0.9}}


async def recorded(door: Door, api: httpx.AsyncClient) -> None:
    """A run whose plateau cuts once, at step 100, and that has a metric file."""
    warmup = {"kind": "warmup", "params": {"steps": 10}}
    for name, body in (("plateau", CUT | {"mode": "shadow"}), ("warmup", warmup)):
        assert (await api.put(f"{BASE}/policies/{name}", json=body, headers=JSON)).status_code == 201
    live = door.gateway.controller._live[RUN]
    for end in (50, 100):
        live.ticked = 0.0  # the next tick is due
        train(door.gateway.controller, range(end - 49, end + 1))
    door.gateway.controller.expire()


async def test_a_replay_of_the_record_is_equal(door: Door, api: httpx.AsyncClient) -> None:
    await recorded(door, api)
    answers = [
        await api.post(f"{BASE}/replay"),
        await api.post(f"{BASE}/replay", json={}),
        await api.post(f"{BASE}/replay", json={"policies": None}),
    ]
    assert len({answer.content for answer in answers}) == 1
    answer = answers[0].json()
    assert set(answer) == {"observations", "decisions", "recorded", "values", "unread", "equal"}
    assert (answer["observations"], answer["equal"], answer["unread"]) == (2, True, {})
    assert answer["decisions"] == answer["recorded"]
    (cut,) = (one for one in answer["decisions"] if one["policy"] == "plateau")
    assert cut == {
        "step": 100,
        "samples": 3200,
        "policy": "plateau",
        "param": "lr",
        "before": 0.1,
        "after": 0.05,
        "reason": cut["reason"],
        "refused": None,
        "shadow": True,
    }
    assert answer["values"]["batch_size"] == {"step": [50, 100], "value": [32, 32]}
    assert answer["values"]["precision"]["value"] == ["fp32", "fp32"]


async def test_other_policies_decide_on_the_record(door: Door, api: httpx.AsyncClient) -> None:
    await recorded(door, api)
    stop = {"name": "stop", "kind": "early_stop", "params": {"metric": "acc"}}
    answer = (await api.post(f"{BASE}/replay", json={"policies": [CUT | {"name": "cut"}, stop]})).json()
    assert [(one["step"], one["policy"], one["after"]) for one in answer["decisions"]] == [(100, "cut", 0.05)]
    assert answer["unread"] == {"stop": ["acc"]}
    assert not answer["equal"]
    none = (await api.post(f"{BASE}/replay", json={"policies": []})).json()
    assert (none["decisions"], set(none["values"]["lr"]["value"])) == ([], {0.1})


@pytest.mark.parametrize(
    ("policies", "code", "field"),
    [
        ([{"name": "a", "kind": "nix"}], "unknown-policy-kind", "policies.0.kind"),
        ([{"name": "a", "kind": "plateau", "params": {"patience": -1}}], "invalid-parameters", "policies.0.params"),
        ([{"name": "a", "kind": "plateau"}] * 2, "invalid-parameters", "policies.1.name"),
        ([{"kind": "plateau"}], "invalid-parameters", "policies.0.name"),
        ([{"name": "a", "kind": "plateau", "code": ""}], "invalid-parameters", "policies.0.code"),
        ({}, "invalid-parameters", "policies"),
    ],
)
async def test_what_cannot_be_tried_names_its_field(
    api: httpx.AsyncClient, policies: Any, code: str, field: str
) -> None:
    answer = problem(await api.post(f"{BASE}/replay", json={"policies": policies}), 422, code)
    assert answer["errors"][0]["field"].startswith(field)


async def test_a_replay_that_cannot_be_made_says_why(
    door: Door, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem(await api.post("/api/v1/runs/nix/replay"), 404, "run-not-found")
    await recorded(door, api)
    monkeypatch.setattr(Plateau, "rule", 2)
    body = problem(await api.post(f"{BASE}/replay"), 409, "cannot-replay")
    assert "recorded with rule 1 of kind plateau" in body["detail"]


async def test_a_dry_run_changes_nothing(door: Door, api: httpx.AsyncClient) -> None:
    await recorded(door, api)
    before = list(door.gateway.controller._journal.read())
    path = f"{BASE}/policies/plateau"
    answer = await api.put(f"{path}?dry_run=true", json=CUT, headers=JSON)
    assert answer.status_code == 200
    assert "etag" not in answer.headers
    replayed = answer.json()
    tried = [(one["policy"], one["param"], one["shadow"]) for one in replayed["decisions"]]
    assert tried == [("warmup", "lr", False), ("plateau", "lr", False)]
    assert not replayed["equal"]
    added = (await api.put(f"{BASE}/policies/new?dry_run=true", json=CUT, headers=JSON)).json()
    assert [one["policy"] for one in added["decisions"]] == ["warmup", "plateau", "new"]
    assert list(door.gateway.controller._journal.read()) == before
    door.gateway.controller.set_state(RUN, RunState.FINISHED)
    assert (await api.put(f"{path}?dry_run=true", json=CUT, headers=JSON)).json() == replayed
    problem(await api.put(f"{path}?dry_run=false", json=CUT, headers=JSON), 409, "run-ended")


async def test_a_dry_run_refuses_what_a_change_would(api: httpx.AsyncClient) -> None:
    path = f"{BASE}/policies/a?dry_run=true"
    problem(await api.put(path, json=CUT), 428, "precondition-required")
    problem(await api.put(path, json={"kind": "nix"}, headers=JSON), 422, "unknown-policy-kind")
    body = problem(await api.put(path, json=CUT | {"params": {"factor": 7}}, headers=JSON), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "params.factor"
    problem(await api.put("/api/v1/runs/nix/policies/a?dry_run=true", json=CUT, headers=JSON), 404, "run-not-found")
    body = problem(await api.put(f"{BASE}/policies/a?dry=1", json=CUT, headers=JSON), 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "dry"
    assert (await api.put(f"{BASE}/policies/one", json={"kind": "noise_scale"}, headers=JSON)).status_code == 201
    problem(await api.put(path, json={"kind": "goodput"}, headers=JSON), 409, "base-owned")


async def test_policy_kinds_bring_their_schema(api: httpx.AsyncClient) -> None:
    kinds = {kind["kind"]: kind for kind in (await api.get("/api/v1/policy-kinds")).json()["kinds"]}
    assert kinds["plateau"]["schema"]["properties"]["patience"]["default"] == 10


async def test_the_description_is_complete(api: httpx.AsyncClient) -> None:
    schema = (await api.get("/api/v1/openapi.json")).json()
    operations = [one for path in schema["paths"].values() for one in path.values()]
    ids = [one["operationId"] for one in operations]
    assert len(set(ids)) == len(ids)
    for one in operations:
        assert one["tags"]
        assert "application/problem+json" in one["responses"]["4XX"]["content"]
        assert "HTTPValidationError" not in str(one)
        assert "security" in one
    assert set(schema["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyCookie"}
