"""Policies of the worker group under the real engine: bounds, pins, one version for workers and batch, resizes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest

from trimtab.controller import engine
from trimtab.controller.events import Observed, RunSpec, Versioned
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Reading
from trimtab.controller.run import Run, begin, fold
from trimtab.controller.sync import LEARNERS, SYNC_PARAMETER, WORKERS
from trimtab.controller.trajectory import Progress

PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=4096),
    HyperParameter(name=WORKERS, kind="integer", default=1, min=1, max=3),
    HyperParameter(name=LEARNERS, kind="integer", default=1, min=1, max=2),
    replace(SYNC_PARAMETER, default="sma"),
)


class Life:
    """A run whose group is resized one observation after it was wished."""

    def __init__(self, on_resize: Literal["hold", "scale"] = "hold", **policies: Mapping[str, Any]) -> None:
        spec = RunSpec(
            name="r", world_size=1, parameters=PARAMETERS, micro_batch=2, max_micro_batch=64, on_resize=on_resize
        )
        self.outcomes: list[tuple[str, str | None]] = []
        self.versions: list[Versioned] = []
        self.run: Run = begin("r", engine.create(spec, 1), 0.0)
        self.apply(engine.register(self.run, 1, [], "none", None, lambda run: self.look(run), None))
        for kind, params in policies.items():
            self.apply(engine.put_policy(self.run, 1, kind, kind, params, "active", "ann", ""))

    def apply(self, events: Any) -> None:
        for event in events:
            self.run = fold(self.run, event, 1.0)
            if isinstance(event, Observed):
                self.outcomes += [(one.proposal.reason, one.refused) for one in event.outcomes]
            if isinstance(event, Versioned):
                self.versions.append(event)

    def look(self, run: Run) -> Observation:
        """Every rank takes 1 ms a sample; the group 10 ms a step."""
        settings = run.version.at(run.progress)
        plan, step = settings.plan, run.progress.steps
        time = 0.01 + 1e-3 * plan.batch_size / plan.world_size
        metrics = {
            "step_time": (Reading(step, step, time, 0.01, 10),),
            "hp/batch_size": (Reading(step, step, float(plan.batch_size), 0.0, 10),),
        }
        noise = Noise(1000.0, 900.0, 1100.0, 1.0, 1.0, 10 * step, 0)
        return Observation(run.progress, settings.values, plan, metrics=metrics, noise=noise)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            step = self.run.progress.steps + 10
            self.run = self.run.at(Progress(step, 64 * step))
            self.apply(engine.observe(self.run, 1, self.look(self.run), None))
            values, version = self.run.version.at(self.run.progress).values, self.run.version
            wished = int(values[WORKERS]) * int(values[LEARNERS])
            if wished != version.batching.world_size:
                self.apply(engine.resize(self.run, 1, version.group + 1, wished, "newcomers are ready"))

    @property
    def values(self) -> Mapping[str, Any]:
        return self.run.version.at(self.run.progress).values


@pytest.mark.parametrize(("on_resize", "batch"), [("hold", 63), ("scale", 192)])
def test_workers_grow_to_the_bound(on_resize: Literal["hold", "scale"], batch: int) -> None:
    life = Life(on_resize, scale_workers={"window": 4})
    life.tick(40)
    assert life.values[WORKERS] == life.run.version.batching.world_size == 3
    assert life.values["batch_size"] == pytest.approx(batch, abs=3)
    *_, (reason, refused) = life.outcomes
    assert refused is None
    assert reason == "4 workers asked for, but a bound or a pin holds it at 3: workers stays at 3, and growing ends"
    assert len(life.outcomes) == 4


def test_a_pin_ends_it() -> None:
    life = Life(scale_workers={"window": 4})
    life.apply(engine.pin(life.run, 1, WORKERS, 1, "ann", ""))
    life.tick(40)
    assert [refused for _, refused in life.outcomes] == ["workers is pinned by ann", None]


def test_learners_beside_workers() -> None:
    life = Life("scale", learners={"window": 4, "max": 2})
    life.tick(40)
    assert (life.values[LEARNERS], life.values[WORKERS], life.run.version.batching.world_size) == (2, 1, 2)
    assert life.values["batch_size"] == 128


def test_workers_and_batch_come_in_one_version() -> None:
    life = Life(switch_sync={"step": 10})
    life.tick()
    assert life.values["sync"] == "allreduce"
    life.apply(engine.put_policy(life.run, 1, "g", "goodput", {"max_workers": 2}, "active", "ann", ""))
    life.tick(60)
    (both,) = (one for one in life.versions if {change.param for change in one.changes} >= {WORKERS, "batch_size"})
    assert {change.by for change in both.changes} == {"g"}
    assert life.values[WORKERS] == life.run.version.batching.world_size == 2
