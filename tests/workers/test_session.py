"""The session without Ray: a scripted controller, real gloo groups."""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import answers
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from trimtab.controller import engine
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import HyperParameter, Version, initial_parameter
from trimtab.controller.observation import Horizon
from trimtab.controller.records import Records
from trimtab.controller.trajectory import Constant, Progress, Ramp
from trimtab.workers import session as session_of_a_rank
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoint import CheckpointStore
from trimtab.workers.group import Group
from trimtab.workers.peers import Peers
from trimtab.workers.session import MAX_NONFINITE, NonFiniteError, Session
from trimtab.workers.stream import SampleStream

DATA = 600


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(DATA, 20, generator=generator), torch.randint(4, (DATA,), generator=generator)


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 4))


def digest(model: nn.Module) -> str:
    parts = b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())
    return hashlib.sha256(parts).hexdigest()


class Scripted:
    """A controller that answers from a script: version n + 1 arrives once `due[n]` steps have been reported."""

    def __init__(self, version: Version, due: Mapping[float, Callable[[Version], Version]] | None = None) -> None:
        self.version = version
        self._due = dict(due or {})
        self.records: list[Records] = []
        self._lock = threading.Condition()

    def __call__(self, method: str, *args: Any) -> Any:
        answer: Any = getattr(self, method)(*args)
        return answer

    def register(self, _run: str, _formation: int, specs: list[HyperParameter], *_: Any) -> Version:
        for spec in specs:
            if spec.name not in self.version.parameters:
                self.version = self.version.with_parameter(initial_parameter(spec))
        return self.version

    def ingest(self, records: Records) -> None:
        with self._lock:
            self.records.append(records)
            self._lock.notify_all()

    def next_versions(self, _run: str, after: int, _timeout_s: float) -> tuple[Version, ...]:
        with self._lock:
            self._lock.wait(0.02)
            if after > self.version.number:
                return ()
            seen = max((int(r.steps[-1]) for r in self.records if len(r.steps)), default=0)
            ready = [step for step in sorted(self._due) if step <= seen]
            if not ready:
                return ()
            self.version = replace(self._due.pop(ready[0])(self.version), number=self.version.number + 1)
            self._lock.notify_all()
            return (self.version,)

    def handed_out(self, step: float) -> None:
        """Wait until nothing is left that is due by `step`."""
        with self._lock:
            assert self._lock.wait_for(lambda: all(due > step for due in self._due), 20)

    def column(self, name: str) -> dict[int, float]:
        return {
            int(step): float(value) for r in self.records for step, value in zip(r.steps, r.columns[name], strict=True)
        }


def assignment(directory: Path, rank: int, world_size: int, batch: int, steps: int, **changes: Any) -> Assignment:
    parameters = (
        HyperParameter(name="batch_size", kind="integer", default=batch, max=DATA),
        HyperParameter(name="lr", default=0.1, min=0.0),
    )
    micro = changes.pop("micro_batch", batch // max(world_size, 2))
    spec = RunSpec(
        name="t",
        world_size=world_size,
        parameters=parameters,
        micro_batch=micro,
        max_micro_batch=changes.pop("max_micro_batch", micro),
        horizon=changes.pop("horizon", Horizon(steps, "steps")),
        seed=3,
    )
    version = engine.create(spec, 1).version
    given: dict[str, Any] = {
        "run": "t",
        "spec": spec,
        "rank": rank,
        "world_size": world_size,
        "formation": 1,
        "version": version,
        "checkpoints": directory / "checkpoints",
        "checkpoint_steps": 0,
    }
    return Assignment(**(given | changes))


def grouped(group: dist.ProcessGroup | None) -> Group:
    """The group of ranks whose own lines are `group`; None for a rank alone."""
    if group is None:
        return Group.alone()
    store = PrefixStore(f"peers-{next(_FORMED)}", _get_default_store())
    return Group(1, group.rank(), group.size(), Peers(store, group.rank(), group.size(), "127.0.0.1"))


_FORMED = itertools.count()


def train(
    place: Assignment, controller: Scripted, group: dist.ProcessGroup | None, dropout: float = 0.0, pause_s: float = 0.0
) -> tuple[nn.Module, Session]:
    session = Session(place, controller, grouped(group))
    model = net(dropout)
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for x, y in session.batches(data()):
        session.step(cross_entropy(wrapped(x), y))
        time.sleep(pause_s)
    session.close()
    return model, session


def plain(rank: int, world_size: int, batch: int, steps: int) -> nn.Module:
    """The loop that a user would write with DDP alone, over the same samples."""
    x, y = data()
    stream = SampleStream(DATA, 3)
    model = net()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        positions = torch.arange(step * batch + rank, (step + 1) * batch, world_size).numpy()
        rows = torch.from_numpy(stream.indices(positions))
        optimizer.zero_grad()
        cross_entropy(parallel(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


# ---- scenarios, run by every rank ---------------------------------------------------------------------------------


def identical(directory: Path, rank: int, world_size: int, group: dist.ProcessGroup) -> Any:
    batch = 12 * world_size
    place = assignment(directory, rank, world_size, batch, 200)
    model, _ = train(place, Scripted(place.version), group)
    return digest(model), digest(plain(rank, world_size, batch, 200))


def resumed(directory: Path, rank: int, world_size: int, group: dist.ProcessGroup) -> Any:
    straight, _ = train(assignment(directory / "a", rank, world_size, 24, 120), _scripted(rank), group, dropout=0.3)
    train(assignment(directory / "b", rank, world_size, 24, 60), _scripted(rank), group, dropout=0.3)
    latest = CheckpointStore(directory / "b" / "checkpoints").latest()
    place = assignment(directory / "b", rank, world_size, 24, 120, checkpoint=latest, progress=Progress(60, 60 * 24))
    again, _ = train(place, _scripted(rank), group, dropout=0.3)
    return digest(straight), digest(again)


def _scripted(rank: int) -> Scripted:
    """A warm-up is going on while the checkpoint is taken."""
    version = assignment(Path("/tmp"), rank, 2, 24, 1).version
    lr = replace(version.parameters["lr"], factors={"warmup": Ramp(0.1, 1.0, 0, 100, "steps")})
    return Scripted(version.with_parameter(lr))


def steered(directory: Path, rank: int, world_size: int, group: dist.ProcessGroup) -> Any:
    """Batch 24 -> 96, a pause, a checkpoint, then a stop, all by versions that reach the ranks at different times."""

    def batch(version: Version) -> Version:
        return version.with_parameter(replace(version.parameters["batch_size"], base=Constant(96)))

    due = {
        20 + rank: batch,
        40: lambda v: replace(v, paused=True),
        41: lambda v: replace(v, paused=False, checkpoints=1),
        90: lambda v: replace(v, stopped=True),
    }
    place = assignment(directory, rank, world_size, 24, 100_000)
    controller = Scripted(place.version, due)
    model, session = train(place, controller, group, pause_s=0.002)
    batches = controller.column("batch_size")
    applied = [pair for r in controller.records for pair in r.applied]
    kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
    return digest(model), session.progress.steps, session.progress.samples, batches, applied, kept


def short(directory: Path, rank: int, world_size: int, group: dist.ProcessGroup) -> Any:
    """A horizon that leaves a last step of 7 samples, 3 short ranks, one of them uneven."""
    place = assignment(directory, rank, world_size, 24, 1, horizon=Horizon(55))
    controller = Scripted(place.version)
    model, session = train(place, controller, group)
    return digest(model), session.progress.samples, controller.column("batch_size")


# ---- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3])
def test_constant_values_train_bit_for_bit_as_plain_ddp(tmp_path: Path, world_size: int) -> None:
    digests = {one for rank in answers(identical, world_size, tmp_path) for one in rank}
    assert len(digests) == 1


def test_a_resumed_run_ends_bit_for_bit_where_one_without_a_break_does(tmp_path: Path) -> None:
    digests = {one for rank in answers(resumed, 2, tmp_path) for one in rank}
    assert len(digests) == 1


def test_versions_are_obeyed_at_one_step_by_all_ranks(tmp_path: Path) -> None:
    ranks = answers(steered, 3, tmp_path)
    assert ranks[0] == ranks[1] == ranks[2]
    _, steps, samples, batches, applied, kept = ranks[0]
    assert steps >= 90
    assert samples == sum(batches.values())
    assert set(batches.values()) == {24.0, 96.0}
    assert [version for version, _ in applied] == sorted({version for version, _ in applied})
    changed = dict(map(tuple, applied))[2]
    assert min(int(step) for step, batch in batches.items() if batch == 96) == changed
    assert len(kept) == 2  # one asked for, one at the end
    assert kept[-1] == f"step-{steps:08d}"


def test_the_last_step_may_be_short(tmp_path: Path) -> None:
    ranks = answers(short, 3, tmp_path)
    assert ranks[0] == ranks[1] == ranks[2]
    _, samples, batches = ranks[0]
    assert samples == 55
    assert batches == {"1": 24, "2": 24, "3": 7}


def alone(tmp_path: Path, batch: int, steps: int, **changes: Any) -> tuple[nn.Module, Session, Scripted]:
    place = assignment(tmp_path, 0, 1, batch, steps, **changes)
    controller = Scripted(place.version)
    return *train(place, controller, None), controller


def test_four_micro_batches_of_16_are_one_step_of_64(tmp_path: Path) -> None:
    accumulated, session, _ = alone(tmp_path / "a", 64, 20, micro_batch=16)
    halves, other, _ = alone(tmp_path / "b", 64, 20, micro_batch=32)
    assert session.progress == other.progress == Progress(20, 1280)
    for ours, theirs in zip(accumulated.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_norms_of_one_rank_are_measured_on_every_step(tmp_path: Path) -> None:
    _, _, controller = alone(tmp_path, 64, 10, micro_batch=16)
    assert set(controller.column("local_batch").values()) == {16.0}
    assert all(
        s > q**2 > 0 for s, q in zip(*(controller.column(c).values() for c in ("local_sq", "grad_norm")), strict=True)
    )


def test_a_pause_is_no_step_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_of_a_rank, "HOLD_S", 2.0)
    place = assignment(tmp_path, 0, 1, 64, 200)
    due = {20: lambda v: replace(v, paused=True), 21: lambda v: replace(v, paused=False)}
    controller = Scripted(place.version, due)
    start = time.monotonic()
    train(place, controller, None, pause_s=0.005)
    assert controller.version.number == 3
    assert time.monotonic() - start > 2
    assert max(controller.column("step_time").values()) < 2


def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_the_run_at_last(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 64, 100)
    controller = Scripted(place.version)
    session = Session(place, controller, Group.alone())
    model = net()
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    before = digest(model)

    def loop() -> None:
        for x, y in session.batches(data()):
            session.step(cross_entropy(wrapped(x), y) * float("nan"))

    with pytest.raises(NonFiniteError, match="Lower lr"):
        loop()
    session.close()
    assert digest(model) == before
    assert session.progress.steps == MAX_NONFINITE
    assert sum(len(r.logged.get("skipped_step", ((), ()))[1]) for r in controller.records) == MAX_NONFINITE


def test_marks_of_every(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 40, 12, micro_batch=10)
    session = Session(place, Scripted(place.version), Group.alone())
    model = net()
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    steps, samples = [], []
    for x, y in session.batches(data()):
        session.step(cross_entropy(wrapped(x), y))
        if session.every(steps=5):
            steps.append(session.progress.steps)
        if session.every(samples=100):
            samples.append(session.progress.samples)
    assert steps == [5, 10]
    assert samples == [120, 200, 320, 400]
    session.close()


def test_knobs_are_read_through_hp_and_registered(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 64, 3)
    controller = Scripted(place.version)
    session = Session(place, controller, Group.alone())
    session.knob("mixup", 0.2, min=0, max=1)
    assert session.hp.mixup == 0.2
    model = net()
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for x, y in session.batches(data()):
        session.step(cross_entropy(wrapped(x), y))
    session.close()
    assert controller.version.parameters["mixup"].spec.max == 1
    assert {"momentum", "weight_decay", "grad_clip", "precision"} <= controller.version.parameters.keys()
    with pytest.raises(AttributeError, match="there are"):
        _ = session.hp.nothing
    with pytest.raises(AttributeError, match="knob"):
        session.hp.lr = 1.0


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 64, 1)
    version = place.version.with_parameter(
        replace(initial_parameter(HyperParameter(name="grad_clip", default=0.0, min=0.0)), base=Constant(1e-3))
    )
    session = Session(place, Scripted(version), Group.alone())
    model = net()
    before = torch.cat([p.detach().clone().ravel() for p in model.parameters()])
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for x, y in session.batches(data()):
        session.step(cross_entropy(wrapped(x), y))
    session.close()
    after = torch.cat([p.detach().ravel() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_bf16_runs_the_forward_pass_under_autocast(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 64, 2)
    choice = HyperParameter(name="precision", kind="choice", default="bf16", choices=("fp32", "bf16"))
    session = Session(place, Scripted(place.version.with_parameter(initial_parameter(choice))), Group.alone())
    model = net()
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    for x, y in session.batches(data()):
        scores = wrapped(x)
        assert scores.dtype is torch.float32
        session.step(cross_entropy(scores, y))
    session.close()
    assert set(seen) == {torch.bfloat16}


def test_mistakes_of_a_loop_are_told(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 64, 5)
    session = Session(place, Scripted(place.version), Group.alone())
    with pytest.raises(RuntimeError, match="prepare"):
        next(session.batches(data()))
    model = net()
    session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batches = session.batches(data())
    next(batches)
    with pytest.raises(RuntimeError, match="after a step"):
        session.checkpoint()
    with pytest.raises(RuntimeError, match=r"session\.step"):
        next(batches)
    with pytest.raises(ValueError, match="loss is noted by Trimtab itself"):
        session.log(loss=1.0)
    session.close()


def test_a_data_set_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    place = assignment(tmp_path, 0, 1, 64, 5)
    session = Session(place, Scripted(place.version), Group.alone())
    model = net()
    session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="fewer than one global batch of 64"):
        next(session.batches(tuple(t[:50] for t in data())))
