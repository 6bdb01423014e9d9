"""Jobs of a real cluster that was there before, and what replicas under Serve make of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from joined import Cluster, free_port, joined, running, until

from trimtab.api import ApiError, Client
from trimtab.api.client import Event
from trimtab.controller.events import Versioned, decode
from trimtab.controller.home import JOURNAL
from trimtab.controller.journal import read_only
from trimtab.controller.state import RunState

SCRIPT = """
import torch
from torch import nn
from neighbour import classes
from trimtab.workers import launch

def train(session):
    print("a rank is here")
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    net = nn.Linear(8, classes)
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
    for inputs, labels in session.batches((x, y)):
        session.step(nn.functional.cross_entropy(model(inputs), labels))

if __name__ == "__main__":
    hp = {"batch_size": 32, "lr": 0.1}
    summary = launch(train, workers=1, steps=40, hp=hp, policies=["plateau"], name="submitted")
    print("trained", summary["steps"], "steps")
"""
SERVED = f"""
import sys
import threading
import time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import ray
from plain import SPEC
from ray import serve
from trimtab.api.replicas import Settings, build
from trimtab.controller.actor import call
from trimtab.controller.trajectory import Progress
address, home, port = sys.argv[1:]
ray.init(address=address, namespace="serve", log_to_driver=False)
serve.start(http_options={{"port": int(port)}})
serve.run(build(Settings(home=home, url="http://127.0.0.1:" + port)))
runs = []
def drive():  # nobody trains them
    while True:
        for run in runs:
            call("heartbeat", run)
        time.sleep(5)
threading.Thread(target=drive, daemon=True).start()
for line in sys.stdin:
    run = line.strip()
    call("create_run", run, SPEC)
    call("start_formation", run, 1, Progress())
    runs.append(run)
    print(run, flush=True)
serve.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with joined(tmp_path_factory.mktemp("home")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "neighbour.py").write_text("classes = 2\n")
    (folder / "small.py").write_text(SCRIPT)
    (folder / "endless.py").write_text(SCRIPT.replace("steps=40", "steps=10**9"))
    return folder


def test_a_script_is_submitted_followed_and_linked_to_its_run(cluster: Cluster, script: Path) -> None:
    options = [
        "--working-dir",
        str(script),
        "--submission-id",
        "small-1",
        "--hp",
        "lr=0.2",
        "--policy",
        "warmup:steps=20",
    ]
    done = cluster.trimtab("submit", *options, "--", sys.executable, "small.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a rank is here" in done.stdout
    assert "trained 40 steps" in done.stdout
    assert "small-1: SUCCEEDED" in done.stdout
    with cluster.client() as api:
        job = api.job("small-1")
        (run,) = job.runs
        assert (job.by, job.status, run.startswith("submitted-")) == ("admin", "SUCCEEDED", True)
        assert api.run(run).job == "small-1"
        assert [policy.kind for policy in api.policies(run)] == ["warmup"]
        (lr,) = (one for one in api.hyperparameters(run).hyperparameters if one.name == "lr")
        assert lr.base == 0.2
        assert "trained 40 steps" in api.job_logs("small-1")
    again = cluster.trimtab("submit", *options, "--", sys.executable, "small.py")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("trained 40 steps") == 1
    with cluster.client() as api:
        assert api.job("small-1").runs == [run]


def test_a_job_that_fails_and_one_that_is_stopped(cluster: Cluster) -> None:
    failed = cluster.trimtab("submit", "--", sys.executable, "-c", "print('so far'); raise SystemExit(3)")
    assert failed.returncode == 1
    assert "so far" in failed.stdout
    assert "FAILED (exit code 3: so far)" in failed.stdout
    with cluster.client() as api:
        api.submit_job("sleep 600", "sleeps")
        until(lambda: api.job("sleeps").status == "RUNNING")
        with pytest.raises(ApiError, match="stop it first"):
            api.delete_job("sleeps")
        assert api.stop_job("sleeps").stopped
        until(lambda: api.job("sleeps").status == "STOPPED")
        assert api.delete_job("sleeps").deleted
        with pytest.raises(ApiError, match="choose another id"):
            api.submit_job("sleep 600", "sleeps")


def test_a_job_that_trains_says_how_to_follow_it_and_is_stopped_quietly(cluster: Cluster, script: Path) -> None:
    options = ["--working-dir", str(script), "--submission-id", "endless", "--no-wait"]
    assert cluster.trimtab("submit", *options, "--", sys.executable, "endless.py").returncode == 0
    with cluster.client() as api:
        until(lambda: bool(api.job("endless").runs))
        (run,) = api.job("endless").runs
        until(lambda: api.run(run).progress.steps > 0)
        assert f"run {run}: follow it with `trimtab watch {run}`" in api.job_logs("endless")
        assert api.stop_job("endless").stopped
        until(lambda: api.job("endless").status == "STOPPED")
        assert api.run(run).state is RunState.STOPPED
        assert "SIGTERM" not in api.job_logs("endless")


def test_what_ray_refuses_is_told(cluster: Cluster) -> None:
    with cluster.client() as api, pytest.raises(ApiError) as refused:
        api.submit_job("true", "bad", entrypoint_label_selector={"a b": "!!"})
    assert (refused.value.status, refused.value.code) == (422, "job-refused")


def test_a_controller_that_is_killed_between_makes_one_job_of_each(cluster: Cluster) -> None:
    def controller() -> int:
        with cluster.client() as api:
            home = api.system_health().home
        return home.pid if home is not None else 0

    def submit(number: int) -> None:
        with cluster.client() as api:
            api.submit_job(f"echo killed-{number}", f"killed-{number}")

    for round_ in range(3):
        pid = controller()
        threads = [threading.Thread(target=submit, args=(3 * round_ + i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05 * round_)
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        until(lambda gone=pid: controller() not in (0, gone))  # type: ignore[misc]
    with cluster.client() as api:
        until(lambda: all(api.job(f"killed-{i}").status == "SUCCEEDED" for i in range(9)))
        killed = sorted(job.submission_id for job in api.jobs() if job.submission_id.startswith("killed-"))
    assert killed == [f"killed-{i}" for i in range(9)]


def test_straight_to_a_job_server_with_its_token(cluster: Cluster, script: Path) -> None:
    straight = ["submit", "--address", cluster.dashboard, "--submission-id", "straight"]
    command = [*straight, "--working-dir", str(script), "--", sys.executable, "-c", "import neighbour; print('here')"]
    for _ in range(2):
        done = cluster.trimtab(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("here\n") == 1
    with cluster.client() as api:
        assert api.job("straight").by is None
    other = cluster.trimtab(*straight, "--", "true")
    assert other.returncode == 1
    assert "another job was submitted as 'straight'" in other.stderr
    stranger = cluster.trimtab(*command, RAY_AUTH_TOKEN="wrong")
    assert stranger.returncode == 1
    assert "wants its token" in stranger.stderr


def test_an_address_where_nobody_answers_is_told(cluster: Cluster, tmp_path: Path) -> None:
    nobody = cluster.trimtab("--home", str(tmp_path), "up", "--address", f"127.0.0.1:{free_port()}")
    assert nobody.returncode == 1
    assert "Connection refused): start one there with `ray start --head`" in nobody.stderr


def test_a_cluster_that_wants_a_token_says_so_at_once(cluster: Cluster, tmp_path: Path) -> None:
    stranger = cluster.trimtab("--home", str(tmp_path), "up", "--address", cluster.address, RAY_AUTH_MODE="disabled")
    assert stranger.returncode == 1
    assert f"the Ray cluster at {cluster.address} wants its token: start Trimtab" in stranger.stderr


@dataclass(frozen=True)
class Served:
    """Two replicas under Serve, and who makes runs for them."""

    home: Path
    process: "subprocess.Popen[str]"

    def run(self, name: str) -> str:
        """A run to change."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        assert f"{name}\n" in iter(self.process.stdout.readline, "")
        return name


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Served]:
    home, port = cluster.home / "served", free_port()
    with running([sys.executable, "-c", SERVED, cluster.address, str(home), str(port)], cluster.environment) as process:
        served = Served(home, process)
        served.run("first")  # Serve is up
        yield served


def streams(api: Client, pool: ThreadPoolExecutor) -> dict[int, int]:
    """Of each replica its event streams. Asked by many at once: one at a time all would be sent to the replica with
    fewer streams."""
    answers = pool.map(lambda _: api.system_health().api, range(16))
    return {replica.pid: replica.stream_clients for replica in answers}


def test_replicas_under_serve_see_what_is_changed_through_another(served: Served) -> None:
    seen: list[Event] = []
    run = served.run("seen")

    def watch() -> None:
        with Client(home=served.home) as api:
            seen.append(next(api.events(run, ["changes"])))

    watching: list[threading.Thread] = []

    def begin(count: int) -> None:
        for _ in range(count):
            watching.append(threading.Thread(target=watch, daemon=True))
            watching[-1].start()

    begin(6)
    with Client(home=served.home) as api, ThreadPoolExecutor(16) as pool:

        def both_are_watched() -> bool:
            open_now = streams(api, pool)
            if sum(open_now.values()) < len(watching):
                return False
            both = len(open_now) == 2 and all(open_now.values())
            if not both:  # chance has sent all of them to one
                begin(1)
            return both

        until(both_are_watched)
        assert api.run(run).name == "bytes_lm"
        api.pin(run, "lr", 0.05, reason="through one of them")
    for thread in watching:
        thread.join(30)
    assert len(seen) == len(watching)
    assert len({event.id for event in seen}) == 1
    assert seen[0].data["change"]["changes"][0]["reason"] == "through one of them"


class Watching(httpx.HTTPTransport):
    """Somebody who follows the changes of a run up to the last one, and notes from where on they were asked for."""

    def __init__(self, home: Path, run: str) -> None:
        super().__init__()
        self.places: list[str | None] = []
        self.reasons: list[str] = []
        self._thread = threading.Thread(target=self._watch, args=(home, run), daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.places.append(request.headers.get("Last-Event-ID"))
        return super().handle_request(request)

    def _watch(self, home: Path, run: str) -> None:
        with Client(home=home, transport=self) as api:
            for event in api.events(run, ["changes"]):
                self.reasons += [one["reason"] for one in event.data["change"]["changes"]]  # a `reset` has none
                if self.reasons[-1] == "last":
                    return

    def end(self) -> list[str]:
        self._thread.join(30)
        return self.reasons


class Changing:
    """Somebody who changes a run again and again, each time for another reason, and notes what came of it."""

    def __init__(self, home: Path, run: str, who: str) -> None:
        self.acknowledged: list[str] = []
        self.failed: list[tuple[float, str]] = []  # when it was asked for, and what was answered
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._change, args=(home, run, who), daemon=True)
        self._thread.start()

    def _change(self, home: Path, run: str, who: str) -> None:
        number = 0
        with Client(home=home) as api:
            while not self._ended.is_set():
                number, asked = number + 1, time.monotonic()
                try:
                    api.pin(run, "lr", 0.05 + number % 10 / 100, reason=f"{who} {number}")
                except ApiError as error:
                    self.failed.append((asked, str(error)))
                else:
                    self.acknowledged.append(f"{who} {number}")

    def go_on(self) -> None:
        """Wait until ten more are acknowledged."""
        enough = len(self.acknowledged) + 10
        until(lambda: len(self.acknowledged) >= enough)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(30)


def test_a_replica_that_is_killed_loses_nothing_that_was_acknowledged(cluster: Cluster, served: Served) -> None:
    run = served.run("killed")
    watching = [Watching(served.home, run) for _ in range(6)]
    before: dict[int, int] = {}
    with Client(home=served.home) as api, ThreadPoolExecutor(16) as pool:

        def all_are_there() -> bool:
            before.update(streams(api, pool))
            return len(before) == 2 and sum(before.values()) == len(watching)

        until(all_are_there)
        changing = [Changing(served.home, run, who) for who in ("one", "another")]
        changing[0].go_on()
        victim = max(before, key=lambda pid: before[pid])
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        changing[0].go_on()
        until(lambda: len(streams(api, pool).keys() - {victim}) == 2)
        for one in changing:
            one.go_on()
            one.end()
        api.pin(run, "lr", 0.05, reason="last")
    seen = [one.end() for one in watching]
    with closing(read_only(cluster.home / JOURNAL)) as journal:
        events = [decode(entry.event) for entry in journal.read(run=run)]
    journaled = [change.reason for event in events if isinstance(event, Versioned) for change in event.changes]
    for one in changing:
        assert [journaled.count(reason) for reason in one.acknowledged] == [1] * len(one.acknowledged)
        assert len(one.failed) <= 1
        assert all(asked < killed for asked, _ in one.failed), one.failed  # but what was under way
    resumed = [one.places[1:] for one in watching if len(one.places) > 1]
    assert len(resumed) == before[victim]
    assert all(place for places in resumed for place in places)
    pins = journaled[min(map(journaled.index, ("one 1", "another 1"))) :]
    assert seen == [pins] * len(watching)
