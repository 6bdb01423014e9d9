"""A cluster of several raylets, told nothing but a URL and a token from outside, of which every part is killed.

What docs/operations.md says of each part that dies is found out here. The restart of the head takes too long for every
day: `TRIMTAB_LONG=1` runs it.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))  # for `joined`
sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))  # for `test_chaos`

import pytest
from joined import TRIMTAB, free_port, head, ray_start, running, settings, until, up
from test_chaos import Tracks, faults

from trimtab.api import ApiError, Client
from trimtab.controller.events import Versioned, decode
from trimtab.controller.home import JOURNAL
from trimtab.controller.journal import read_only
from trimtab.controller.recorded import replay_recorded

LONG = os.environ.get("TRIMTAB_LONG") == "1"
STEPS = 3000
LONG_STEPS = 8000
WORKERS = Path(__file__).parents[1] / "workers"
SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, {workers!r})
from test_chaos import HP, make_train
from trimtab.workers import launch, trainable

train = trainable(steps={steps}, **HP)(make_train(Path({tracks!r})))

if __name__ == "__main__":
    resume = sys.argv[1] if len(sys.argv) > 1 else None
    options = dict(policies=["plateau"], checkpoints={checkpoints!r}, checkpoint_steps=100, resume=resume)
    summary = launch(train, workers=2, name="survivor", **options)
    print("ended", summary["state"], "at step", summary["steps"], "dropped", summary["dropped_points"])
"""


class Changing:
    """Somebody who changes a value again and again, and notes what was acknowledged."""

    def __init__(self, url: str, token: str, run: str) -> None:
        self.acknowledged: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._change, args=(url, token, run), daemon=True)
        self._thread.start()

    def _change(self, url: str, token: str, run: str) -> None:
        number = 0
        with Client(url, token) as api:
            while not self._ended.wait(0.1):
                number += 1
                try:
                    api.pin(run, "lr", 0.05 + number % 10 / 100, reason=f"change {number}")
                except ApiError as error:
                    if error.code == "run-ended":
                        return
                else:
                    self.acknowledged.append(f"change {number}")

    def end(self) -> list[str]:
        self._ended.set()
        self._thread.join()
        return self.acknowledged


class Site:
    """A head without a CPU for workers, nodes with one each, and `trimtab up` on the head."""

    def __init__(self, folder: Path, steps: int = STEPS) -> None:
        self._begun = time.monotonic()
        self.home = folder / "home"
        self.tracks = Tracks(folder / "tracks")
        self.tracks.folder.mkdir()
        self.script = folder / "train.py"
        self.script.write_text(
            SCRIPT.format(
                workers=str(WORKERS),
                tracks=str(self.tracks.folder),
                checkpoints=str(folder / "checkpoints"),
                steps=steps,
            )
        )
        self._outside = folder / "outside"
        self._outside.mkdir()
        self._ports = [free_port() for _ in range(3)]
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.address = f"127.0.0.1:{self._ports[0]}"
        self.environment = settings(self.home)

    @contextmanager
    def headed(self) -> Iterator[subprocess.Popen[str]]:
        """The head, with the controller and the API."""
        joining = up(self.environment, self.address, self.home, self._port)
        with head(self.environment, self._ports, cpus=0) as process, joining:
            yield process

    @contextmanager
    def node(self) -> Iterator[subprocess.Popen[str]]:
        """One raylet more. One after the other: two that begin at once may wait for each other for ever."""
        with running(ray_start(f"--address={self.address}", agent=free_port(), cpus=1), self.environment) as process:
            assert process.stdout is not None
            assert any("Ray runtime started" in line for line in process.stdout)
            yield process

    def client(self) -> Client:
        return Client(home=self.home)

    def submit(self, token: str, submission_id: str, *arguments: str) -> "subprocess.Popen[str]":
        """From outside: another account, which has the URL and a token and nothing else."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
        environment = kept | {"HOME": str(self._outside), "TRIMTAB_URL": self.url, "TRIMTAB_TOKEN": token}
        job = [sys.executable, str(self.script), *arguments]
        return running([*TRIMTAB, "submit", "--submission-id", submission_id, "--", *job], environment)

    def run_of(self, submission_id: str) -> str:
        """The run that a job trains, as soon as there is one."""
        found: list[str] = []

        def linked() -> bool:
            found.extend(run for job in api.jobs() if job.submission_id == submission_id for run in job.runs)
            return bool(found)

        with self.client() as api:
            until(linked)
        return found[-1]

    def trains(self, workers: int, beyond: int = 0) -> None:
        """Wait until so many ranks of one group have made steps beyond one."""

        def enough() -> bool:
            self.tracks.look()
            newest = self.tracks.newest()
            return len(newest) == workers and all(one.step > beyond for one in newest.values())

        until(enough, 90)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._begun:5.1f} s, step {self.step()}: {what}", flush=True)

    def step(self) -> int:
        self.tracks.look()
        return max((one.step for one in self.tracks.done), default=0)

    def workers(self) -> set[int]:
        self.tracks.look()
        return set(self.tracks.newest())

    def journaled(self, run: str) -> list[str]:
        """The reasons of all changes on disk, in order."""
        with closing(read_only(self.home / JOURNAL)) as journal:
            events = [decode(entry.event) for entry in journal.read(run=run)]
        return [change.reason for event in events if isinstance(event, Versioned) for change in event.changes]


def lose(node: "subprocess.Popen[str]") -> None:
    """A node is gone from one moment to the next; its workers end when they miss their raylet."""
    children = subprocess.run(["pgrep", "-P", str(node.pid)], capture_output=True, text=True, check=True).stdout
    for pid in [node.pid, *map(int, children.split())]:
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(api: Client) -> tuple[int, int]:
    """The controller's and the API's."""
    try:
        health = api.system_health()
    except ApiError:
        return 0, 0
    return health.home.pid if health.home else 0, health.api.pid


@pytest.mark.skipif(not shutil.which("pgrep"), reason="needs pgrep: install procps")
def test_a_run_outlives_controller_api_and_a_node(tmp_path: Path) -> None:
    site = Site(tmp_path)
    say = site.say
    with ExitStack() as ends:
        ends.enter_context(site.headed())
        nodes = [ends.enter_context(site.node()) for _ in range(2)]
        say("up")
        api = ends.enter_context(site.client())
        until(lambda: len(api.system_health().nodes or ()) == 3)
        say("nodes")
        token = api.new_token("outside", "admin").token
        submitted = ends.enter_context(site.submit(token, "survivor-1"))
        run = site.run_of("survivor-1")
        site.trains(2)
        say("trains")
        changing = Changing(site.url, token, run)
        until(lambda: len(changing.acknowledged) >= 3)

        controller, server = pids(api)
        os.kill(controller, signal.SIGKILL)
        until(lambda: pids(api)[0] not in (0, controller))
        until_changed = len(changing.acknowledged) + 3
        until(lambda: len(changing.acknowledged) >= until_changed)
        say("the controller is back")
        os.kill(server, signal.SIGKILL)
        until(lambda: pids(api)[1] not in (0, server))
        until_changed = len(changing.acknowledged) + 3
        until(lambda: len(changing.acknowledged) >= until_changed)
        say("the API is back")
        before = site.workers()
        lose(nodes[0])
        until(lambda: not all(map(alive, before)))
        lost = {pid for pid in before if not alive(pid)}
        say("a node is gone")
        assert len(lost) == 1
        site.trains(1, beyond=site.step())
        say("the other one trains on")
        (site.tracks.folder / "peace").touch()
        out, _ = submitted.communicate(timeout=60)
        say("ended")
        acknowledged = changing.end()
        view = api.run(run)
    print(out)
    assert submitted.returncode == 0, out
    assert f"ended finished at step {STEPS} dropped 0" in out
    assert view.state == "finished"
    journaled = site.journaled(run)
    assert len(acknowledged) >= 9
    assert [reason for reason in journaled if reason in set(acknowledged)] == acknowledged
    assert faults(site.tracks.done, site.tracks.offers, lost) == []
    assert replay_recorded(site.home, run).equal


@pytest.mark.skipif(not LONG, reason="takes two minutes: TRIMTAB_LONG=1 runs it")
@pytest.mark.timeout(400)
def test_a_head_that_is_lost_takes_the_cluster_along_and_the_home_brings_all_back(tmp_path: Path) -> None:
    site = Site(tmp_path, LONG_STEPS)
    say = site.say
    with ExitStack() as ends:
        gone = ends.enter_context(site.headed())
        nodes = [ends.enter_context(site.node()) for _ in range(2)]
        with site.client() as api:
            token = api.new_token("outside", "admin").token
            term = api.system_health().controller.term
            ends.enter_context(site.submit(token, "survivor-1"))
            run = site.run_of("survivor-1")
            changing = Changing(site.url, token, run)
            site.trains(2, beyond=250)
            kept = [one.step for one in api.run(run).checkpoints]
        say(f"trains, checkpoints at {kept}")
        first = {one.pid for one in site.tracks.done}
        lose(gone)
        say("the head is gone")
        until(lambda: not any(map(alive, first)), 120)
        say("the workers have ended")
        until(lambda: all(node.poll() is not None for node in nodes), 120)
        say("the nodes have ended")
        acknowledged = changing.end()
    assert acknowledged
    assert set(acknowledged) <= set(site.journaled(run))
    left = site.step()  # without a head they have trained on until their nodes gave it up
    assert 250 < left < LONG_STEPS
    with ExitStack() as ends:
        ends.enter_context(site.headed())
        for _ in range(2):
            ends.enter_context(site.node())
        api = ends.enter_context(Client(site.url, token))  # tokens are kept
        assert api.system_health().controller.term == term + 1
        jobs = {job.submission_id: job.status for job in api.jobs()}
        say(f"up again; the run is {api.run(run).state}, the jobs {jobs}")
        assert jobs == {}
        until(lambda: api.run(run).state == "lost")  # nobody has heard of its driver
        say("lost")
        (site.tracks.folder / "peace").touch()
        again = ends.enter_context(site.submit(token, "survivor-2", run))
        out, _ = again.communicate(timeout=120)
        say("ended")
        view = api.run(run)
    assert again.returncode == 0, out
    assert (view.state, view.progress.steps) == ("finished", LONG_STEPS)
    assert set(acknowledged) <= set(site.journaled(run))
    resumed = min(one.step for one in site.tracks.done if one.pid not in first)
    say(f"it was resumed at step {resumed}")
    assert left - 100 <= resumed - 1 <= left
    assert faults(site.tracks.done, site.tracks.offers, first) == []
