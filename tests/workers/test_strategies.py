"""Strategies under a real session: what they are equal to, and what a switch makes of replicas."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import test_session as base
import torch
import torch.distributed as dist
from ranks import answers
from torch import nn
from torch.nn.functional import cross_entropy

from trimtab.controller.hyperparameters import Version, initial_parameter
from trimtab.controller.sync import OPTIONS, SYNC, SYNC_PARAMETER, with_options
from trimtab.controller.trajectory import Constant, Progress, Scalar
from trimtab.workers.checkpoint import CheckpointStore
from trimtab.workers.group import Group
from trimtab.workers.session import Session
from trimtab.workers.stream import SampleStream

BATCH, STEPS = 24, 40


def with_sync(version: Version, sync: str, **options: Scalar) -> Version:
    for spec in (replace(SYNC_PARAMETER, default=sync), *(replace(OPTIONS[n], default=v) for n, v in options.items())):
        version = version.with_parameter(initial_parameter(spec))
    return with_options(version, Progress())


def switched(sync: str) -> Callable[[Version], Version]:
    def change(version: Version) -> Version:
        version = version.with_parameter(replace(version.parameters[SYNC], base=Constant(sync)))
        return with_options(version, Progress())

    return change


def train(
    directory: Path,
    rank: int,
    group: Group,
    sync: str,
    options: Mapping[str, Scalar],
    momentum: float = 0.9,
    due: Mapping[float, Callable[[Version], Version]] | None = None,
) -> tuple[nn.Module, nn.Module, base.Scripted]:
    """The replica, what wraps it, and what the controller has heard."""
    place = base.assignment(directory, rank, group.size, BATCH, STEPS)
    place = replace(place, version=with_sync(place.version, sync, **options))
    controller = base.Scripted(place.version, due)
    session = Session(place, controller, group)
    model = base.net()
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum))
    for x, y in session.batches(base.data()):
        session.step(cross_entropy(wrapped(x), y))
        controller.handed_out(session.progress.steps)
    session.close()
    return model, wrapped, controller


def plain(momentum: float) -> nn.Module:
    """The loop that a user would write on one device, two micro-batches a step."""
    (x, y), stream, model = base.data(), SampleStream(base.DATA, 3), base.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for step in range(STEPS):
        rows = torch.from_numpy(stream.indices(torch.arange(step * BATCH, (step + 1) * BATCH).numpy()))
        optimizer.zero_grad()
        for half in rows.split(BATCH // 2):
            (cross_entropy(model(x[half]), y[half]) * 0.5).backward()
        optimizer.step()
    return model


def difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((p - q).abs().max()) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def equal_on_all(value: Any, ranks: int) -> bool:
    values = [None] * ranks
    dist.all_gather_object(values, value)
    return all(one == values[0] for one in values)


# ---- scenarios, run by every rank ---------------------------------------------------------------------------------


def local_is_allreduce(directory: Path, rank: int, _: int, group: dist.ProcessGroup) -> Any:
    every_step = {"local_steps": 1}
    one, _, _ = train(directory / "a", rank, base.grouped(group), "local", every_step, momentum=0.0)
    other, _, _ = train(directory / "b", rank, base.grouped(group), "allreduce", {}, momentum=0.0)
    return difference(one, other)


def centre_is_evaluated_and_kept(directory: Path, rank: int, _: int, group: dist.ProcessGroup) -> Any:
    model, wrapped, _ = train(directory, rank, base.grouped(group), "sma", {})
    x, _ = base.data()
    with torch.no_grad():
        seen, own = wrapped(x), model(x)
    path = CheckpointStore(directory / "checkpoints").latest()
    assert path is not None
    kept = base.net()
    kept.load_state_dict(torch.load(path / "shared.pt", weights_only=True)["model"])
    with torch.no_grad():
        of_checkpoint = kept(x)
    return {
        "replicas_differ": not equal_on_all(base.digest(model), 2),
        "evaluated_alike": equal_on_all(seen.sum().item(), 2),
        "own_is_another": not torch.equal(seen, own),
        "kept": torch.equal(seen, of_checkpoint),
        "trained": float(cross_entropy(seen, base.data()[1])) < float(cross_entropy(base.net()(x), base.data()[1])),
    }


def switches(directory: Path, rank: int, _: int, group: dist.ProcessGroup) -> Any:
    names = ("sma", "local", "pair", "allreduce")
    due = {8 * (i + 1) + rank: switched(name) for i, name in enumerate(names)}
    model, _, controller = train(directory, rank, base.grouped(group), "allreduce", {}, due=due)
    applied = [pair for r in controller.records for pair in r.applied]
    return {"equal": equal_on_all(base.digest(model), 2), "applied": applied}


def noise_on_request(directory: Path, rank: int, _: int, group: dist.ProcessGroup) -> Any:
    _, _, controller = train(directory, rank, base.grouped(group), "local", {"noise_every": 5})
    measured = [step for step, value in controller.column("local_sq").items() if value == value]
    mean = {s: v for r in controller.records if "mean_grad_sq" in r.columns for s, v in points(r, "mean_grad_sq")}
    own = controller.column("local_sq")
    return {"steps": measured, "mean": sorted(mean), "below": all(mean[s] < own[s] * 1.5 for s in mean)}


def points(records: Any, name: str) -> list[tuple[int, float]]:
    pairs = zip(records.steps.tolist(), records.columns[name].tolist(), strict=True)
    return [(step, value) for step, value in pairs if value == value]


# ---- tests --------------------------------------------------------------------------------------------------------


def test_sma_of_one_replica_that_is_not_corrected_is_plain_sgd_bit_for_bit(tmp_path: Path) -> None:
    model, _, _ = train(tmp_path, 0, Group.alone(), "sma", {"sma_alpha": 0.0})
    assert base.digest(model) == base.digest(plain(0.9))


def test_local_with_one_step_is_allreduce(tmp_path: Path) -> None:
    assert max(answers(local_is_allreduce, 2, tmp_path)) < 1e-5


def test_the_central_model_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    for answer in answers(centre_is_evaluated_and_kept, 2, tmp_path):
        assert all(answer.values()), answer


def test_switches_fall_at_one_step_and_leave_replicas_equal(tmp_path: Path) -> None:
    one, other = answers(switches, 2, tmp_path)
    assert one["applied"] == other["applied"]
    assert [number for number, _ in one["applied"]] == [1, 2, 3, 4, 5]
    assert one["equal"]


def test_noise_is_measured_where_it_is_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    for answer in answers(noise_on_request, 2, tmp_path):
        assert answer == {"steps": list(range(5, STEPS + 1, 5)), "mean": list(range(5, STEPS + 1, 5)), "below": True}
