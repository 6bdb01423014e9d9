import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from trimtab.controller.controller import IDLE_TICK_S, LOST_S, TICK_S, Controller, PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.events import Formed, Mode, Observed, RunSpec, Stated, Versioned, decode
from trimtab.controller.hyperparameters import HyperParameter, Version
from trimtab.controller.journal import Fenced, Journal, JournalUnavailable, MemoryJournal, MemoryStore, SqliteJournal
from trimtab.controller.metrics import MetricReader
from trimtab.controller.observation import Command, Observation, Proposal, Scale, Set
from trimtab.controller.policies import JsonState, Policy
from trimtab.controller.policies.policy import Part
from trimtab.controller.records import COLUMNS, Records
from trimtab.controller.run import Absent
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Constant, Progress

BATCH = HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=4096)
LR = HyperParameter(name="lr", default=0.1, min=0.0, max=10.0)
SPEC = RunSpec(name="r", world_size=2, parameters=(BATCH,), micro_batch=16, max_micro_batch=64)
WARMUP = PolicySpec(name="warmup", kind="warmup", params={"samples": 6400})


class Halves(Policy):
    """Halves the learning rate whenever it reads a loss, and notes all it has read."""

    kind: ClassVar[str] = "halves"
    metric: str = "loss"

    def reads(self) -> frozenset[str]:
        return frozenset({self.metric})

    def writes(self) -> Mapping[str, Part]:
        return {"lr": "factor"}

    def initial(self) -> JsonState:
        return {"factor": 1.0, "read": []}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        new = [[r.step, r.value, r.count] for r in observation.metrics.get(self.metric, ())]
        if not new:
            return state, ()
        after = {"factor": state["factor"] / 2, "read": state["read"] + new}
        return after, (Scale("lr", Constant(after["factor"]), "a loss was read"),)


class Required(Policy):
    """Has a parameter without default, and raises when asked."""

    kind: ClassVar[str] = "required"
    param: str

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {self.param: "base"}

    def initial(self) -> JsonState:
        return {}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        raise ValueError(self.param)


class Grows(Policy):
    """Asks for twice the batch, and for a stop at 1024."""

    kind: ClassVar[str] = "grows"

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {"batch_size": "base"}

    def initial(self) -> JsonState:
        return {}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        batch = observation.plan.batch_size
        if batch >= 1024:
            return state, (Command("stop", "large enough"),)
        return state, (Set("batch_size", Constant(batch * 2), "more"),)


@pytest.fixture(autouse=True)
def _kinds(install: Any) -> None:
    install(Halves, Required, Grows)


class Fails:
    """A journal whose disk may be full."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.full = False

    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        if self.full:
            raise JournalUnavailable("the disk is full")
        return self._journal.append(term, time, run, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


class World:
    """A controller with a clock of its own, and ranks that step."""

    def __init__(self, path: Path, journal: Journal | None = None) -> None:
        self.now = 1_000_000.0
        self.path = path
        self.store = MemoryStore()
        self.journal = Fails(journal or MemoryJournal(self.store))
        (path / "metrics").mkdir(exist_ok=True)
        self.controller = self.start(self.journal)
        self.formation = 0
        self.step = 0
        self.produced = 0

    def start(self, journal: Any) -> Controller:
        return Controller(journal, self.path / "metrics", lambda: self.now)

    def begin(self, *policies: PolicySpec, spec: RunSpec = SPEC, step: int = 0) -> Version:
        self.controller.create_run("r", spec, policies)
        return self.form(step)

    def form(self, step: int = 0) -> Version:
        self.step = step
        self.formation = self.controller.start_formation("r", 2, Progress(step, 64 * step)).number
        return self.controller.register("r", self.formation, [LR], "linear", 5000)

    def steps(self, count: int = 2, ranks: Sequence[int] = (0, 1), wait_s: float = TICK_S, **more: Any) -> None:
        self.now += wait_s
        self.step += count
        self.produced += count
        for rank in ranks:
            self.controller.ingest(self.message(rank, count, **more))

    def message(self, rank: int, count: int, applied: Any = (), logged: Any = None, **columns: float) -> Records:
        steps = np.arange(self.step - count + 1, self.step + 1)
        filled = {name: np.full(count, columns.get(name, 1.0), np.float32) for name in COLUMNS}
        filled |= {"local_batch": np.full(count, 32, np.float32), "batch_size": np.full(count, 64, np.float32)}
        logs = {
            name: (np.array([self.step - 1], np.int64), np.array([value], np.float32))
            for name, value in (logged or {}).items()
        }
        times = np.full(count, self.now)
        return Records(
            "r", rank, self.formation, steps, steps * 64, times, filled, logs, tuple(applied), produced=self.produced
        )

    @property
    def state(self) -> RunState:
        return self.controller.run("r").state

    @property
    def version(self) -> Version:
        return self.controller._live["r"].run.version

    def value(self, name: str) -> Any:
        (view,) = (v for v in self.controller.hyperparameters("r").hyperparameters if v.name == name)
        return view.value

    def events(self, kind: type) -> list[Any]:
        return [e for e in (decode(entry.event) for entry in self.store.entries) if isinstance(e, kind)]

    def alerts(self) -> list[str]:
        items = [item for item in self.controller.feed._items if item.topic == "alerts"]
        return [json.loads(item.data)["message"] for item in items]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.controller.close()


# ---- the life of a run ---------------------------------------------------------------------------------------------


def test_a_run_begins_with_what_its_policies_say(world: World) -> None:
    first = world.controller.create_run("r", SPEC, [WARMUP])
    assert (first.number, world.state) == (1, RunState.PENDING)
    formation = world.controller.start_formation("r", 2, Progress())
    assert (formation.number, formation.version, world.state) == (1, first, RunState.STARTING)
    version = world.controller.register("r", 1, [LR], "linear", 5000)
    assert version.number == 2
    assert version.at(Progress()).values["lr"] == pytest.approx(0.001)
    (versioned,) = world.events(Versioned)
    assert [(c.param, c.by) for c in versioned.changes] == [("lr", "warmup")]


def test_what_a_policy_would_set_is_told_as_long_as_it_is_in_shadow(world: World) -> None:
    key = "shadow/halves/lr"

    def put(mode: Mode) -> None:
        world.controller.put_policy("r", "halves", "halves", {}, mode, "ann", "", None)

    def told() -> list[tuple[int, Any]]:
        published = [json.loads(item.data) for item in world.controller.feed._items if item.topic == "metrics"]
        points = [payload["sparse"][key] for payload in published if key in payload.get("sparse", {})]
        return [pair for one in points for pair in zip(one["step"], one["value"], strict=True)]

    world.begin(PolicySpec(name="halves", kind="halves", params={}, mode="shadow"))
    world.steps(10)  # at 10
    world.steps(10)
    put("active")
    world.steps(10)  # at 30
    world.steps(10)
    put("shadow")
    world.steps(10)  # at 50
    put("off")
    world.form(50)  # before a tick has told of its end
    world.steps(10)
    values = told()
    assert [step for step, _ in values] == [0, 10, 20, 30, 50, 50]
    assert [value == "NaN" for _, value in values] == [False, False, False, True, False, True]
    assert [value for _, value in values[:3]] == pytest.approx([0.1, 0.05, 0.025])
    world.controller.expire()
    reader = MetricReader(world.path / "metrics" / "r.metrics")
    stored = reader.query([key])[key]
    assert stored.x.tolist() == [0, 10, 20, 30, 50, 50]
    assert np.isnan(stored.last).tolist() == [False, False, False, True, False, True]
    reader.close()


def test_records_become_a_decision_that_reaches_who_waits(world: World) -> None:
    async def scene() -> tuple[Version, ...]:
        world.begin(PolicySpec(name="halves", kind="halves", params={}))
        number = world.version.number
        waiting = asyncio.create_task(world.controller.next_versions("r", number, 5))
        await asyncio.sleep(0.01)
        world.steps(25, loss=2.0)
        return await waiting

    (version,) = asyncio.run(scene())
    assert version.at(Progress(25, 1600)).values["lr"] == pytest.approx(0.05)
    assert world.state is RunState.RUNNING
    (observed,) = (o for o in world.events(Observed) if o.observation.metrics)
    (reading,) = observed.observation.metrics["loss"]
    assert (reading.value, reading.count) == (2.0, 25)


def test_all_versions_that_were_missed_come_in_order(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    for _ in range(3):
        world.steps()
    numbers = [v.number for v in asyncio.run(world.controller.next_versions("r", 2, 0))]
    assert numbers == [3, 4, 5]
    assert asyncio.run(world.controller.next_versions("r", 5, 0.01)) == ()


def test_ticks_keep_their_pace(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    for _ in range(10):
        world.steps(2, wait_s=TICK_S / 5)
    assert len(world.events(Observed)) == 1 + 2
    world.controller.put_policy("r", "halves", "halves", {}, "off", "ann", "", None)
    before = len(world.events(Observed))
    for _ in range(10):
        world.steps(2, wait_s=IDLE_TICK_S / 5)
    assert len(world.events(Observed)) == before + 2


def test_a_tick_needs_a_new_step(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    world.steps()
    before = len(world.events(Observed))
    for _ in range(5):
        world.steps(0, applied=[])
    assert len(world.events(Observed)) == before


def test_a_policy_may_grow_the_batch_and_stop_the_run(world: World) -> None:
    world.begin(PolicySpec(name="grows", kind="grows", params={}))
    for _ in range(5):
        world.steps()
    assert (world.value("batch_size"), world.state) == (1024, RunState.STOPPING)
    assert world.value("lr") == pytest.approx(1.6)
    assert world.controller.run("r").state_reason == "large enough"
    world.controller.set_state("r", RunState.STOPPED)
    assert {r.status for r in world.controller.changes("r") if r.kind == "version"} == {"unapplied"}


def test_the_last_steps_are_seen_when_the_run_ends(world: World) -> None:
    world.begin()
    world.steps(3, ranks=[0], logged={"val": 0.5}, wait_s=0)
    world.controller.set_state("r", RunState.FINISHED)
    assert world.controller.run("r").progress.steps == 3
    assert [e.state for e in world.events(Stated)][-1] is RunState.FINISHED
    world.steps(3)
    assert world.controller.run("r").progress.steps == 3


# ---- metrics that are late, doubled or not finite ------------------------------------------------------------------


def test_a_message_that_comes_twice_steers_once(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={"metric": "val"}))
    for _ in range(4):
        world.steps(2, logged={"val": 3.0})
        world.controller.ingest(world.message(0, 2, logged={"val": 3.0}))
    read = world.controller._live["r"].run.policies["halves"].state["read"]
    assert read == [[step, 3.0, 1] for step in (1, 3, 5, 7)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_no_policy_and_breaks_no_json(world: World, value: float) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    number = world.version.number
    world.steps(5, loss=value, grad_norm=value, local_sq=value, step_time=value)
    assert world.version.number == number
    for item in world.controller.feed._items:
        json.loads(item.data, parse_constant=pytest.fail)
    for view in (world.controller.run("r"), world.controller.runs()[0][0]):
        json.loads(view.model_dump_json(), parse_constant=pytest.fail)
    for entry in world.store.entries:
        json.loads(entry.event, parse_constant=pytest.fail)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_counted_and_may_stop_the_run(world: World, value: float) -> None:
    early_stop = PolicySpec(name="early_stop", kind="early_stop", params={"metric": "val"})
    world.begin(early_stop, PolicySpec(name="halves", kind="halves", params={"metric": "hp/lr"}))
    world.steps(3, logged={"val": 0.5})
    world.steps(3, logged={"val": value}, loss=value)
    assert world.state is RunState.STOPPING
    assert world.controller.run("r").state_reason == "val: 1 value not finite; the best was 0.5"
    assert [event.observation.nonfinite for event in world.events(Observed)][-1] == {"val": 1}


def test_a_metric_of_every_step_is_counted_too(world: World) -> None:
    world.begin(PolicySpec(name="early_stop", kind="early_stop", params={"metric": "loss"}))
    world.steps(3, loss=math.nan)
    assert world.controller.run("r").state_reason == "loss: 3 values not finite; nothing was read before"


def test_a_straggler_is_told_and_nothing_is_changed(world: World) -> None:
    world.begin(PolicySpec(name="stragglers", kind="stragglers", params={"window": 2}))
    version = world.version.number
    for _ in range(4):
        world.now += TICK_S
        world.step += 5
        for rank, waits in ((0, 0.75), (1, 0.25)):
            world.controller.ingest(world.message(rank, 5, step_time=1.0, reduce_time=waits))
    (told,) = (record for record in world.controller.changes("r") if record.kind == "notice")
    assert told.accepted_at_step == 10
    assert [(change.param, change.by) for change in told.changes] == [("rank 1", "stragglers")]
    assert [alert for alert in world.alerts() if alert.startswith("stragglers: rank 1 is slow")] != []
    assert world.version.number == version
    assert world.events(Observed)[-1].observation.rank_times == (0.25, 0.75)
    assert world.controller.policy("r", "stragglers").last_reason == told.changes[0].reason


def test_records_of_a_formation_that_is_over_are_ignored(world: World) -> None:
    world.begin()
    world.steps(10)
    old = world.message(0, 10)
    world.form(step=5)
    world.controller.ingest(old)
    assert world.controller.run("r").ranks == []
    assert world.controller.run("r").progress.steps == 5
    with pytest.raises(Refused, match="formation 1 is over"):
        world.controller.register("r", 1, [], "linear", None)


def test_a_new_formation_goes_back(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    world.steps(10)
    assert world.state is RunState.RUNNING
    world.form(step=4)
    assert world.state is RunState.RECOVERING
    rewinds = [json.loads(i.data) for i in world.controller.feed._items if i.topic == "metrics" and "rewind" in i.data]
    assert [r["rewind"] for r in rewinds] == [4]
    world.steps(3)
    assert (world.state, world.controller.run("r").progress.steps) == (RunState.RUNNING, 7)
    assert [f.formation for f in world.events(Formed)] == [1, 2]


# ---- pause, resume, stop -------------------------------------------------------------------------------------------


def ask(world: World, wish: Any) -> int:
    return world.controller.command("r", Command(wish, "please"), "ann")


def test_a_pause_holds_when_ranks_have_come_to_it(world: World) -> None:
    world.begin()
    world.steps()
    paused = ask(world, "pause")
    assert world.state is RunState.RUNNING
    world.steps(0, applied=[(paused, 3)])
    assert world.state is RunState.PAUSED
    resumed = ask(world, "resume")
    assert world.state is RunState.PAUSED
    world.steps(0, applied=[(resumed, 3)])
    assert world.state is RunState.RUNNING


def test_a_pause_holds_though_another_version_follows_at_once(world: World) -> None:
    world.begin()
    world.steps()
    paused = ask(world, "pause")
    world.controller.pin("r", "lr", 0.5, "ann", "", None)
    world.steps(0, applied=[(paused, 3)])
    assert world.state is RunState.PAUSED
    world.steps(0, applied=[(paused + 1, 3)])
    assert world.state is RunState.PAUSED


def test_a_pause_that_is_superseded_never_shows(world: World) -> None:
    world.begin()
    world.steps()
    ask(world, "pause")
    resumed = ask(world, "resume")
    world.steps(1, applied=[(resumed, 3)])
    assert world.state is RunState.RUNNING
    assert [r.status for r in world.controller.changes("r")][-2:] == ["superseded", "applied"]


def test_asking_twice_makes_one_version(world: World) -> None:
    world.begin()
    assert ask(world, "pause") == ask(world, "pause") == ask(world, "resume") - 1


def test_a_stop_outlasts_a_lost_worker(world: World) -> None:
    world.begin()
    world.steps()
    ask(world, "stop")
    assert world.state is RunState.STOPPING
    world.controller.set_state("r", RunState.RECOVERING, "a worker was lost")
    formation = world.controller.start_formation("r", 2, Progress())
    assert formation.version.stopped
    assert world.state is RunState.STOPPING


def test_a_run_that_has_ended_refuses_changes_until_it_is_resumed(world: World) -> None:
    world.begin()
    world.steps()
    ask(world, "stop")
    world.controller.set_state("r", RunState.STOPPED)
    for change in (
        lambda: ask(world, "pause"),
        lambda: world.controller.pin("r", "lr", 0.5, "ann", "", None),
        lambda: world.controller.put_policy("r", "warmup", "warmup", {}, "active", "ann", "", None),
    ):
        with pytest.raises(Refused, match="--resume"):
            change()
    version = world.form(step=2)
    assert not version.stopped
    assert world.state is RunState.RECOVERING
    world.steps()
    assert world.state is RunState.RUNNING


# ---- the driver ----------------------------------------------------------------------------------------------------


def test_a_silent_driver_loses_its_run_and_may_come_back(world: World) -> None:
    world.begin()
    world.steps()
    world.now += LOST_S - 1
    world.controller.expire()
    assert world.state is RunState.RUNNING
    assert world.controller.heartbeat("r") is RunState.RUNNING
    world.now += LOST_S + 1
    world.controller.expire()
    world.controller.expire()
    assert world.state is RunState.LOST
    assert world.alerts() == ["no sign of life from the driver for 30 s"]
    assert world.controller.heartbeat("r") is RunState.RUNNING
    world.steps()
    assert world.controller.run("r").progress.steps == 4


def test_a_driver_that_died_before_its_first_formation_is_lost_too(world: World) -> None:
    world.controller.create_run("r", SPEC)
    world.now += LOST_S + 1
    world.controller.expire()
    assert world.state is RunState.LOST


def test_one_runs_trouble_does_not_keep_others_from_being_lost(world: World) -> None:
    world.controller.create_run("a", SPEC)
    world.controller.create_run("b", SPEC)
    world.now += LOST_S + 1
    world.journal.full = True
    world.controller.expire()
    world.controller.expire()
    assert len(world.alerts()) == 2
    world.journal.full = False
    world.controller.expire()
    assert {run.state for run in world.controller.runs()[0]} == {RunState.LOST}


# ---- creating ------------------------------------------------------------------------------------------------------


def test_creating_again_is_the_same(world: World) -> None:
    first = world.controller.create_run("r", SPEC, [WARMUP])
    assert world.controller.create_run("r", SPEC, [WARMUP]) == first
    assert world.controller.spec("r") == SPEC
    with pytest.raises(Refused, match="another run"):
        world.controller.create_run("r", replace(SPEC, seed=1))


@pytest.mark.parametrize(
    "policies",
    [
        [PolicySpec(name="a", kind="nope", params={})],
        [WARMUP, PolicySpec(name="b", kind="warmup", params={"samples": 0})],
        [PolicySpec(name="batch", kind="warmup", params={})],
        [PolicySpec(name="a", kind="grows", params={}), PolicySpec(name="b", kind="noise_scale", params={})],
        [WARMUP, WARMUP],
    ],
)
def test_no_run_is_left_of_a_bad_policy(world: World, policies: list[PolicySpec]) -> None:
    with pytest.raises(Refused):
        world.controller.create_run("r", SPEC, policies)
    assert world.controller.runs() == ([], None)
    assert world.store.entries == []
    world.controller.create_run("r", SPEC)


@pytest.mark.parametrize("run_id", ["", "../r", "a/b", ".r", "a b", "x" * 200])
def test_a_runs_id_names_a_file_and_nothing_else(world: World, run_id: str) -> None:
    with pytest.raises(Refused, match="id"):
        world.controller.create_run(run_id, SPEC)


def test_a_run_that_is_not_there_is_refused(world: World) -> None:
    with pytest.raises(Refused) as refused:
        world.controller.run("x")
    assert refused.value.code == "run-not-found"
    world.begin()
    for missing in (lambda: world.controller.policy("r", "x"), lambda: delete(world, "x", None)):
        with pytest.raises(Refused) as refused:
            missing()
        assert refused.value.code == "policy-not-found"


# ---- persons' changes ----------------------------------------------------------------------------------------------


def delete(world: World, name: str, revision: int | None) -> None:
    world.controller.delete_policy("r", name, "ann", "", revision)


def test_policies_are_put_edited_and_deleted_with_revisions(world: World) -> None:
    world.begin()
    put = world.controller.put_policy
    view, created = put("r", "warmup", "warmup", {"samples": 100}, "active", "ann", "", None)
    assert (view.revision, created, view.writes) == (1, True, ["lr"])
    with pytest.raises(Refused, match="has a policy 'warmup' already"):
        put("r", "warmup", "warmup", {"samples": 200}, "active", "ann", "", 0)
    view, created = put("r", "warmup", "warmup", {"samples": 200}, "active", "ann", "", 1)
    assert (view.revision, created) == (2, False)
    with pytest.raises(Refused) as refused:
        put("r", "warmup", "warmup", {"samples": 300}, "active", "ann", "", 1)
    assert refused.value.code == "stale-revision"
    assert refused.value.current is not None
    assert refused.value.current["params"]["samples"] == 200
    with pytest.raises(Refused, match="no policy"):
        put("r", "other", "warmup", {}, "active", "ann", "", 1)
    with pytest.raises(Refused, match="revision 1"):
        delete(world, "warmup", 1)
    delete(world, "warmup", 2)
    assert world.controller.policies("r") == []


def test_pins_have_revisions(world: World) -> None:
    world.begin()
    seen = world.controller.hyperparameters("r").revision
    pinned = world.controller.pin("r", "lr", 0.5, "ann", "", seen)
    assert (pinned.revision, pinned.version, pinned.value) == (seen + 1, world.version.number, world.value("lr"))
    with pytest.raises(Refused, match="revision"):
        world.controller.pin("r", "lr", 0.6, "ann", "", seen)
    world.controller.register_knob("r", HyperParameter(name="mixup", default=0.2))
    free = world.controller.unpin("r", "lr", "ann", "", pinned.revision)
    assert (free.revision, free.value) == (pinned.revision + 1, world.value("lr"))


def test_a_knob_may_come_before_registration_or_after(world: World) -> None:
    knob = HyperParameter(name="mixup", default=0.2, min=0, max=1)
    world.controller.create_run("r", SPEC)
    world.controller.start_formation("r", 2, Progress())
    world.controller.register_knob("r", knob)
    assert world.version.number == 1
    world.controller.register("r", 1, [LR], "linear", None)
    world.controller.register_knob("r", knob)
    world.controller.register_knob("r", knob)
    assert (world.version.number, world.value("mixup")) == (3, 0.2)


def test_a_policy_that_raises_is_told_and_shown_off(world: World) -> None:
    world.begin(PolicySpec(name="bad", kind="required", params={"param": "lr"}))
    for _ in range(5):
        world.steps()
    *told, off = [a for a in world.alerts() if "bad" in a]
    assert told == ["policy bad failed: ValueError: lr"] * 3
    assert off.startswith("policy bad is disabled: it has failed 3 times, the last time: ValueError: lr")
    view = world.controller.policy("r", "bad")
    assert (view.mode, view.faults) == ("off", 3)


def test_kinds_are_listed_even_where_a_parameter_has_no_default(world: World) -> None:
    kinds = {kind.kind: kind for kind in world.controller.policy_kinds()}
    assert {"warmup", "plateau", "noise_scale", "required"} <= kinds.keys()
    assert kinds["required"].writes == []
    assert kinds["warmup"].writes == ["lr"]


def test_a_value_tells_where_it_comes_from(world: World) -> None:
    world.begin(WARMUP)
    world.steps(50)
    world.controller.pin("r", "batch_size", 128, "ann", "", None)
    views = {view.name: view for view in world.controller.hyperparameters("r").hyperparameters}
    assert views["batch_size"].text == "batch_size 128, pinned by ann"
    assert views["lr"].text == "lr 0.101 = 0.1 × batch 2 × warmup 0.505"


def test_a_decay_that_a_person_asks_for_outlasts_the_controller(world: World) -> None:
    params = {"shape": "wsd", "unit": "epochs", "horizon": 2, "of": "base", "start": 0.2}  # epochs of 5,000 samples
    world.begin(PolicySpec(name="wsd", kind="schedule", params=params))
    (view,) = (v for v in world.controller.hyperparameters("r").hyperparameters if v.name == "lr")
    assert view.text == "lr 0.2 = 0.2 × batch 1 (sqrt 0.2→0 until 10,000 samples)"
    world.steps(50)
    world.controller.command("r", Command("decay", "enough"), "ann")
    told = world.controller.changes("r")[-1]
    assert [(c.param, c.from_, c.to, c.by, c.reason) for c in told.changes] == [("decay", False, True, "ann", "enough")]
    world.controller.close()
    world.controller = world.start(MemoryJournal(world.store))
    assert world.version.decay_from == Progress(50, 3200)
    world.steps(4)
    assert world.controller.policy("r", "wsd").last_reason == (
        "schedule: lr 0.2 -> 0, the decay asked for, sqrt from sample 3,200 to 3,556"
    )
    world.steps(2)
    assert world.value("lr") == 0


# ---- the journal's troubles ----------------------------------------------------------------------------------------


def test_training_goes_on_while_the_journal_is_full_and_nothing_is_lost(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={"metric": "val"}))
    world.steps(4)
    before = world.version
    world.journal.full = True
    for _ in range(5):
        world.steps(2, logged={"val": 2.0}, applied=[(before.number, 1)])
    assert world.version == before
    assert world.alerts() == ["no decision was made: the disk is full"]
    assert world.controller.run("r").progress.steps == 14
    world.journal.full = False
    world.steps(2)
    assert world.version.number == before.number + 1
    read = world.controller._live["r"].run.policies["halves"].state["read"]
    assert [step for step, _, _ in read] == [5, 7, 9, 11, 13]
    assert world.alerts()[-1] == "the journal works again"
    (record,) = [r for r in world.controller.changes("r") if r.version == before.number]
    assert record.applied == {0: 1, 1: 1}


def test_a_change_that_cannot_be_stored_is_not_made(world: World) -> None:
    world.begin()
    seq, version = world.controller.feed._seq, world.version
    world.journal.full = True
    with pytest.raises(JournalUnavailable):
        world.controller.pin("r", "lr", 0.5, "ann", "", None)
    with pytest.raises(JournalUnavailable):
        world.controller.create_run("other", SPEC)
    assert (world.version, world.controller.feed._seq) == (version, seq)
    assert [run.id for run in world.controller.runs()[0]] == ["r"]
    assert asyncio.run(world.controller.next_versions("r", version.number, 0.01)) == ()


def test_a_controller_that_was_replaced_writes_nothing_more(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    successor = world.start(MemoryJournal(world.store))
    assert successor.term == world.controller.term + 1
    entries = len(world.store.entries)
    with pytest.raises(Fenced):
        world.controller.pin("r", "lr", 0.5, "ann", "", None)
    with pytest.raises(Fenced):
        world.steps()
    assert len(world.store.entries) == entries
    successor.pin("r", "lr", 0.5, "ann", "", None)


def test_metrics_that_cannot_be_stored_steer_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.controller.metrics.writer.MetricWriter._write", full)
        for _ in range(3):
            world.steps(300)
            world.controller.expire()
        world.controller.heartbeat("r")
    assert world.value("lr") == pytest.approx(0.1 / 8)
    assert [a for a in world.alerts() if "not stored" in a] == [
        "metrics are not stored: [Errno 28] No space left on device"
    ]
    world.controller.expire()
    assert world.alerts()[-1] == "the metrics' file works again"


# ---- recovery ------------------------------------------------------------------------------------------------------


def scenario(world: World) -> None:
    """Every kind of event."""
    controller = world.controller
    world.begin(WARMUP, PolicySpec(name="halves", kind="halves", params={"metric": "val"}))
    world.controller.put_policy("r", "bad", "required", {"param": "mixup"}, "active", "ann", "", None)
    for number in range(6):
        applied = [(world.version.number, world.step + 1)]
        world.steps(20, logged={"val": 1.0 + number}, local_sq=3.0, applied=applied)
    controller.pin("r", "batch_size", 128, "ann", "larger", None)
    controller.put_policy("r", "halves", "plateau", {"metric": "val", "patience": 0}, "active", "ann", "", None)
    controller.put_policy("r", "warmup", "warmup", {"samples": 9}, "off", "ann", "", None)
    controller.register_knob("r", HyperParameter(name="mixup", default=0.2))
    ask(world, "pause")
    world.steps(0, applied=[(world.version.number, 200)])
    ask(world, "resume")
    ask(world, "checkpoint")
    controller.unpin("r", "batch_size", "ann", "", None)
    world.form(step=60)
    for number in range(4):
        world.steps(20, logged={"val": 1.0 + number}, local_sq=3.0)
    controller.delete_policy("r", "warmup", "ann", "", None)
    ask(world, "stop")


def assert_same(live: Controller, recovered: Controller) -> None:
    a, b = live._live["r"], recovered._live["r"]
    assert b.run == a.run
    assert b.history.after(0, 10_000) == a.history.after(0, 10_000)
    assert b.versions == a.versions
    assert recovered.changes("r") == live.changes("r")
    assert recovered.policies("r") == live.policies("r")
    for field in ("version", "state", "applied_version", "observation", "estimator", "policies", "changed_at"):
        assert repr(getattr(b.run, field)) == repr(getattr(a.run, field)), field


def test_recovery_is_the_state_that_was(world: World) -> None:
    scenario(world)
    assert {type(decode(entry.event)).__name__ for entry in world.store.entries} == {
        "Created", "Stated", "Formed", "Registered", "PolicyPut", "PolicyDeleted", "Observed", "Versioned", "Applied",
    }  # fmt: skip
    entries = len(world.store.entries)
    recovered = world.start(MemoryJournal(world.store))
    assert_same(world.controller, recovered)
    assert len(world.store.entries) == entries
    assert recovered.term == world.controller.term + 1
    recovered.close()


def test_recovery_from_a_file_is_the_same_and_goes_on_in_the_next_term(tmp_path: Path) -> None:
    world = World(tmp_path, SqliteJournal(tmp_path / "journal.sqlite"))
    scenario(world)
    old = world.controller
    old.close()
    world.controller = world.start(SqliteJournal(tmp_path / "journal.sqlite"))
    assert_same(old, world.controller)
    number = world.version.number
    world.controller.pin("r", "lr", 0.5, "ann", "", None)
    assert (world.version.number, world.version.term) == (number + 1, 2)
    world.steps(5, loss=1.0)
    world.controller.close()


def test_nothing_is_decided_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario(world)
    monkeypatch.setattr(Halves, "decide", pytest.fail)
    monkeypatch.setattr(Required, "decide", pytest.fail)
    recovered = world.start(MemoryJournal(world.store))
    assert recovered._live["r"].run == world.controller._live["r"].run
    recovered.close()


def test_records_go_on_after_a_restart_in_mid_run(world: World) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}))
    world.steps(20)
    world.controller = world.start(MemoryJournal(world.store))
    number = world.version.number
    world.steps(20)
    assert world.version.number == number + 1
    assert world.controller.run("r").progress.steps == 40


@pytest.mark.parametrize("change", [{"kind": "gone"}, {"rule": 9}, {"params": {"unknown": 1}}])
def test_a_policy_that_is_no_longer_installed_bricks_nothing(world: World, change: dict[str, Any]) -> None:
    world.begin(PolicySpec(name="halves", kind="halves", params={}), WARMUP)
    world.steps()
    for i, entry in enumerate(world.store.entries):
        event = json.loads(entry.event)
        if event["event"] == "policy-put" and event["name"] == "halves":
            world.store.entries[i] = replace(entry, event=json.dumps(event | change))
    world.controller = world.start(MemoryJournal(world.store))
    assert isinstance(world.controller._live["r"].run.policies["halves"].policy, Absent)
    number = world.version.number
    world.steps()
    assert world.version.number == number
    world.controller.put_policy("r", "halves", "halves", {}, "active", "ann", "", None)
    world.steps()
    world.steps()
    assert world.version.number > number


# ---- floors --------------------------------------------------------------------------------------------------------


def imports(code: str, *unwanted: str) -> list[str]:
    """Which of `unwanted` are loaded once `code` has run in a process of its own."""
    script = f"{code}\nimport sys\nprint(*(m for m in {unwanted!r} if m in sys.modules))"
    script = f"import sys\nsys.path[:0] = {[path for path in sys.path if path]!r}\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_controller_needs_neither_torch_nor_ray() -> None:
    every = """
import pkgutil, trimtab.controller
for module in pkgutil.walk_packages(trimtab.controller.__path__, "trimtab.controller."):
    if not module.name.endswith((".actor", ".connect", ".ray_server")):  # the edges to Ray
        __import__(module.name)
"""
    assert imports(every, "torch", "ray", "fastapi", "trimtab.workers", "trimtab.api") == []


def test_the_workers_need_no_web_server_and_no_job_server() -> None:
    not_theirs = ["fastapi", "uvicorn", "trimtab.api", "trimtab.controller.jobs.ray_server", "ray.job_submission"]
    assert imports("import trimtab.workers, trimtab.workers.session", *not_theirs) == []
