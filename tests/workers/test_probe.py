"""The critical-batch probe on a real Ray cluster: beside a run that goes on, after it, and where it cannot be."""

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn
from torch.nn.functional import mse_loss

from trimtab.controller import actor
from trimtab.controller.actor import call
from trimtab.controller.errors import Refused
from trimtab.controller.observation import Command
from trimtab.controller.state import RunState
from trimtab.workers import Session, launch
from trimtab.workers import probe as edge
from trimtab.workers.checkpoint import CheckpointError
from trimtab.workers.crew import NotEnoughResources, Resources
from trimtab.workers.groups import TrainingError
from trimtab.workers.probe import probe

PAUSE_S = "0.005"  # a step, as the script's argument: without it the train function fails


def make_train(mistaken: bool = False) -> Callable[[Session], None]:
    """Linear regression: above a learning rate of 1 the loss grows, and from batch 1024 on it is NaN."""

    def train(session: Session) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4096, 10, generator=generator)
        y = x.sum(1, keepdim=True) + 0.5 * torch.randn(4096, 1, generator=generator)
        net = nn.Linear(10, 1)
        model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
        for inputs, wanted in session.batches((x, y)):
            loss = mse_loss(model(inputs), wanted)
            if mistaken and session.hp.batch_size == 32:
                raise KeyError("the user's own mistake")
            session.step(loss * math.nan if session.hp.batch_size >= 1024 else loss)
            time.sleep(float(session.arguments[0]))

    return train


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def run(controller: Path) -> Iterator[str]:
    """A run that goes on and has kept one checkpoint."""
    started: list[str] = []
    options: dict[str, Any] = {
        "workers": 1,
        "hp": {"batch_size": 16, "lr": 0.04},
        "lr_rule": "linear",
        "steps": 1_000_000,
        "name": "probed",
        "arguments": (PAUSE_S,),
        "checkpoints": controller / "checkpoints",
        "checkpoint_steps": 0,
        "on_start": started.append,
    }
    thread = threading.Thread(target=launch, args=(make_train(),), kwargs=options)
    thread.start()
    until(lambda: bool(started) and call("run", started[0]).progress.steps > 600)  # noise is noted every 2 s
    call("command", started[0], Command("checkpoint", "to be probed"), "tester")
    until(lambda: len(call("run", started[0]).checkpoints) == 1)
    yield started[0]
    if thread.is_alive():
        call("command", started[0], Command("stop", "enough"), "tester")
        thread.join(60)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses(run: str) -> list[float]:
    reader: Any = ray.get_actor(actor.READER, namespace=actor.NAMESPACE)
    found: list[float] = ray.get(reader.query.remote(run, ["loss"], "step", None, None, 1_000_000))[
        "loss"
    ].last.tolist()
    return found


def branches(run: str) -> list[Any]:
    """Those of a run, oldest first."""
    return [one for one in reversed(call("runs")[0]) if one.name.startswith(f"{run}-probe-")]


def test_larger_batches_recover_until_one_does_not(run: str, controller: Path) -> None:
    place = Path(call("spec", run).checkpoints)
    before, step = contents(place), call("run", run).progress.steps
    started: dict[str, int] = {}
    verdict = probe(
        make_train(),
        run,
        factors=(1, 2, 32, 64),
        samples=12 * 1024,
        tolerance=0.05,
        on_start=lambda trial, branch: started.update({branch: trial.factor}),
    )
    one, two, many, most = verdict.endings
    assert [ending.batch_size for ending in verdict.endings] == [16, 32, 512, 1024]
    assert [ending.lr for ending in verdict.endings] == pytest.approx([0.04, 0.08, 1.28, 2.56])
    assert one.loss == pytest.approx(0.25, abs=0.05)
    assert two.recovered
    assert two.difference == pytest.approx(0, abs=0.05)
    assert not many.recovered
    assert not many.diverged
    assert many.difference is not None
    assert many.difference > 1
    assert most.diverged
    assert verdict.critical == two
    assert str(verdict).startswith("Batch 32 (×2) still recovers; ×32 does not (loss +")
    assert verdict.noise is not None
    # the run has heard nothing of it
    assert contents(place) == before
    assert call("run", run).state is RunState.RUNNING
    assert call("run", run).progress.steps > step
    # each branch is a run, which began at the checkpoint and kept none; the first retraces the run
    [kept] = call("run", run).checkpoints
    mine = branches(run)
    first = next(branch for branch, factor in started.items() if factor == 1)
    until(lambda: len(losses(run)) >= kept.step + 50)
    assert losses(first)[:50] == losses(run)[kept.step :][:50]
    assert {one.id: int(one.name.rpartition("x")[2]) for one in mine} == started
    assert [one.state for one in mine if not one.name.endswith("x64")] == [RunState.FINISHED] * 3
    for branch in mine:
        assert not (controller / "checkpoints" / branch.id).exists()
        assert branch.policies == []
        if branch.state is RunState.FINISHED:
            assert branch.progress.samples == kept.samples + 12 * 1024
            assert [one.step for one in call("run", branch.id).checkpoints] == [kept.step]


def test_there_must_be_room_beside_the_run(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "ROOM_S", 3.0)
    with pytest.raises(NotEnoughResources, match="a branch of 1 worker needs 4 CPU, of which 3 are free"):
        probe(make_train(), run, resources=Resources(cpus=4))
    with pytest.raises(NotEnoughResources, match="the cluster has 4"):
        probe(make_train(), run, resources=Resources(cpus=5))


def test_what_cannot_be_probed_starts_nothing(run: str) -> None:
    runs = len(call("runs")[0])
    for name, options, match in (
        ("nowhere", {}, "no run 'nowhere'"),
        (run, {"step": 7}, "no checkpoint of step 7 is kept"),
        (run, {"factors": (1, 1000)}, "give smaller factors"),
    ):
        with pytest.raises(Refused, match=match) as refusal:
            probe(make_train(), name, **options)
        assert "\n" not in str(refusal.value)
    assert len(call("runs")[0]) == runs


def test_a_branch_that_fails_of_itself_ends_the_probe_and_the_others(run: str, controller: Path) -> None:
    with pytest.raises(TrainingError, match=r"-probe-x2-\w+: KeyError: .*the user's own mistake"):
        probe(make_train(mistaken=True), run, factors=(1, 2), samples=1_000_000)
    *_, one, two = branches(run)
    assert {one.state, two.state} == {RunState.STOPPED, RunState.FAILED}
    assert sorted(path.name for path in (controller / "checkpoints").glob(f"{run}*")) == [run]


def test_a_run_that_has_ended_is_probed_from_its_last_checkpoint(run: str) -> None:
    call("command", run, Command("stop", "enough"), "tester")
    until(lambda: call("run", run).state is RunState.STOPPED)
    verdict = probe(make_train(), run, factors=(2,), samples=512, tolerance=0.2, arguments=("0",))
    assert [ending.factor for ending in verdict.endings] == [1, 2]
    newest = call("run", run).checkpoints[-1]
    assert newest.step == call("run", run).progress.steps
    assert branches(run)[-1].progress.samples == newest.samples + 512
    assert call("spec", branches(run)[-1].id).arguments == ("0",)
    shutil.rmtree(call("spec", run).checkpoints)
    with pytest.raises(CheckpointError, match=r"step-0*\d+ cannot be read whole"):
        probe(make_train(), run, factors=(2,), samples=512)
