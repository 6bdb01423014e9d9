"""The controller's account of itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from trimtab.controller.controller import Controller
from trimtab.controller.events import RunSpec
from trimtab.controller.health import MAX_LIVE
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import MemoryJournal
from trimtab.controller.meter import Timings
from trimtab.controller.observation import Observation, Proposal
from trimtab.controller.policies import JsonState
from trimtab.controller.records import COLUMNS, Records
from trimtab.controller.run import MAX_FAULTS, Absent
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress

PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=32, min=4, max=4096, unit="samples"),
    HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
)
SPEC = RunSpec(name="two", world_size=2, parameters=PARAMETERS, micro_batch=8, max_micro_batch=8)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def controller(tmp_path: Path, clock: Clock) -> Controller:
    controller = Controller(MemoryJournal(), tmp_path, clock)
    controller.create_run("two", SPEC)
    controller.start_formation("two", 2, Progress())
    return controller


def records(rank: int, steps: range, *, dropped: int = 0, **rest: object) -> Records:
    n = len(steps)
    columns = {name: np.ones(n, np.float32) for name in COLUMNS}
    numbers = np.arange(steps.start, steps.stop, dtype=np.int64)
    made = Records("two", rank, 1, numbers, numbers * 32, numbers * 0.1, columns, produced=steps.stop - 1)
    return replace(made, dropped=dropped, training_s=0.1 * (steps.stop - 1), control_s=0.001 * (steps.stop - 1), **rest)


def test_timings_are_counted_in_buckets_that_include_their_bound() -> None:
    timings = Timings((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        timings.note(seconds)
    view = timings.view()
    assert [(one.le, one.count) for one in view.buckets] == [(0.1, 2), (1.0, 3)]
    assert (view.count, view.sum_s, view.max_s) == (4, pytest.approx(7.65), 7.0)
    assert Timings((1.0,)).view().median_s is None


def test_every_record_is_stored_dropped_or_on_its_way(controller: Controller) -> None:
    for rank in (0, 1):
        controller.ingest(records(rank, range(1, 11)))
    again = records(0, range(11, 21), logged={"val": (np.array([12]), np.array([1.0], np.float32))})
    controller.ingest(replace(again, produced=21))
    controller.ingest(replace(again, produced=21))  # its answer was lost
    controller.ingest(records(1, range(16, 21), dropped=5))
    counted = controller.health().records
    assert (counted.produced, counted.dropped, counted.stored) == (41, 5, 36)


def test_a_new_formation_counts_on(controller: Controller) -> None:
    for rank in (0, 1):
        controller.ingest(records(rank, range(1, 11)))
    controller.start_formation("two", 2, Progress(5, 160))
    controller.ingest(replace(records(0, range(1, 4)), formation=2))
    assert controller.health().records.produced == 23


def test_after_a_restart_only_what_it_has_taken_in_itself_counts(tmp_path: Path, clock: Clock) -> None:
    journal = MemoryJournal()
    first = Controller(journal, tmp_path, clock)
    first.create_run("two", SPEC)
    first.start_formation("two", 2, Progress())
    for rank in (0, 1):
        first.ingest(records(rank, range(1, 101)))
    first.close()
    second = Controller(journal, tmp_path, clock)
    second.ingest(records(0, range(111, 121), dropped=10))
    second.ingest(records(0, range(121, 131), dropped=10))
    counted = second.health().records
    assert (counted.produced, counted.stored, counted.dropped) == (30, 20, 10)
    assert second.health().term == 2


def test_decisions_are_timed_until_the_last_rank_has_begun(controller: Controller, clock: Clock) -> None:
    version = controller.pin("two", "lr", 0.01, "me", "", None).version
    clock.now += 0.2
    controller.ingest(records(0, range(1, 11), applied=((version, 3),)))
    assert controller.health().decision_to_applied.count == 0
    clock.now += 0.3
    controller.ingest(records(1, range(1, 11), applied=((version, 3),)))
    timed = controller.health().decision_to_applied
    assert (timed.count, timed.sum_s) == (1, pytest.approx(0.5))
    controller.ingest(records(1, range(11, 21), applied=((version, 3),)))
    controller.set_state("two", RunState.FINISHED)
    assert controller.health().decision_to_applied.count == 1


def test_a_run_is_told_with_its_pace_and_overhead(controller: Controller, clock: Clock) -> None:
    controller.expire(0.25)
    for rank in (0, 1):
        controller.ingest(records(rank, range(1, 51)))
    clock.now += 10
    controller.expire(0.0)
    health = controller.health()
    (run,) = health.live
    assert (run.step, run.steps_per_s, run.batch_size, run.lr, run.world_size) == (50, 5.0, 32, 0.1, 2)
    assert run.overhead == pytest.approx(0.01)
    assert (health.lag.count, health.lag.max_s, health.uptime_s) == (2, 0.25, 10)
    assert (health.runs[RunState.RUNNING], health.runs[RunState.FAILED]) == (1, 0)
    assert health.ticks == 1
    assert health.events["runs"] > 0
    clock.now += 20
    for _ in range(11):
        controller.expire()
    assert controller.health().live[0].steps_per_s == 0.0


class Faulty(Absent):
    """Always raises."""

    kind: ClassVar[str] = "faulty"

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        raise ValueError("always")


def test_a_run_s_refused_proposals_and_disabled_policies_are_counted(
    controller: Controller, clock: Clock, install: Callable[..., None]
) -> None:
    install(Faulty)
    steep = (
        "warmup",
        {"start": 0.001, "steps": 100},
    )  # at once further than the guard rails let it, which it asks for once
    controller.put_policy("two", "steep", *steep, "active", "me", "", None)
    controller.put_policy("two", "unseen", *steep, "shadow", "me", "", None)
    controller.put_policy("two", "faulty", "faulty", {}, "active", "me", "", None)
    for tick in range(MAX_FAULTS):
        (run,) = controller.health().live
        assert (run.refused, run.disabled) == (min(tick, 1), 0)
        clock.now += 1
        for rank in (0, 1):
            controller.ingest(records(rank, range(10 * tick + 1, 10 * tick + 11)))
    (run,) = controller.health().live
    assert (run.refused, run.disabled) == (1, 1)


def test_only_so_many_runs_are_told_of(controller: Controller) -> None:
    for i in range(MAX_LIVE):
        controller.create_run(f"run-{i}", SPEC)
    controller.create_run("ended", SPEC)
    controller.set_state("ended", RunState.STOPPED)
    health = controller.health()
    assert (len(health.live), health.live_omitted) == (MAX_LIVE, 1)
    assert "ended" not in [run.id for run in health.live]
