"""Runs on a real Ray cluster: to their end, through lost workers and a lost controller, and with bad input."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trimtab.controller import actor
from trimtab.controller.actor import call
from trimtab.controller.errors import Refused
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.metrics import MetricReader
from trimtab.controller.observation import Command
from trimtab.controller.policies.warmup import Warmup
from trimtab.controller.state import RunState
from trimtab.workers import Session, groups, launch, trainable
from trimtab.workers.checkpoint import CheckpointError
from trimtab.workers.crew import NotEnoughResources
from trimtab.workers.groups import TrainingError

pytestmark = pytest.mark.usefixtures("controller")


def make_train(pause_s: float = 0.0, fail_at: int | None = None) -> Callable[[Session], None]:
    """A train function that cloudpickle carries whole: this module is not importable on a worker."""

    def train(session: Session) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2000, 10, generator=generator)
        y = (x.sum(1) > 0).long()
        model = nn.Linear(10, 2)
        wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=session.hp.lr, momentum=0.9))
        for inputs, labels in session.batches((x, y)):
            loss = cross_entropy(wrapped(inputs), labels)
            if fail_at is not None and session.progress.steps == fail_at:
                raise KeyError("the user's own mistake")
            session.step(loss)
            time.sleep(pause_s)
            if session.every(steps=20):
                session.log(val_loss=loss)

    return train


HP: dict[str, Any] = {"batch_size": 32, "lr": 0.1}
BEGUN: list[tuple[str, threading.Thread]] = []  # in the background


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """What a test that fails leaves training would take the room of others."""
    yield
    while BEGUN:
        run, thread = BEGUN.pop()
        if thread.is_alive():
            call("command", run, Command("stop", "its test has ended"), "tester")
            thread.join(60)


def background(**options: Any) -> tuple[str, threading.Thread, list[Any]]:
    """A launch in a thread; the run's id, the thread, and where its summary or error will lie."""
    started: list[str] = []
    ended: list[Any] = []

    def body() -> None:
        try:
            ended.append(launch(on_start=started.append, **options))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    until(lambda: bool(started or ended))
    run = (started or [""])[0]
    BEGUN.append((run, thread))
    return run, thread, ended


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def step_of(run: str) -> int:
    return int(call("run", run).progress.steps)


def at_rest(run: str) -> int:
    """The step at which a paused run stands, once what it did before has been told."""
    steps = [-1]

    def stays() -> bool:
        time.sleep(0.5)
        steps.append(step_of(run))
        return steps[-1] == steps[-2]

    until(stays, 10)
    return steps[-1]


def assert_versions_are_consistent(summary: dict[str, Any], world_size: int) -> None:
    applied = [v["applied"] for v in summary["versions"] if v["status"] == "applied"]
    assert applied
    for ranks in applied:
        assert len(ranks) == world_size
        assert len(set(ranks.values())) == 1, summary["versions"]


def test_a_run_to_its_end_with_policies() -> None:
    summary = launch(
        make_train(0.002), workers=2, hp=HP, policies=["noise_scale", "warmup", "plateau"], steps=400, name="whole"
    )
    assert (summary["state"], summary["steps"]) == ("finished", 400)
    assert summary["dropped_points"] == 0
    assert summary["metrics"]["loss"] < 0.3
    assert "val_loss" in summary["metrics"]
    assert_versions_are_consistent(summary, 2)
    warmup = next(c for v in summary["versions"] for c in v["changes"] if c["by"] == "warmup")
    assert warmup["param"] == "lr"


def test_pins_and_pause_and_stop_reach_all_workers_at_one_step() -> None:
    run, thread, ended = background(train=make_train(0.005), workers=2, hp=HP, steps=100_000, name="pinned")
    until(lambda: step_of(run) > 20)
    call("pin", run, "lr", 0.05, "tester", "by hand", None)
    call("pin", run, "batch_size", 64, "tester", "by hand", None)
    until(lambda: call("hyperparameters", run).hyperparameters[0].applied_version >= 4)
    call("command", run, Command("pause", "look"), "tester")
    until(lambda: call("run", run).state is RunState.PAUSED)
    held = at_rest(run)
    call("command", run, Command("resume", "go on"), "tester")
    until(lambda: step_of(run) > held)
    call("command", run, Command("stop", "enough"), "tester")
    thread.join(60)
    [summary] = ended
    assert summary["state"] == "stopped"
    assert summary["metrics"]["hp/lr"] == pytest.approx(0.05)
    assert summary["metrics"]["hp/batch_size"] == 64
    assert_versions_are_consistent(summary, 2)


def kill(run: str, worker: int) -> None:
    handle: Any = ray.get_actor(f"{run}-worker-{worker}")
    os.kill(ray.get(handle.ready.remote()), signal.SIGKILL)


def sizes(run: str) -> list[tuple[Any, Any, str]]:
    changes = [change for record in call("changes", run) for change in record.changes]
    return [(c.from_, c.to, c.reason.partition(";")[0]) for c in changes if c.param == "world_size"]


def test_a_killed_worker_is_replaced_while_the_others_train_on() -> None:
    run, thread, ended = background(
        train=make_train(0.02), workers=2, hp=HP, steps=3000, name="killed", checkpoint_steps=1000
    )
    until(lambda: step_of(run) > 60)
    kill(run, 2)
    until(lambda: call("run", run).world_size == 1)
    assert 60 < step_of(run) < 1000  # from where they were, not from a checkpoint: there is none yet
    until(lambda: call("run", run).world_size == 2 and call("run", run).state is RunState.RUNNING)

    joined = step_of(run)
    until(lambda: step_of(run) > joined + 20)
    call("command", run, Command("stop", "enough"), "tester")
    thread.join(60)
    [summary] = ended
    assert summary["state"] == "stopped", ended
    assert sizes(run) == [(2, 1, "1 of 2 workers lost"), (1, 2, "1 → 2 workers")]
    reader = ray.get_actor(actor.READER, namespace=actor.NAMESPACE)
    there = ray.get(reader.query.remote(run, ["hp/workers"], "step", None, None, 10_000))["hp/workers"].last
    assert set(there.tolist()) == {2.0, 1.0}  # those who trained, not those who were wanted
    assert call("run", run).formation == 3
    assert_resized_at_one_step(summary)


def assert_resized_at_one_step(summary: dict[str, Any]) -> None:
    applied = [version["applied"] for version in summary["versions"] if version["status"] == "applied"]
    assert all(len(set(ranks.values())) == 1 for ranks in applied), summary["versions"]


def test_a_run_goes_back_to_its_checkpoint_where_no_worker_is_left() -> None:
    run, thread, ended = background(
        train=make_train(0.005), workers=2, hp=HP, steps=400, name="wiped", checkpoint_steps=50
    )
    until(lambda: step_of(run) > 110)
    pids = [ray.get(ray.get_actor(f"{run}-worker-{n}").ready.remote()) for n in (1, 2)]  # type: ignore[attr-defined]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    thread.join(120)
    [summary] = ended
    assert (summary["state"], summary["steps"]) == ("finished", 400), ended
    assert call("run", run).formation >= 2
    assert summary["metrics"]["loss"] < 0.3


def test_workers_learners_and_strategy_change_while_the_run_goes_on() -> None:
    run, thread, ended = background(
        train=make_train(0.02), workers=1, max_workers=3, max_learners=2, spares=1, hp=HP, steps=5000, name="sized"
    )
    until(lambda: step_of(run) > 20)
    for param, value, size in (("workers", 2, 2), ("learners", 2, 4), ("sync", "sma", 4), ("workers", 1, 2)):
        call("pin", run, param, value, "tester", "by hand", None)
        until(lambda size=size: call("run", run).world_size == size and call("run", run).state is RunState.RUNNING)  # type: ignore[misc]
        reached = step_of(run)
        until(lambda reached=reached: step_of(run) > reached + 10)  # type: ignore[misc]

    call("command", run, Command("stop", "enough"), "tester")
    thread.join(60)
    [summary] = ended
    assert summary["state"] == "stopped", ended
    assert [(a, b) for a, b, _ in sizes(run)][-1][1] == 2
    assert summary["metrics"]["hp/learners"] == 2
    assert_resized_at_one_step(summary)


def rollbacks(run: str) -> list[Any]:
    changes = [(record, change) for record in call("changes", run) for change in record.changes]
    return [(record, change) for record, change in changes if record.kind == "version" and change.param == "rollback"]


def test_spike_guard_brings_a_run_past_data_that_would_end_it() -> None:
    def train(session: Session) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(20_000, 10, generator=generator)
        y = (x.sum(1) > 0).long()
        x[150 * 32 : 162 * 32] = float("nan")  # twelve steps in a row: ten are the end
        model = nn.Linear(10, 2)
        wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=session.hp.lr))
        for inputs, labels in session.batches((x, y), shuffle=False):
            session.step(cross_entropy(wrapped(inputs), labels))
            time.sleep(0.005)

    run, thread, ended = background(
        train=train, workers=2, hp=HP, policies=["spike_guard"], steps=400, name="spiky", checkpoint_steps=50
    )
    thread.join(120)
    [summary] = ended
    assert (summary["state"], summary["steps"]) == ("finished", 400), ended
    assert summary["metrics"]["loss"] < 0.5
    assert summary["metrics"]["hp/skip_sigma"] == 6
    assert summary["metrics"]["hp/lr"] == pytest.approx(0.05)
    [(record, change)] = rollbacks(run)
    assert (change.from_, change.to, change.by) == (160, 150, "spike_guard")
    assert change.reason.startswith("rolled back from step 160 to step 150: ")
    assert change.reason.endswith("spikes within 200 steps, the first at step 151")
    assert record.applied == {0: 151, 1: 151}
    assert call("run", run).formation == 2
    assert_versions_are_consistent(summary, 2)


def test_a_roll_back_outlasts_the_loss_of_a_worker() -> None:
    run, thread, ended = background(
        train=make_train(0.005), workers=2, hp=HP, steps=500, name="back", checkpoint_steps=100
    )
    until(lambda: step_of(run) > 240 and len(call("run", run).checkpoints) == 2)

    with pytest.raises(Refused, match="no checkpoint of step 150 is kept; there are those of 100, 200"):
        call("command", run, Command("rollback", "", 150), "tester")
    call("command", run, Command("rollback", "again", 100, True), "tester")
    until(lambda: call("run", run).formation == 2 and step_of(run) > 105)
    assert step_of(run) < 200
    kill(run, 2)
    thread.join(120)
    [summary] = ended
    assert (summary["state"], summary["steps"]) == ("finished", 500), ended
    [(record, change)] = rollbacks(run)
    assert change.reason == f"rolled back from step {change.from_} to step 100: again"
    assert record.applied == {0: 101, 1: 101}
    assert call("run", run).formation >= 3
    assert summary["samples"] == 500 * 32


def test_training_goes_on_while_the_controller_is_killed_and_nothing_acknowledged_is_lost(controller: Path) -> None:
    warmup = Warmup(steps=500, start=0.01)
    run, thread, ended = background(
        train=make_train(0.005), workers=2, hp=HP, policies=[warmup, "noise_scale"], steps=600, name="headless"
    )
    until(lambda: step_of(run) > 50)
    call("pin", run, "momentum", 0.5, "tester", "before the fall", None)
    before = [record.model_dump() for record in call("changes", run)]
    handle: Any = ray.get_actor(actor.CONTROLLER, namespace=actor.NAMESPACE)
    step = step_of(run)
    os.kill(ray.get(handle.pid.remote()), signal.SIGKILL)
    until(lambda: step_of(run) > step)  # answers again, and has heard of later steps
    after = [record.model_dump() for record in call("changes", run)]
    facts = ("id", "version", "changes", "accepted_at_step")
    assert [[r[f] for f in facts] for r in after[: len(before)]] == [[r[f] for f in facts] for r in before]
    call("pin", run, "momentum", 0.8, "tester", "after the fall", None)
    thread.join(60)
    [summary] = ended
    assert (summary["state"], summary["steps"]) == ("finished", 600), ended
    assert summary["metrics"]["hp/momentum"] == pytest.approx(0.8)
    assert_versions_are_consistent(summary, 2)
    # The warm-up lives in the workers: the rate rose at every step, with a controller and without one. A step that the
    # controller had heard of and not yet written went with it (NaN, or no row); one it had not heard of came later.
    rows = MetricReader(controller / "metrics" / f"{run}.metrics").table(["hp/lr", "hp/batch_size"])
    rates = {row.step: row.values[0] for row in rows if row.values[1] == 32 and row.step <= 500}
    assert len(rates) > 250
    for at, rate in rates.items():
        assert rate == pytest.approx(0.1 * (0.01 + 0.99 * (at - 1) / 500), rel=1e-6), at


def test_a_stopped_run_resumes_to_the_same_end() -> None:
    options: dict[str, Any] = {"workers": 2, "hp": HP, "steps": 120, "policies": ["warmup"]}
    straight = launch(make_train(), name="straight", **options)
    run, thread, _ = background(train=make_train(0.01), name="broken", **options)
    until(lambda: step_of(run) > 30)

    call("command", run, Command("stop", "pause for a night"), "tester")
    thread.join(60)
    stopped = call("run", run)
    assert stopped.state is RunState.STOPPED
    assert stopped.progress.steps < 120
    resumed = launch(make_train(), resume=run)
    assert (resumed["state"], resumed["steps"]) == ("finished", 120)
    assert resumed["metrics"]["loss"] == straight["metrics"]["loss"]
    assert resumed["metrics"]["grad_norm"] == straight["metrics"]["grad_norm"]
    with pytest.raises(Refused, match="has finished"):
        launch(make_train(), resume=run)


def test_the_user_s_own_error_ends_the_run_and_is_told() -> None:
    with pytest.raises(TrainingError, match="the user's own mistake"):
        launch(make_train(fail_at=5), workers=2, hp=HP, steps=50, name="mistaken")
    failed = next(run for run in call("runs")[0] if run.name == "mistaken")
    assert failed.state is RunState.FAILED
    assert "the user's own mistake" in failed.state_reason


def test_a_loss_that_is_nan_fails_with_advice() -> None:
    def train(session: Session) -> None:
        model = nn.Linear(4, 2)
        wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for (x,) in session.batches(torch.randn(100, 4)):
            session.step(wrapped(x).sum() * float("nan"))

    with pytest.raises(TrainingError, match="not finite for 10 steps"):
        launch(train, workers=2, hp=HP, steps=50, name="nan")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"workers": 64, "hp": {"batch_size": 128, "lr": 0.1}}, NotEnoughResources, "64 workers would take 64 CPU"),
        ({"policies": ["nothing"]}, Refused, "no policy of kind 'nothing'"),
        ({"policies": ["noise_scale", "noise_scale"]}, Refused, "twice"),
        ({"hp": {"lr": 0.1}}, ValueError, "batch_size"),
        ({"hp": {"lr": 0.1, "batch_size": 1}}, ValueError, "at least 2"),
        ({"hp": {"lr": 0.1, "batch_size": 32, "momentum": "much"}}, ValueError, "momentum must be a number"),
        (
            {"hp": {"batch_size": 32, "lr": HyperParameter(name="lr", default=0.1)}, "samples": 0},
            ValueError,
            "at least 1",
        ),
        ({"steps": 10, "samples": 10}, ValueError, "once"),
        ({"checkpoints": "/proc/nowhere"}, CheckpointError, "cannot be written"),
        ({"resume": "no-such-run"}, Refused, "no run"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    runs = len(call("runs")[0])
    given = {"workers": 2, "hp": HP} | options
    if "samples" not in options and "resume" not in options:
        given = {"steps": 10} | given
    with pytest.raises(error, match=match):
        launch(make_train(), **given)
    assert len(call("runs")[0]) == runs


def test_who_finds_no_room_waits_for_it_and_may_be_stopped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROOM_S", 0.2)
    full, holding, _ = background(train=make_train(0.01), workers=3, hp=HP, steps=100_000, name="full")
    until(lambda: step_of(full) > 0)
    options: dict[str, Any] = {"workers": 2, "hp": HP, "steps": 20}
    patient, waiting, ended = background(train=make_train(), name="patient", **options)
    given_up, leaving, stopped = background(train=make_train(), name="given-up", **options)
    for run in (patient, given_up):
        until(lambda run=run: "waiting for room for 2 workers" in call("run", run).state_reason)  # type: ignore[misc]
        assert call("run", run).state is RunState.STARTING
    call("command", given_up, Command("stop", "too late"), "tester")
    leaving.join(30)
    assert (stopped[0]["state"], stopped[0]["steps"]) == ("stopped", 0)
    call("command", full, Command("stop", "enough"), "tester")
    holding.join(30)
    waiting.join(60)
    assert (ended[0]["state"], ended[0]["steps"]) == ("finished", 20)


def test_a_data_set_smaller_than_one_batch_is_refused() -> None:
    with pytest.raises(TrainingError, match="fewer than one global batch of 4096"):
        launch(make_train(), workers=2, hp={"batch_size": 4096, "lr": 0.1}, steps=10, name="large")


def test_trainable_gives_defaults() -> None:
    wanted = trainable(steps=5, batch_size=16, lr=0.2, momentum=0.8)(make_train())
    summary = launch(wanted, workers=1, name="defaults")
    assert summary["steps"] == 5
    assert summary["metrics"]["hp/batch_size"] == 16
    values = {one.name: one for one in call("hyperparameters", summary["run"]).hyperparameters}
    assert (values["momentum"].value, values["momentum"].min, values["momentum"].max) == (0.8, 0.0, 0.9999)
