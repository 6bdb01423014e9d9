"""Roll back in place: real gloo groups and a scripted controller."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_session as base
import torch
import torch.distributed as dist
from ranks import answers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, IterableDataset

from trimtab.controller.events import Checkpointed, RollbackFailed
from trimtab.controller.hyperparameters import HyperParameter, Rollback, Version, initial_parameter
from trimtab.controller.records import Branch
from trimtab.controller.trajectory import Constant, Progress, Ramp
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoint import CheckpointStore
from trimtab.workers.session import Session

Change = Callable[[Version], Version]


def back(step: int, skip_data: bool = False) -> Change:
    return lambda version: replace(version, rollback=Rollback(version.number + 1, step, skip_data))


def place(directory: Path, rank: int, world_size: int, steps: int, **changes: Any) -> Assignment:
    return base.assignment(
        directory, rank, world_size, 24, steps, **({"checkpoint_steps": 20, "keep_checkpoints": 50} | changes)
    )


def scripted(at: Assignment, due: dict[float, Change], skip_sigma: float = 0.0) -> base.Scripted:
    """A warm-up is going on until step 100; spikes are skipped from `skip_sigma` on."""
    lr = replace(at.version.parameters["lr"], factors={"warmup": Ramp(0.1, 1.0, 0, 100, "steps")})
    sigma = initial_parameter(HyperParameter(name="skip_sigma", default=skip_sigma, min=0.0))
    return base.Scripted(at.version.with_parameter(lr).with_parameter(sigma), due)


def branches(controller: base.Scripted) -> list[Branch]:
    return list(dict.fromkeys(r.branch for r in controller.records if r.branch is not None))


def reports(controller: base.Scripted) -> list[Any]:
    return [report for r in controller.records for report in r.reports]


# ---- scenarios, run by every rank ---------------------------------------------------------------------------------


def straight_and_back(directory: Path, rank: int, world_size: int, group: dist.ProcessGroup) -> Any:
    """The same 200 steps, without a break and with one; dropout, a ramp, a guard that skips now and then."""
    answers = []
    for name, due in (("a", {}), ("b", {50 + rank: back(40)})):
        at = place(directory / name, rank, world_size, 200)
        controller = scripted(at, due, skip_sigma=1.5)
        model, session = base.train(at, controller, group, dropout=0.3, pause_s=0.004)
        skipped = sum(len(r.logged.get("skipped_step", ((), ()))[1]) for r in controller.records)
        answers.append([base.digest(model), session.progress.steps, session.progress.samples, skipped])
    made = branches(controller)
    told = [pair for r in controller.records for pair in r.applied if r.formation == 2]
    return answers, [[b.left.steps, b.progress.steps, b.progress.samples] for b in made], told


# ---- tests --------------------------------------------------------------------------------------------------------


def test_what_follows_is_bit_for_bit_what_followed_before(tmp_path: Path) -> None:
    outputs = answers(straight_and_back, 2, tmp_path)
    (straight, again), made, told = outputs[0]
    assert straight[:3] == again[:3]
    assert outputs[1][0][0][0] == outputs[1][0][1][0] == straight[0]
    assert again[3] >= straight[3] > 0  # the guard had something to do
    assert outputs[1][1:] == [made, told]  # the same steps on all ranks
    [[left, step, samples]] = made
    assert (step, samples) == (40, 40 * 24)
    assert left > 50
    assert told == [[2, 41]]


class Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.full((20,), index / 1e5)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        numbers = Numbers()
        return (numbers[i] for i in range(len(numbers)))


KINDS: dict[str, tuple[Callable[[], Any], int]] = {
    "tensors": (lambda: (torch.arange(100_000), torch.zeros(100_000, 20)), 0),
    "map": (Numbers, 0),
    "workers": (Numbers, 2),
    "iterable": (Stream, 0),
    "iterator": (lambda: iter(Stream()), 0),
}


def read(at: Assignment, controller: base.Scripted, kind: str = "tensors") -> tuple[list[list[int]], Session]:
    """The places in the stream of each step's samples, in the order of training."""
    session = Session(at, controller, base.Group.alone())
    model = nn.Linear(20, 4)
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    make, workers = KINDS[kind]
    steps: list[list[int]] = []
    now: list[int] = []
    for index, x in session.batches(make(), shuffle=False, num_workers=workers):
        now += index.tolist()
        session.step(cross_entropy(wrapped(x), index % 4))
        if session.every(steps=1):
            steps.append(now)
            now = []
            controller.handed_out(session.progress.steps)
            time.sleep(0.001)  # it is still on its way
    session.close()
    return steps, session


def joined(steps: list[list[int]]) -> list[int]:
    return [place for step in steps for place in step]


def positions(begin: int, end: int) -> list[int]:
    return list(range(begin, end))


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_data_is_what_was_read_since_the_checkpoint(tmp_path: Path, kind: str) -> None:
    at = place(tmp_path, 0, 1, 200)
    controller = scripted(at, {60: back(40, skip_data=True)})
    steps, session = read(at, controller, kind)
    [branch] = branches(controller)
    assert session.progress == Progress(200, 200 * 24)  # a horizon counts what the model has learnt from
    assert joined(steps) == positions(0, len(steps) * 24)  # nothing read twice, nothing left out
    assert len(steps) == 200 + branch.left.steps - 40


@pytest.mark.parametrize("kind", ["tensors", "map", "workers", "iterable"])
def test_without_skip_the_same_data_is_read_again(tmp_path: Path, kind: str) -> None:
    at = place(tmp_path, 0, 1, 200)
    controller = scripted(at, {60: back(40)})
    steps, _ = read(at, controller, kind)
    left = branches(controller)[0].left.steps
    assert joined(steps[:left]) == positions(0, left * 24)
    assert joined(steps[left:]) == positions(40 * 24, 200 * 24)


def test_an_iterator_that_cannot_go_back_goes_on_and_tells(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 200)
    controller = scripted(at, {60: back(40)})
    steps, session = read(at, controller, "iterator")
    assert len(steps) == session.progress.steps == 200
    [failed] = [report for report in reports(controller) if isinstance(report, RollbackFailed)]
    assert failed.number == 2
    assert "skip_data" in failed.reason
    assert not branches(controller)


def test_a_checkpoint_that_is_gone_lets_the_run_go_on(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 200)
    controller = scripted(at, {60: back(30)})
    _, session = read(at, controller)
    assert session.progress.steps == 200
    [failed] = [report for report in reports(controller) if isinstance(report, RollbackFailed)]
    assert "step 30 is no longer in" in failed.reason


def test_a_run_that_is_paused_goes_back_too_and_stays_paused(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 200)
    controller = scripted(
        at, {59.1: lambda v: replace(v, paused=True), 59.2: back(40), 59.3: lambda v: replace(v, paused=False)}
    )
    steps, session = read(at, controller)
    [branch] = branches(controller)
    assert len(steps) == 200 + branch.left.steps - 40
    assert session.progress.steps == 200


def test_a_version_that_was_skipped_still_goes_back(tmp_path: Path) -> None:
    def later(version: Version) -> Version:
        """What a rank gets that has not seen version 2."""
        lr = replace(version.parameters["lr"], base=Constant(0.05))
        return replace(version.with_parameter(lr), number=2, rollback=Rollback(2, 40))

    at = place(tmp_path, 0, 1, 200)
    controller = scripted(at, {60: later})
    steps, _ = read(at, controller)
    [branch] = branches(controller)
    assert branch.number == 2
    assert len(steps) == 200 + branch.left.steps - 40


def after(at: Assignment, **changes: Any) -> Assignment:
    """A formation that begins from the last checkpoint, as the driver makes it."""
    store = CheckpointStore(at.checkpoints)
    latest = store.latest()
    assert latest is not None
    shared, _ = store.load(latest, 0)
    return replace(at, checkpoint=latest, progress=Progress(*shared["progress"]), formation=2, **changes)


def test_a_formation_that_begins_from_the_checkpoint_goes_back_no_second_time(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 100)
    wish = back(40, skip_data=True)
    stop: Change = lambda v: replace(v, stopped=True)  # noqa: E731
    controller = scripted(at, {59.1: wish, 59.2: stop})
    first, session = read(at, controller)
    if session.progress.steps > 40:  # the last checkpoint is of the new branch; the next case is without it
        CheckpointStore(at.checkpoints).forget_after(40)
    assert CheckpointStore(at.checkpoints).latest() == at.checkpoints / "step-00000040"
    left = branches(controller)[0].left
    version = replace(controller.version, stopped=False, number=9)
    second = scripted(after(at), {})
    second.version = version
    steps, _ = read(after(at), second)
    assert not branches(second)
    assert steps[0] == positions(left.samples, left.samples + 24)  # nor does it read what was skipped
    assert len(steps) == 60
    assert len(first) >= left.steps


def test_a_formation_makes_a_roll_back_that_the_one_before_did_not_come_to(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 60)
    read(at, scripted(at, {}))
    again = after(place(tmp_path, 0, 1, 80))
    controller = scripted(again, {})
    controller.version = back(40)(controller.version)
    steps, session = read(again, controller)
    assert branches(controller) == [Branch(2, Progress(60, 60 * 24), Progress(40, 40 * 24))]
    assert {r.formation for r in controller.records if r.branch} == {3}
    assert len(steps) == 40
    assert session.progress.steps == 80
    assert [path.name for path in CheckpointStore(at.checkpoints).all()] == [f"step-{s:08d}" for s in (20, 40, 60, 80)]


def test_a_group_lost_while_it_went_back_skips_what_was_to_be_skipped(tmp_path: Path) -> None:
    """The crash between the two halves of `go_back`: noted at the checkpoint, the later ones not yet removed."""
    at = place(tmp_path, 0, 1, 60)
    read(at, scripted(at, {}))
    noted = at.checkpoints / "step-00000040" / "branch.json"
    noted.write_text(json.dumps({"rolled_back": 2, "skipped": 1000}))
    again = after(place(tmp_path, 0, 1, 80))
    assert again.progress.steps == 60
    controller = scripted(again, {})
    controller.version = back(40, skip_data=True)(controller.version)
    steps, _ = read(again, controller)
    assert steps[0][0] == 40 * 24 + 1000


def test_back_to_the_same_checkpoint_without_skip_reads_its_own_data(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 200)
    controller = scripted(at, {60: back(40, skip_data=True), 150: back(40)})
    steps, _ = read(at, controller)
    assert len(branches(controller)) == 2
    assert joined(steps[-160:]) == positions(40 * 24, 200 * 24)


def test_checkpoints_are_reported_with_what_is_kept(tmp_path: Path) -> None:
    at = place(tmp_path, 0, 1, 70, keep_checkpoints=2)
    controller = scripted(at, {})
    read(at, controller)
    told = [(report.step, report.samples, report.kept) for report in reports(controller)]
    assert told == [(20, 480, (20,)), (40, 960, (20, 40)), (60, 1440, (40, 60)), (70, 1680, (60, 70))]
    assert all(isinstance(report, Checkpointed) and report.version == 1 for report in reports(controller))


def test_the_target_of_a_roll_back_that_has_arrived_is_not_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3):
        store.save(step, {}, 0, 1, lambda: None, lambda: (1,))
    assert [path.name for path in store.all()] == ["step-00000001", "step-00000003"]
