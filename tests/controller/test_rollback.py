"""Roll back: what a checkpoint brings back of a run's values, what is refused, and what the controller tells."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from trimtab.controller.controller import TICK_S, Controller, PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.events import Checkpointed, Formed, RollbackFailed, RunSpec, decode, encode
from trimtab.controller.hyperparameters import HyperParameter, Rollback
from trimtab.controller.journal import MemoryJournal, MemoryStore
from trimtab.controller.metrics import MetricReader
from trimtab.controller.observation import Command, Observation, Proposal, Scale
from trimtab.controller.policies import JsonState, Policy
from trimtab.controller.policies.policy import Part
from trimtab.controller.records import COLUMNS, Branch, Records, Report
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Constant, Progress

BATCH = HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=4096)
LR = HyperParameter(name="lr", default=1.0, min=0.0, max=100.0)
SPEC = RunSpec(name="r", world_size=2, parameters=(BATCH,), micro_batch=16, max_micro_batch=64)


class Halves(Policy):
    """Halves the learning rate at every mark."""

    kind: ClassVar[str] = "halves"
    every: int = 100

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {"lr": "factor"}

    def initial(self) -> JsonState:
        return {"done": 0}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        due = observation.progress.steps // self.every
        if due <= state["done"]:
            return state, ()
        return {"done": due}, (Scale("lr", Constant(0.5**due), "a mark"),)


class Guards(Halves):
    """Goes back from step 250 to the newest checkpoint before 250, and halves at the same moment."""

    kind: ClassVar[str] = "guards"
    lasting: ClassVar[bool] = True

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        if state["done"] or observation.progress.steps < 250:
            return state, ()
        target = max(step for step in observation.checkpoints if step < 250)
        return {"done": 1}, (Scale("lr", Constant(0.5), "cut"), Command("rollback", "spikes", target, True))


@pytest.fixture(autouse=True)
def _kinds(install: Any) -> None:
    install(Halves, Guards)


class World:
    """A controller, and two ranks that report fifty steps at a time."""

    def __init__(self, path: Path, *policies: str) -> None:
        self.now = 1e6
        self.path = path
        self.store = MemoryStore()
        (path / "metrics").mkdir()
        self.controller = self.start()
        self.controller.create_run("r", SPEC, [PolicySpec(name=kind, kind=kind, params={}) for kind in policies])
        self.formation = self.controller.start_formation("r", 2, Progress()).number
        self.controller.register("r", self.formation, [LR], "sqrt", 10_000)
        self.step, self.branch, self.kept = 0, None, ()

    branch: Branch | None
    kept: tuple[int, ...]

    def start(self) -> Controller:
        return Controller(MemoryJournal(self.store), self.path / "metrics", lambda: self.now)

    @property
    def run(self) -> Any:
        return self.controller._live["r"].run

    def send(self, rank: int, steps: range, reports: Sequence[Report] = (), applied: Any = ()) -> None:
        n = len(steps)
        columns = {name: np.full(n, 1.0, np.float32) for name in COLUMNS}
        at = np.arange(steps.start, steps.stop, dtype=np.int64)
        columns["loss"] = (at + 1000 * self.formation).astype(np.float32)
        sent = Records("r", rank, self.formation, at, at * 64, 1e6 + at, columns, applied=tuple(applied), produced=n)
        self.controller.ingest(replace(sent, branch=self.branch, reports=tuple(reports)))

    def go(self, to: int) -> None:
        """Train, with a checkpoint at each hundred, of which the last two are kept."""
        while self.step < to:
            end = min(to, self.step + 50)
            self.now += 2 * TICK_S
            reports = []
            if end % 100 == 0:
                self.kept = (*self.kept, end)[-2:]
                reports = [Checkpointed(end, end * 64, self.run.version.number, self.kept)]
            for rank in (1, 0):
                self.send(rank, range(self.step + 1, end + 1), reports if rank == 0 else ())
            self.step = end

    def obey(self) -> None:
        """Both ranks make the roll back that is wanted."""
        wish = self.run.version.rollback
        left, self.step = Progress(self.step, self.step * 64), wish.step
        self.branch = Branch(wish.number, left, Progress(wish.step, wish.step * 64))
        self.formation += 1
        self.kept = tuple(step for step in self.kept if step <= wish.step)
        for rank in (1, 0):
            self.send(rank, range(0), applied=[(self.run.version.number, wish.step + 1)])

    def roll_back(self, step: int | None = None, skip_data: bool = False) -> int:
        return self.controller.command("r", Command("rollback", "why", step, skip_data), "ann")

    def lr(self) -> float:
        return float(self.run.version.at(self.run.progress).values["lr"])

    def refused(self, step: int | None = None) -> Refused:
        with pytest.raises(Refused) as error:
            self.roll_back(step)
        return error.value


def test_it_is_refused_where_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.refused().code == "no-checkpoint"
    world.go(350)
    refusal = world.refused(100)
    assert refusal.code == "checkpoint-not-kept"
    assert str(refusal) == "no checkpoint of step 100 is kept; there are those of 200, 300"
    assert "step" in refusal.fields
    world.roll_back(200)
    assert world.refused().code == "rolling-back"
    world.obey()
    world.controller.command("r", Command("stop", ""), "ann")
    assert world.refused(200).code == "run-stopping"
    world.controller.set_state("r", RunState.STOPPED)
    assert world.refused(200).code == "run-ended"


def test_checkpoints_are_listed_and_observed(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(320)
    shown = [(one.step, one.samples) for one in world.controller.run("r").checkpoints]
    assert shown == [(200, 12_800), (300, 19_200)]
    assert world.run.observation.checkpoints == (200, 300)


def test_values_and_memory_return_and_pins_stay(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(200)
    # the checkpoint of 200 is heard of before the tick at which the second mark is seen
    assert world.run.checkpoints[-1].policies["halves"].state == {"done": 1}
    world.go(350)
    assert (world.lr(), world.run.policies["halves"].state) == (0.125, {"done": 3})
    world.controller.pin("r", "batch_size", 128, "ann", "", None)
    version = world.roll_back(200)
    assert (world.lr(), world.run.policies["halves"].state) == (pytest.approx(0.5 * 2**0.5), {"done": 1})
    assert world.run.version.rollback == Rollback(version, 200)
    world.go(400)  # the ranks have not heard of it: nothing is decided meanwhile
    assert world.run.policies["halves"].state == {"done": 1}
    world.obey()
    assert (world.run.progress.steps, world.run.formation, world.run.rolling_back) == (200, 2, None)
    assert world.run.version.at(world.run.progress).plan.batch_size == 128
    world.go(450)
    assert world.run.policies["halves"].state == {"done": 4}


def test_what_was_measured_on_the_branch_that_is_left_is_void(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(350)
    world.roll_back(300)
    world.obey()
    late = world.formation - 1
    world.formation, world.branch = late, None
    world.send(0, range(351, 380))  # on its way for long
    world.formation, world.branch = late + 1, Branch(world.run.rolled_back, Progress(350), Progress(300, 300 * 64))
    world.go(330)
    world.controller.expire()
    reader = MetricReader(tmp_path / "metrics" / "r.metrics")
    loss = reader.query(["loss"], max_points=1000)["loss"]
    reader.close()
    assert loss.x.tolist() == list(range(1, 331))
    assert loss.last.tolist() == [1000 + step for step in range(1, 301)] + [2000 + step for step in range(301, 331)]
    rewinds = [item.data for item in world.controller.feed._items if '"rewind"' in item.data]
    assert len(rewinds) == 1


def test_the_audit_tells_from_where_to_where(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(340)
    version = world.roll_back(300, skip_data=True)
    world.go(345)
    world.obey()
    record = next(one for one in world.controller.changes("r") if one.version == version)
    change = next(one for one in record.changes if one.param == "rollback")
    assert (change.from_, change.to, change.by) == (345, 300, "ann")
    assert change.reason == "rolled back from step 345 to step 300: why"
    assert (record.status, record.applied) == ("applied", {0: 301, 1: 301})
    lr = next(one for one in record.changes if one.param == "lr")
    assert (lr.from_, lr.to, lr.reason) == (0.125, 0.25, "as it was at step 300")
    assert world.controller.run("r").state_reason == "rolled back from step 345 to step 300"


def test_a_policy_that_outlasts_it_keeps_its_memory_and_its_cut(tmp_path: Path) -> None:
    world = World(tmp_path, "halves", "guards")
    world.go(250)
    assert world.run.version.rollback == Rollback(world.run.version.number, 200, True)
    assert world.run.policies["guards"].state == {"done": 1}
    assert world.run.policies["halves"].state == {"done": 1}  # as it was when the checkpoint was heard of
    assert world.lr() == 0.5 * 0.5
    world.obey()
    world.go(450)
    assert world.run.formation == 2
    assert world.lr() == 0.5**4 * 0.5


def test_a_factor_whose_policy_is_gone_joins_the_base(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(250)
    assert world.lr() == 0.25
    world.controller.delete_policy("r", "halves", "ann", "", None)
    world.roll_back(200)
    lr = world.run.version.parameters["lr"]
    assert (lr.base, set(lr.factors)) == (Constant(0.5), {"batch"})


def test_a_policy_in_shadow_rolls_nothing_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.controller.put_policy("r", "guards", "guards", {}, "shadow", "ann", "", None)
    world.go(300)
    assert world.run.version.rollback is None
    assert world.run.policies["guards"].state == {"done": 1}


def test_what_a_policy_that_is_active_now_had_set_in_shadow_by_then_is_in_force(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.controller.put_policy("r", "halves", "halves", {}, "shadow", "ann", "", None)
    world.go(320)
    assert (world.lr(), world.run.policies["halves"].state) == (1.0, {"done": 3})
    world.controller.put_policy("r", "halves", "halves", {}, "active", "ann", "", None)
    assert world.lr() == 0.125
    version = world.roll_back(300)
    assert (world.lr(), world.run.policies["halves"].state) == (0.25, {"done": 2})
    record = next(one for one in world.controller.changes("r") if one.version == version)
    lr = next(one for one in record.changes if one.param == "lr")
    assert lr.reason == "as it was at step 300, with what halves had set in shadow by then"
    world.obey()
    world.go(330)
    assert world.lr() == 0.125
    world.controller.put_policy("r", "halves", "halves", {"every": 110}, "active", "ann", "", None)
    assert world.lr() == 0.125  # what was set in shadow came into force once


def test_what_a_policy_that_is_in_shadow_now_had_in_force_then_returns(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(220)
    world.controller.put_policy("r", "halves", "halves", {}, "shadow", "ann", "", None)
    world.go(350)
    assert (world.lr(), world.run.policies["halves"].state) == (0.25, {"done": 3})
    world.roll_back(200)
    assert (world.lr(), world.run.policies["halves"].state) == (0.5, {"done": 1})
    assert world.run.would_be("halves", world.run.progress)["lr"] == 0.5


def test_it_survives_a_restart_of_the_controller_at_any_moment(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(350)
    world.roll_back(200)
    asked = world.run
    world.controller = world.start()
    assert world.run == asked
    world.obey()
    made = world.run
    world.controller = world.start()
    assert world.run == made
    world.go(400)
    assert world.run.formation == 2


def test_a_formation_that_knows_of_the_roll_back_settles_it(tmp_path: Path) -> None:
    """The ranks went back, and were lost before the controller heard of it."""
    world = World(tmp_path)
    world.go(350)
    version = world.roll_back(300)
    world.controller.start_formation("r", 2, Progress(300, 300 * 64), version)
    assert world.run.rolling_back is None
    assert [one.step for one in world.run.checkpoints] == [200, 300]


def test_a_formation_that_does_not_know_of_it_leaves_it_to_be_made(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.go(350)
    world.roll_back(200)
    world.formation = world.controller.start_formation("r", 2, Progress(300, 300 * 64), 0).number
    world.step = 300
    assert world.run.rolling_back is not None
    world.obey()
    assert (world.run.formation, world.run.progress.steps, world.run.rolling_back) == (3, 200, None)


def test_ranks_that_could_not_go_back_are_told_of(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.go(350)
    version = world.roll_back(200)
    failed = RollbackFailed(version, Progress(360, 360 * 64), "it is gone")
    assert decode(encode(failed)) == failed
    world.send(0, range(0), [failed])
    assert world.run.rolling_back is None
    record = world.controller.changes("r")[-1]
    assert record.kind == "refused"
    assert record.changes[0].reason == "the ranks went on: it is gone"
    assert record.changes[0].by == "ann"


def test_a_run_that_ended_before_is_not_rolled_back_when_it_is_resumed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.go(350)
    version = world.roll_back(200)
    world.controller.set_state("r", RunState.FAILED, "oh")
    assert next(r for r in world.controller.changes("r") if r.version == version).status == "unapplied"
    world.controller.start_formation("r", 2, Progress(300, 300 * 64))
    assert world.run.rolling_back is None


def test_the_noise_is_as_it_was(tmp_path: Path) -> None:
    world = World(tmp_path, "halves")
    world.go(350)
    then = world.run.checkpoints[0].estimator
    world.roll_back(200)
    world.obey()
    assert world.run.estimator == then
    assert world.controller._live["r"].estimator.state() == then


def test_events_of_older_journals_still_decode() -> None:
    old = '{"formation":1,"world_size":2,"progress":{"steps":0,"samples":0},"event":"formed"}'
    assert decode(old) == Formed(1, 2, Progress(), 0, None)
