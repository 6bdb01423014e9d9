"""Runs that look like real ones, made by a real controller and its policies in seconds, without Ray.

Each step's loss and gradient follow a simple law of the samples seen, the values in force and the batch; all else
(decisions, versions, the audit, metrics on disk) is what the controller makes of it.
"""

import asyncio
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

from plain import LocalGateway, PlainJobServer

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.serving import Server, bind
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens
from trimtab.controller.controller import Controller, PolicySpec
from trimtab.controller.events import Checkpointed, RunSpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.jobs.server import JobStatus
from trimtab.controller.journal import MemoryJournal
from trimtab.controller.observation import Horizon
from trimtab.controller.overrides import VARIABLE, Overrides
from trimtab.controller.records import COLUMNS, Records, Regrouped
from trimtab.controller.state import RunState
from trimtab.controller.sync import SYNC_PARAMETER
from trimtab.controller.trajectory import Progress
from trimtab.dashboards import STATIC

JOB = "nightly-41"
UNNAMED = "trimtab-5e1c0d9a44b7f02c6a8e31d7"  # as the server makes an id
ROWS = 10  # steps a message
STEP_S = 0.05
MICRO = 16
TOOK_S = 240.0  # about what `record` takes by its own clock

PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=32, min=4, max=2048, unit="samples"),
    HyperParameter(name="lr", default=0.002, min=0.0, max=0.2),
    HyperParameter(name="weight_decay", default=0.01, min=0.0, max=1.0),
    HyperParameter(name="beta1", default=0.9, min=0.0, max=0.9999),
    HyperParameter(name="workers", kind="integer", default=2, min=1, max=8, unit="places"),
    HyperParameter(name="learners", kind="integer", default=1, min=1, max=2, unit="a place"),
    SYNC_PARAMETER,
)


class Clock:
    """The controller's, moved by hand."""

    def __init__(self) -> None:
        self.now = time.time() - TOOK_S

    def __call__(self) -> float:
        return self.now


@dataclass
class Simulated:
    """A run that `train` takes further."""

    controller: Controller
    clock: Clock
    id: str
    rng: np.random.Generator
    ranks: int = 2
    formation: int = 1
    step: int = 0
    samples: int = 0
    applied: int = 1
    floor: float = 1.3

    def train(self, steps: int) -> None:
        for _ in range(0, steps, ROWS):
            self._message()
        for run, live in self.controller._live.items():
            if not live.run.state.ended:
                self.controller.heartbeat(run)
        self.controller.expire()

    def _message(self) -> None:
        self.clock.now += ROWS * STEP_S
        view = self.controller.hyperparameters(self.id)
        values: dict[str, Any] = {one.name: one.value for one in view.hyperparameters}
        batch = int(values["batch_size"])
        numbers = np.arange(self.step + 1, self.step + 1 + ROWS, dtype=np.int64)
        samples = self.samples + batch * np.arange(1, ROWS + 1, dtype=np.int64)
        version = view.hyperparameters[0].version
        news = ((version, int(numbers[0])),) if version > self.applied else ()
        self.applied = version
        for rank in range(self.ranks):
            columns = self._columns(rank, samples, values, batch)
            logged = {}
            if rank == 0 and numbers[-1] % 50 == 0:
                logged = {"val_loss": (numbers[-1:], np.float32([self._law(samples[-1]) + 0.02]))}
            self.controller.ingest(
                Records(
                    self.id,
                    rank,
                    self.formation,
                    numbers,
                    samples,
                    self.clock.now + (np.arange(ROWS) - ROWS) * STEP_S,
                    columns,
                    logged,
                    applied=news,
                    held=version,
                    produced=int(numbers[-1]),
                )
            )
        self.step, self.samples = int(numbers[-1]), int(samples[-1])

    def _law(self, samples: float) -> float:
        return float(self.floor + 4.4 * math.exp(-samples / 3500) + 1.2 * math.exp(-samples / 40_000))

    def _columns(self, rank: int, samples: np.ndarray, values: dict[str, Any], batch: int) -> dict[str, np.ndarray]:
        even = np.ones(ROWS, np.float32)
        jitter = self.rng.normal(0, 1, (5, ROWS)).astype(np.float32)
        law = np.array([self._law(one) for one in samples], np.float32)
        noise_scale = 6 + 160 * (1 - math.exp(-float(samples[-1]) / 30_000))
        local = batch / self.ranks
        slow = 1.9 if rank == self.ranks - 1 and self.step % 400 > 330 else 1.0
        spikes = 1 + 3 * (self.rng.random(ROWS) > 0.98)
        columns = {name: np.full(ROWS, np.nan, np.float32) for name in COLUMNS} | {
            "loss": law + 0.35 * jitter[0] / np.sqrt(np.float32(batch)),
            "grad_norm": np.sqrt(np.float32(1 + noise_scale / batch)) * (1 + 0.04 * jitter[1]),
            "local_sq": np.float32(1 + noise_scale / local) * (1 + 0.05 * jitter[2]),
            "local_batch": np.float32(local) * even,
            "batch_size": np.float32(batch) * even,
            "step_time": np.float32((0.02 + 0.0003 * batch) * slow) * (1 + 0.08 * np.abs(jitter[3])) * spikes,
            "data_time": np.float32(0.0012) * (1 + 0.2 * np.abs(jitter[4])),
            "reduce_time": np.float32(0.004) * (1 + 0.2 * np.abs(jitter[2])),
        }
        if rank == 0:
            columns |= {
                f"hp/{name}": np.float32(value) * even for name, value in values.items() if not isinstance(value, str)
            }
        return {name: np.asarray(column, np.float32) for name, column in columns.items()}

    def checkpoint(self) -> None:
        self._report(reports=(Checkpointed(self.step, self.samples, self.applied, (self.step,)),))

    def lose(self, ranks: int, cause: Any = "loss", pause_s: float = 0.42) -> None:
        """Another formation begins in place, of `ranks` ranks."""
        self.formation += 1
        lost = max(0, self.ranks - ranks) if cause == "loss" else 0
        self.ranks = ranks
        self._report(branch=Regrouped(cause, ranks, Progress(self.step, self.samples), pause_s, lost))

    def _report(self, **told: Any) -> None:
        empty = np.zeros(0, np.int64)
        none = {name: np.zeros(0, np.float32) for name in COLUMNS}
        base = Records(self.id, 0, self.formation, empty, empty, np.zeros(0), none, held=self.applied)
        self.controller.ingest(replace(base, **told))


def policies(*texts: str) -> list[PolicySpec]:
    """`kind`, or `shadow:kind`."""
    found = []
    for text in texts:
        mode, _, kind = text.rpartition(":")
        found.append(PolicySpec(name=kind, kind=kind, params={}, mode="shadow" if mode else "active"))
    return found


def begin(
    controller: Controller,
    clock: Clock,
    run: str,
    given: Sequence[PolicySpec] = (),
    ranks: int = 2,
    seed: int = 0,
    host: Any = "",
    owner: str = "alice",
    **hp: float,
) -> Simulated:
    parameters = tuple(replace(one, default=({"workers": ranks} | hp).get(one.name, one.default)) for one in PARAMETERS)
    spec = RunSpec(
        name=run.rsplit("-", 1)[0].replace("-", "_"),
        world_size=ranks,
        parameters=parameters,
        micro_batch=MICRO,
        max_micro_batch=MICRO,
        horizon=Horizon(400_000),
        seed=seed,
        script="examples/bytes_lm.py",
        host=host,
        owner=owner,
    )
    controller.create_run(run, spec, given)
    controller.start_formation(run, ranks, Progress())
    controller.register(run, 1, parameters, "adascale", 50_000)
    return Simulated(controller, clock, run, np.random.default_rng(seed), ranks=ranks)


FIRST, SECOND = "bytes-lm-3f9a", "bytes-lm-6b84"


def record(metrics: Path, more: int = 24) -> tuple[Controller, Clock, dict[str, Simulated]]:
    """A controller with two runs to look at closely, two more, and `more` small ones in all states."""
    clock = Clock()
    metrics.mkdir(parents=True, exist_ok=True)
    controller = Controller(MemoryJournal(), metrics, clock, PlainJobServer())
    states = [RunState.FINISHED, RunState.STOPPED, RunState.FAILED, RunState.LOST, RunState.PAUSED]
    for i in range(more):
        one = begin(
            controller,
            clock,
            f"{('digits', 'sweep', 'mnist')[i % 3]}-{i:04x}",
            policies("warmup"),
            1,
            i,
            owner=("alice", "bob")[i % 2],
        )
        one.train(40 + 20 * (i % 4))
        controller.set_state(one.id, states[i % len(states)], "the loss is not finite" if i % 5 == 2 else "")
    second = begin(controller, clock, SECOND, policies("warmup", "plateau"), seed=2, batch_size=64, lr=0.004)
    second.floor = 1.38
    second.train(900)
    controller.set_state(SECOND, RunState.FINISHED, "")
    ddp = begin(controller, clock, "vision-9d01", policies("warmup"), 4, 5, "torchrun")
    ddp.train(200)
    first = begin(controller, clock, FIRST, policies("noise_scale", "warmup", "plateau", "shadow:goodput"), seed=1)
    first.train(500)
    first.checkpoint()
    controller.pin(FIRST, "weight_decay", 0.001, "alice", "by hand: the embedding shrinks", None)
    first.train(200)
    first.lose(1)
    first.train(60)
    first.lose(2, "resize", 0.31)
    first.train(240)
    return controller, clock, {one.id: one for one in (first, second, ddp)}


@dataclass(frozen=True)
class Served:
    """The page over recorded runs, of which the first goes on."""

    url: str
    token: str
    hub: Hub
    gateway: LocalGateway
    runs: dict[str, Simulated]

    @property
    def door(self) -> str:
        """The address that signs in."""
        return f"{self.url}/#token={self.token}"


@contextmanager
def served(home: Path, more: int = 24, role: Role = Role.ADMIN) -> Iterator[Served]:
    """Serve `record`'s runs in a thread; the first trains 10 steps twice a second."""
    controller, _, runs = record(home / "metrics", more)
    gateway = LocalGateway(controller, home / "metrics")
    tokens = Tokens(home / "tokens.json")
    hub = Hub(gateway)
    app = create_app(gateway, tokens, hub, STATIC, Hosts("127.0.0.1"))
    listening = bind("127.0.0.1", 0)
    server = Server(app, hub)

    async def go_on() -> None:
        while True:
            await asyncio.sleep(0.5)
            runs[FIRST].train(ROWS)

    async def serve() -> None:
        training = asyncio.create_task(go_on())
        await server.serve([listening])
        training.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", tokens.new("admin", role), hub, gateway, runs)
    server.should_exit = True
    thread.join(10)


def keep_jobs(shown: Served) -> None:
    """Four jobs, one of which goes on and has said something."""
    jobs = shown.gateway.jobs
    ended: dict[str, JobStatus] = {"nightly-40": "SUCCEEDED", UNNAMED: "FAILED", "probe-7": "STOPPED"}
    commands = ["python train.py --width 256", "python sweep.py --trial 3", "python probe.py", "python train.py"]
    plateau = PolicySpec(name="plateau", kind="plateau", params={"patience": 5})
    shadow = PolicySpec(name="goodput", kind="goodput", params={}, mode="shadow")
    given = {VARIABLE: Overrides({"lr": 0.2}, (plateau, shadow)).encode()}
    for minutes, (job, command) in enumerate(zip([*ended, JOB], commands, strict=True)):
        environment = {"working_dir": "gcs://_ray_pkg_41.zip", "env_vars": {"DATA": "s3://data", **given}}
        body = {"entrypoint": command, "submission_id": job, "runtime_env": environment if job == JOB else {}}
        answer = httpx.post(f"{shown.url}/api/v1/jobs", json=body, headers={"Authorization": f"Bearer {shown.token}"})
        answer.raise_for_status()
        start = int(1e3 * (time.time() - 60 * (200 - 60 * minutes)))
        end = start + 2_400_000 if job in ended else None
        jobs.known[job] = jobs.known[job].model_copy(update={"start_time": start, "end_time": end})
    for job, status in ended.items():
        jobs.end(job, status)
    lines = (f"step {step:,}: loss {1.3 + 4.4 * math.exp(-step / 110):.3f}\n" for step in range(20, 800, 20))
    jobs.printed[JOB] = ["\x1b[32mdata are there: 60,000 samples\x1b[0m\n", *lines]


if __name__ == "__main__":  # to look at the page: python tests/dashboards/recorded.py
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as shown:
        sys.stdout.write(f"{shown.door}\n")
        sys.stdout.flush()
        while True:
            time.sleep(60)
