"""The API as a Ray actor: what goes through Ray, what comes back after kill -9, and a port that is taken."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from joined import TRIMTAB, running
from plain import SPEC, records
from test_run import trimtab

from trimtab.api.home import Access, read_access
from trimtab.controller.trajectory import Progress

RUN = "through-ray"


@pytest.fixture
def api(controller: Path) -> Iterator[Access]:
    from trimtab.api import server
    from trimtab.api.serving import bind

    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    yield server.start(controller, port=port)
    server.stop()


def client(access: Access) -> httpx.Client:
    return httpx.Client(base_url=access.url, headers={"Authorization": f"Bearer {access.token}"}, timeout=30)


def eventually(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The first answer of a server that is coming back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return ask()
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_answers_come_through_ray(api: Access) -> None:
    from trimtab.controller.actor import call

    call("create_run", RUN, SPEC)
    call("start_formation", RUN, 1, Progress())
    call("ingest", records(range(1, 2501), run=RUN))
    with client(api) as http:
        assert http.get("/readyz").json() == {"status": "ok"}
        assert http.get(f"/api/v1/runs/{RUN}").json()["progress"]["steps"] == 2500
        missing = http.get("/api/v1/runs/nix")
        assert (missing.status_code, missing.json()["code"]) == (404, "run-not-found")
        stale = http.put(f"/api/v1/runs/{RUN}/pins/lr", json={"value": 0.01}, headers={"If-Match": '"9"'})
        assert (stale.status_code, stale.json()["current"]["revision"]) == (412, 1)
        with http.stream("GET", "/api/v1/events?topic=changes", timeout=10) as events:
            lines = events.iter_lines()
            assert next(lines).startswith("id: ")
            pinned = http.put(f"/api/v1/runs/{RUN}/pins/lr", json={"value": 0.01}, headers={"If-Match": '"1"'})
            assert pinned.json()["revision"] == 2
            assert "event: changes" in lines
        deadline = time.monotonic() + 10
        while len(lines := http.get(f"/api/v1/runs/{RUN}/metrics", headers={"Accept": "text/csv"}).text.split()) < 2501:
            assert time.monotonic() < deadline  # metrics are written out about once a second
        assert len(lines) == 2501
        buckets = http.get(f"/api/v1/runs/{RUN}/metrics?key=loss&max_points=5").json()["series"]["loss"]
        assert buckets["x"] == [500, 1000, 1500, 2000, 2500]


def test_a_replay_comes_through_ray(api: Access) -> None:
    from trimtab.controller.actor import call

    call("create_run", "replayed", SPEC)
    call("start_formation", "replayed", 1, Progress())
    with client(api) as http:
        path, body = "/api/v1/runs/replayed/policies/warmup", {"kind": "warmup", "params": {"steps": 100}}
        tried = http.put(f"{path}?dry_run=true", json=body, headers={"If-Match": "*"}).json()
        assert (tried["observations"], tried["equal"]) == (0, True)
        assert http.put(path, json=body, headers={"If-Match": "*"}).status_code == 201
        call("ingest", records(range(1, 11), run="replayed"))
        replayed = http.post("/api/v1/runs/replayed/replay").json()
        assert (replayed["observations"], replayed["equal"]) == (1, True)
        assert [one["policy"] for one in replayed["decisions"]] == ["warmup"]
        candidate = {"name": "a", "kind": "plateau", "params": {"patience": -1}}
        refused = http.post("/api/v1/runs/replayed/replay", json={"policies": [candidate]})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "policies.0.params.patience")
        assert http.post("/api/v1/runs/nix/replay").json()["code"] == "run-not-found"


def test_it_comes_back_after_kill_9_on_the_same_port(api: Access, controller: Path) -> None:
    import ray

    from trimtab.api import server

    assert read_access(controller) == api
    assert server.start(controller, port=1) == api  # it runs already
    actor = ray.get_actor(server.API, namespace="trimtab")
    pid = ray.get(actor.pid.remote())
    with client(api) as http, http.stream("GET", "/api/v1/events"):
        os.kill(pid, signal.SIGKILL)
    with client(api) as http:
        assert eventually(lambda: http.get("/api/v1/version")).json()["role"] == "admin"
    assert ray.get(actor.pid.remote()) != pid
    assert read_access(controller) == api


def test_reads_outlast_a_restart_of_the_controller(api: Access) -> None:
    import ray

    from trimtab.controller.actor import CONTROLLER

    os.kill(ray.get(ray.get_actor(CONTROLLER, namespace="trimtab").pid.remote()), signal.SIGKILL)
    with client(api) as http:
        assert http.get("/api/v1/runs").status_code == 200


def test_a_reader_that_dies_is_back_and_harms_nobody(api: Access) -> None:
    import ray

    from trimtab.controller.actor import READER, call

    call("create_run", "reread", SPEC)
    call("start_formation", "reread", 1, Progress())
    call("ingest", records(range(1, 101), run="reread"))
    controller = ray.get_actor("controller", namespace="trimtab")
    pid = ray.get(controller.pid.remote())
    path, asked = "/api/v1/runs/reread/metrics?key=loss&max_points=2", {"runs": ["reread"], "keys": ["loss"]}
    with client(api) as http:
        deadline = time.monotonic() + 60
        while not (before := http.get(path).json()["series"]["loss"])["x"]:
            assert time.monotonic() < deadline  # metrics are written out about once a second
        for _ in range(2):
            ray.kill(ray.get_actor(READER, namespace="trimtab"), no_restart=False)
            assert http.get(path).json()["series"]["loss"] == before
        ray.kill(ray.get_actor(READER, namespace="trimtab"), no_restart=False)
        assert http.get(path, headers={"Accept": "text/csv"}).text.count("\n") == 101
        ray.kill(ray.get_actor(READER, namespace="trimtab"), no_restart=False)
        compared = http.post("/api/v1/metrics:query", json=asked).json()
        assert (compared["grid"][-1], compared["runs"]["reread"]["loss"]["last"][-1]) == (100, 1)
        assert http.get("/api/v1/runs/reread/metrics?key=loss&rank=0").json()["series"]["loss"]["x"][-1] == 100
    assert ray.get(controller.pid.remote()) == pid


def test_a_port_that_is_taken_is_told(controller: Path) -> None:
    from trimtab.api import server
    from trimtab.api.serving import CannotListen, bind

    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"port {port}: it is taken; choose another with --port"):
            server.start(controller, port=port)
    assert not server.running()


def test_a_taken_port_is_told(controller: Path, where: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = trimtab(controller, "up", *where, "--port", port)
    assert done.returncode == 1
    assert "is taken" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_up_tells_what_runs_already_and_leaves_it(
    api: Access, controller: Path, where: list[str], tmp_path: Path
) -> None:
    from trimtab.api import server

    for home, others in ((controller, ""), (tmp_path, f" on this cluster, with the home {controller}")):
        command = [*TRIMTAB, "--home", str(home), "up", *where]
        with running(command, os.environ | {"NO_COLOR": "1"}) as up:
            assert up.stdout is not None
            told = up.stdout.readline()
        assert told == f"Trimtab is running already{others}: {api.page} (Ctrl-C here leaves it running)\n"
        assert up.returncode == 0
    assert server.answers(5)


def test_answers_do_not_wait_for_the_clients_acknowledgement() -> None:
    from trimtab.api.serving import bind

    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_up_ends_where_the_api_has_gone_for_good_and_not_where_it_comes_back() -> None:
    from trimtab.api.cli.up import LOOKS, lost

    flaky = iter([True, *[False] * (LOOKS - 1), True, *[False] * LOOKS])
    assert lost(threading.Event(), lambda: next(flaky), look_s=0.001)
    assert next(flaky, None) is None
    ended = threading.Event()
    ended.set()
    assert not lost(ended, lambda: False)


@pytest.mark.usefixtures("controller")
def test_whether_there_is_an_api_that_answers(request: pytest.FixtureRequest) -> None:
    from trimtab.api import server

    assert not server.answers(5)
    request.getfixturevalue("api")
    assert server.answers(5)
