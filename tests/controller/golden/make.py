"""Writes the golden journals: `python tests/controller/golden/make.py [NAME ...]`, after a rule got a new number.

A file holds one run: the events of its journal, one a line, and before them a line with the rule numbers that its
policies had and with what the run's state was, for whoever reads the journal years later.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.controller.controller import TICK_S, Controller, PolicySpec
from trimtab.controller.events import Checkpointed, PolicyPut, RunSpec, decode
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import MemoryJournal, MemoryStore
from trimtab.controller.observation import Command, Horizon
from trimtab.controller.records import COLUMNS, Branch, Records, Report
from trimtab.controller.run import Run
from trimtab.controller.state import RunState
from trimtab.controller.sync import LEARNERS, SYNC_PARAMETER, WORKERS
from trimtab.controller.trajectory import Progress

FOLDER = Path(__file__).parent
RUN = "golden"
RANKS = 2
STEPS = 20  # in a message
NOISE = 400.0  # tr(Sigma) / |G|^2 of the made-up gradients [samples]
BATCH = HyperParameter(name="batch_size", kind="integer", default=64, min=16, max=1024)
DECLARED = (
    HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
    HyperParameter(name="momentum", default=0.9, min=0.0, max=0.999),
    HyperParameter(name="skip_sigma", default=0.0, min=0.0),
    HyperParameter(name="zclip", default=0.0, min=0.0),
)
SIZED = (
    HyperParameter(name=WORKERS, kind="integer", default=RANKS, min=1, max=8),
    HyperParameter(name=LEARNERS, kind="integer", default=1, min=1, max=4),
    replace(SYNC_PARAMETER, default="sma"),
)
START = Progress()
SPEC = RunSpec(
    name="golden", world_size=RANKS, parameters=(BATCH,), micro_batch=32, max_micro_batch=64, horizon=Horizon(200_000)
)


class Scene:
    """A run under a plain controller, with a clock of its own and ranks whose measurements are made up."""

    declared: tuple[HyperParameter, ...] = DECLARED
    ranks: int = RANKS
    slow: range = range(321, 801)  # steps at the end of a message in which rank 1 takes three times as long

    def __init__(self, path: Path, *given: PolicySpec, **policies: Mapping[str, Any]) -> None:
        self.store = MemoryStore()
        self.metrics = path / "metrics"
        self.metrics.mkdir()
        self.now = 1e6
        self.rng = np.random.default_rng(0)
        self.branch: Branch | None = None
        self.kept: tuple[int, ...] = ()
        self.controller = self.start()
        own = [PolicySpec(name=kind, kind=kind, params=params) for kind, params in policies.items()]
        self.controller.create_run(RUN, SPEC, [*given, *own])
        self.form()

    def start(self) -> Controller:
        return Controller(MemoryJournal(self.store), self.metrics, lambda: self.now)

    def restart(self) -> None:
        """As after a crash of the controller."""
        self.controller.close()
        self.controller = self.start()

    @property
    def run(self) -> Run:
        return self.controller._live[RUN].run

    def form(self, progress: Progress = START) -> None:
        """A worker group begins, from a checkpoint or from nothing."""
        self.step, self.samples = progress.steps, progress.samples
        self.formation = self.controller.start_formation(RUN, self.ranks, progress, self.run.rolled_back).number
        self.controller.register(RUN, self.formation, self.declared, "sqrt", 50_000)

    def tick(self, loss: float = 1.0, checkpoint: bool = False, **logged: float) -> None:
        """All ranks report `STEPS` steps; rank 0 may have logged a metric, and written a checkpoint at their end."""
        self.now += TICK_S
        batch = self.run.version.at(Progress(self.step, self.samples)).plan.batch_size
        steps = np.arange(self.step + 1, self.step + STEPS + 1, dtype=np.int64)
        samples = self.samples + batch * np.arange(1, STEPS + 1, dtype=np.int64)
        self.step, self.samples = int(steps[-1]), int(samples[-1])
        reports: tuple[Report, ...] = ()
        if checkpoint:
            self.kept = (*self.kept, self.step)[-3:]
            reports = (Checkpointed(self.step, self.samples, self.run.version.number, self.kept),)
        noise = self.rng.normal(1, 0.02, (3, STEPS))
        measured = {
            "loss": loss * noise[0],
            "grad_norm": np.sqrt((1 + NOISE / batch) * noise[1]),
            "local_sq": (1 + NOISE / batch * self.ranks) * noise[2],
            "local_batch": np.full(STEPS, batch / self.ranks),
            "batch_size": np.full(STEPS, batch),
            "hp/batch_size": np.full(STEPS, batch),
            "step_time": self.step_time(batch) * noise[0],
            "reduce_time": np.full(STEPS, 0.002),
        }
        for rank in range(self.ranks):
            slow = {"step_time": measured["step_time"] * (1 + 2 * rank)} if self.step in self.slow else {}
            columns = dict.fromkeys(COLUMNS, np.zeros(STEPS)) | measured | slow
            sent = Records(
                RUN,
                rank,
                self.formation,
                steps,
                samples,
                np.full(STEPS, self.now),
                {name: column.astype(np.float32) for name, column in columns.items()},
                {name: (steps[-2:-1], np.array([value], np.float32)) for name, value in logged.items() if rank == 0},
                held=self.run.version.number,
                produced=self.step,
                branch=self.branch,
                reports=reports if rank == 0 else (),
            )
            self.controller.ingest(sent)

    def step_time(self, batch: int) -> float:
        return 0.01 + 1e-5 * batch

    def go_back(self) -> None:
        """The ranks make the roll back that was asked for."""
        wish = self.run.version.rollback
        assert wish is not None
        (to,) = (one for one in self.run.checkpoints if one.step == wish.step)
        self.formation += 1
        self.branch = Branch(wish.number, Progress(self.step, self.samples), Progress(to.step, to.samples))
        self.kept = tuple(step for step in self.kept if step <= to.step)
        self.step, self.samples = to.step, to.samples

    def end(self) -> None:
        self.controller.set_state(RUN, RunState.FINISHED)

    def events(self) -> list[str]:
        return [entry.event for entry in self.store.entries]


class Sized(Scene):
    """The same with a size and a strategy that policies may change: each rank more brings less than the one before."""

    declared = (*DECLARED, *SIZED)
    slow = range(0)

    def step_time(self, batch: int) -> float:
        return 0.001 * self.ranks + 1e-3 * batch / self.ranks

    def tick(self, loss: float = 1.0, checkpoint: bool = False, **logged: float) -> None:
        """As ever; the group that was wished comes at the end."""
        super().tick(loss, checkpoint, **logged)
        values = self.run.version.at(Progress(self.step, self.samples)).values
        wished = int(values[WORKERS]) * int(values[LEARNERS])
        if wished != self.ranks:
            self.ranks = wished
            self.form(Progress(self.step, self.samples))


def demo(path: Path) -> Scene:
    """The policies of `make demo`: the batch grows, the learning rate warms up and is cut."""
    scene = Scene(path, noise_scale={}, warmup={"samples": 6400}, plateau={"patience": 2})
    for i in range(32):
        scene.tick(loss=2 / (1 + i / 8), **({"val_loss": max(1.0, 2 - i / 8)} if i % 2 else {}))
    scene.end()
    return scene


def whole(path: Path) -> Scene:
    """Every kind, and all that can happen between."""
    scene = Scene(
        path,
        noise_scale={"first_window": 20, "window": 60},
        warmup={"steps": 100},
        schedule={"param": "momentum", "shape": "linear", "horizon": 2000, "unit": "steps", "end": 0.5},
        plateau={"patience": 3, "factor": 0.5},
        early_stop={"patience": 1000},
        stragglers={"window": 2},
        spike_guard={"spikes": 1, "window": 16, "within": 60, "max_rollbacks": 2},
    )
    controller = scene.controller
    controller.put_policy(RUN, "goodput", "goodput", {"first_window": 20, "window": 60}, "shadow", "ann", "", None)
    controller.put_policy(RUN, "shade", "plateau", {"patience": 2, "factor": 0.5}, "shadow", "ann", "", None)
    for i in range(10):
        scene.tick(loss=2 - i / 20, checkpoint=i % 3 == 2, val_loss=1 + 0.01 * i)
    controller.pin(RUN, "lr", 0.02, "ann", "too high", None)
    scene.tick(val_loss=1.0)
    controller.put_policy(RUN, "plateau", "plateau", {"patience": 0, "factor": 0.9}, "active", "ann", "", None)
    for _ in range(2):
        scene.tick(val_loss=1.0)
    controller.unpin(RUN, "lr", "ann", "", None)
    controller.command(RUN, Command("checkpoint", "now"), "bob")
    scene.tick(checkpoint=True)
    for _ in range(5):
        scene.tick(loss=1.4)
    for _ in range(4):  # a spike: the guard goes back
        scene.tick(loss=90.0)
        if scene.run.rolling_back is not None:
            break
    scene.go_back()
    scene.tick(loss=1.4)
    scene.restart()
    scene.tick(loss=1.4, val_loss=0.9, checkpoint=True)
    scene.controller.put_policy(RUN, "noise_scale", "noise_scale", {}, "off", "ann", "", None)
    scene.controller.put_policy(RUN, "goodput", "goodput", {"window": 60}, "active", "ann", "let it", None)
    scene.controller.delete_policy(RUN, "plateau", "ann", "enough", None)
    scene.tick(loss=1.3)
    scene.controller.command(RUN, Command("rollback", "by hand"), "bob")
    scene.go_back()
    scene.tick(loss=1.4)
    scene.form(Progress(scene.kept[-1], scene.run.checkpoints[-1].samples))
    scene.controller.register_knob(RUN, HyperParameter(name="mixup", default=0.2, min=0.0, max=1.0))
    scene.tick(loss=1.4)
    scene.controller.register_knob(RUN, HyperParameter(name="smoothing", default=0.1, min=0.0, max=1.0))
    scene.tick(loss=1.3, val_loss=math.nan)
    scene.end()
    return scene


def sized(path: Path) -> Scene:
    """The kinds that change the group: workers, then learners, then workers with the batch; the strategy meanwhile."""
    scene = Sized(path, scale_workers={"window": 2, "max": 4}, switch_sync={"step": 250})
    controller = scene.controller
    for i in range(9):
        scene.tick(loss=2 - i / 20)
    controller.delete_policy(RUN, "scale_workers", "ann", "enough", None)
    controller.put_policy(RUN, "learners", "learners", {"window": 2, "gain": 0.3}, "active", "ann", "", None)
    for i in range(5):
        scene.tick(loss=1.4 - i / 20)
    controller.delete_policy(RUN, "learners", "ann", "enough", None)
    choosing = {"max_workers": 5, "first_window": 20, "window": 40}
    controller.put_policy(RUN, "goodput", "goodput", choosing, "active", "ann", "", None)
    for _ in range(20):
        scene.tick()
    scene.end()
    return scene


SCENES: Mapping[str, Callable[[Path], Scene]] = {"demo": demo, "whole": whole, "sized": sized}


def state(run: Run) -> dict[str, Any]:
    """What of a run's state a journal must give back."""
    return {
        "version": run.version.number,
        "values": dict(run.version.at(run.progress).values),
        "progress": asdict(run.progress),
        "state": run.state.value,
        "formation": run.formation,
        "checkpoints": [one.step for one in run.checkpoints],
        "policies": {name: dict(entry.state) for name, entry in run.policies.items()},
    }


def rules(events: list[str]) -> dict[str, int]:
    """The rule number of each kind in a journal."""
    puts = (event for event in map(decode, events) if isinstance(event, PolicyPut))
    return {put.kind: put.rule for put in puts}


def main() -> None:
    for name, scene in SCENES.items():
        if len(sys.argv) > 1 and name not in sys.argv:
            continue
        with tempfile.TemporaryDirectory() as path:
            made = scene(Path(path))
            head = json.dumps({"rules": rules(made.events()), "state": state(made.run)})
            (FOLDER / f"{name}.jsonl").write_text("\n".join([head, *made.events()]) + "\n")
            made.controller.close()


if __name__ == "__main__":
    main()
