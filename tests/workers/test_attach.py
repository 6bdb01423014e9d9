"""Loops that others own: a real torchrun, a real Ray Train, a program alone. As a script this file is one rank.

Each loop takes micro-batches of its own loader in order, so that a plain loop can be laid beside it.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from trimtab.controller import actor, views
from trimtab.controller.actor import call
from trimtab.controller.batching import Batching, Plan
from trimtab.controller.errors import Refused
from trimtab.controller.observation import Command
from trimtab.controller.state import RunState
from trimtab.workers import HostedSession, attach, launch

MICRO = 16
HP: dict[str, Any] = {"batch_size": 64, "lr": 0.1}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loader(rank: int, ranks: int, size: int = MICRO) -> Iterator[tuple[Tensor, Tensor]]:
    """The host's own: micro-batches without end."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(960, 20, generator=generator), torch.randint(4, (960,), generator=generator)
    while True:
        for at in range(rank * size, len(x), ranks * size):
            yield x[at : at + size], y[at : at + size]


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def plain(rank: int, ranks: int, steps: int, accumulation: int) -> str:
    """What a loop without Trimtab comes to."""
    model = DistributedDataParallel(net()) if ranks > 1 else net()
    optimizer = sgd(model)
    torch.manual_seed(rank)
    batches = loader(rank, ranks)
    for _ in range(steps):
        optimizer.zero_grad()
        for micro in range(accumulation):
            waits = isinstance(model, DistributedDataParallel) and micro + 1 < accumulation
            with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                x, y = next(batches)
                (cross_entropy(model(x), y) / accumulation).backward()
        optimizer.step()
    return digest(model)


def hosted(session: HostedSession, pause_s: float = 0.0) -> str:
    """The loop as the README has it, to its end."""
    torch.manual_seed(session.rank)
    for x, y in loader(session.rank, session.world_size):
        session.step(cross_entropy(session.model(x), y))
        if session.every(steps=20):
            session.log(val_loss=1.0)
        if session.ended:
            break
        time.sleep(pause_s)
    return digest(session.model)


def averaged() -> dict[str, Any]:
    """Replicas that train apart, and what the session shows of them once the run has ended."""
    model = net()
    x, y = next(loader(0, 1, 64))
    with attach(model, sgd(model), name="averaged", hp=HP, sync="sma", steps=40) as session:
        hosted(session)
        with torch.no_grad():
            session.model.eval()
            centre = float(cross_entropy(session.model(x), y))
    return {"sma": digest(session.model), "centre": centre}


def rank_of_torchrun(out: str, case: str) -> None:
    """One rank: what is asked for by `case`."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    told: dict[str, Any] = {}
    model = net()
    if case == "constant":
        session = attach(model, sgd(model), name=case, hp=HP, steps=60)
        with session:
            told["digest"] = hosted(session)
        told["plain"] = plain(rank, ranks, 60, 2)
        told |= averaged()
    elif case == "steered":
        with attach(model, sgd(model), name=case, hp=HP, policies=["spike_guard"]) as session:
            hosted(session, 0.005)
        told["state"] = session.state()
    elif case == "failing":
        with attach(model, sgd(model), name=case, hp=HP, micro_batch=MICRO) as session:
            for i, (x, y) in enumerate(loader(rank, ranks)):
                if rank == 1 and i == 20:
                    raise KeyError("the host's own mistake")
                session.step(cross_entropy(session.model(x), y))
    Path(f"{out}-{rank}").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank_of_torchrun(*sys.argv[1:])
    sys.exit()

pytestmark = pytest.mark.usefixtures("controller")


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def run_of(name: str) -> views.RunSummary | None:
    return next((run for run in call("runs")[0] if run.name == name), None)


def step_of(name: str) -> int:
    run = run_of(name)
    return run.progress.steps if run is not None else 0


@contextmanager
def torchrun(case: str, out: Path) -> Iterator["subprocess.Popen[str]"]:
    """Both ranks, which write what they tell to `out`; none outlives the test."""
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(["controller", "workers", "api"]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    arguments = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", __file__, str(out / case), case]
    with subprocess.Popen(
        [*command, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # torchrun ends its ranks


def pin(run: str, param: str, value: float, becomes: float) -> None:
    """Pin a parameter; both ranks run with what it becomes from the same step on."""
    version = call("pin", run, param, value, "tester", "by hand", None).version
    record, _ = applied(run, version)
    assert next(c.to for c in record.changes if c.param == param) == becomes


def applied(run: str, version: int) -> tuple[views.RecordView, int]:
    """A version once both ranks run with it, and from which step on."""

    def record() -> views.RecordView:
        return next(r for r in call("changes", run) if r.version == version)

    until(lambda: len(record().applied) == 2)
    [step] = set(record().applied.values())
    return record(), step


def test_constant_hyper_parameters_give_the_parameters_of_plain_ddp(tmp_path: Path) -> None:
    with torchrun("constant", tmp_path) as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    told = [json.loads((tmp_path / f"constant-{rank}").read_text()) for rank in range(2)]
    assert told[0]["digest"] == told[1]["digest"] == told[0]["plain"]
    view: views.RunView = call("run", run_of("constant").id)  # type: ignore[union-attr]
    assert (view.state, view.progress.steps, view.progress.samples) == (RunState.FINISHED, 60, 60 * 64)
    assert (view.host, view.world_size) == ("torchrun", 2)
    assert view.plan == {"batch_size": 64, "micro_batch": MICRO, "accumulation": 2, "world_size": 2}
    assert view.noise is not None
    assert told[0]["sma"] != told[1]["sma"]
    assert told[0]["centre"] == pytest.approx(told[1]["centre"], rel=1e-6)


def test_torchrun_steered_refused_and_stopped(tmp_path: Path) -> None:
    with torchrun("steered", tmp_path) as process:
        until(lambda: step_of("steered") > 20)
        run = run_of("steered").id  # type: ignore[union-attr]
        pin(run, "lr", 0.05, 0.05)
        pin(run, "batch_size", 90, 96)  # rounded to ranks x micro-batch
        assert call("run", run).plan == {"batch_size": 96, "micro_batch": MICRO, "accumulation": 3, "world_size": 2}
        _, step = applied(run, call("command", run, Command("pause", "look"), "tester"))
        held = step - 1
        until(lambda: step_of("steered") == held)
        time.sleep(2)
        assert (step_of("steered"), call("run", run).state) == (held, RunState.PAUSED)
        call("command", run, Command("resume", "go on"), "tester")
        until(lambda: step_of("steered") > held)
        assert_refused(run)
        call("command", run, Command("stop", "enough"), "tester")
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    view = call("run", run)
    assert view.state is RunState.STOPPED
    reader = ray.get_actor(actor.READER, namespace=actor.NAMESPACE)
    times = ray.get(reader.query.remote(run, ["step_time", "data_time"], "step", None, None, 10_000))
    assert max(float(one.max.max()) for one in times.values()) < 2  # the pause is in neither
    states = [json.loads((tmp_path / f"steered-{rank}").read_text())["state"] for rank in range(2)]
    assert states[0] == states[1] == {"run": run, "steps": view.progress.steps, "samples": view.progress.samples}


def assert_refused(run: str) -> None:
    """What a host cannot do mid-run is refused where it is asked for, with what to do instead."""
    with pytest.raises(Refused, match="workers are not Trimtab's own") as refusal:
        call("pin", run, "workers", 3, "tester", "", None)
    assert refusal.value.code == "fixed-size"
    for command, match in (
        (Command("rollback", "back"), "torchrun reads the data and keeps the checkpoints.*stop it, load a checkpoint"),
        (Command("rollback", "back", None, True), "cannot go back in place"),
        (Command("checkpoint", "now"), "save the model, the optimizer and session.state()"),
    ):
        with pytest.raises(Refused, match=match) as refusal:
            call("command", run, command, "tester")
        assert refusal.value.code == "not-with-attach"
    for kind in ("scale_workers", "learners"):
        with pytest.raises(Refused, match="torchrun started its processes") as refusal:
            call("put_policy", run, kind, kind, {}, "active", "tester", "", None)
        assert refusal.value.code == "not-with-attach"
    with pytest.raises(Refused, match="must lie in"):  # no micro-batch of each rank fits
        call("pin", run, "batch_size", MICRO, "tester", "", None)
    with pytest.raises(Refused, match=r"attach\(model, optimizer, run="):
        launch(lambda _: None, resume=run)


def test_a_rank_that_fails_says_why(tmp_path: Path) -> None:
    with torchrun("failing", tmp_path) as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode != 0, output
    run = call("run", run_of("failing").id)  # type: ignore[union-attr]
    assert run.state is RunState.FAILED
    assert run.state_reason == 'rank 1: KeyError: "the host\'s own mistake"'


def test_ray_train() -> None:
    train = pytest.importorskip("ray.train.torch")
    from ray.train import ScalingConfig

    def loop() -> None:
        import torch
        from torch import nn

        from trimtab.workers import attach

        torch.manual_seed(0)
        model = train.prepare_model(nn.Linear(20, 4))  # in DistributedDataParallel
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(16, 20), torch.randint(4, (16,))
        with attach(model, optimizer, name="train", hp={"batch_size": 32, "lr": 0.1}) as session:
            while not session.ended:
                session.step(nn.functional.cross_entropy(session.model(x), y))
                time.sleep(0.005)

    trainer = train.TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=2))
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(trainer.fit()))
    thread.start()
    until(lambda: step_of("train") > 10)
    run = run_of("train").id  # type: ignore[union-attr]
    pin(run, "lr", 0.02, 0.02)
    pin(run, "batch_size", 128, 128)
    assert call("run", run).plan["accumulation"] == 4
    with pytest.raises(Refused, match="sync must be one of allreduce"):
        call("pin", run, "sync", "sma", "tester", "", None)
    call("command", run, Command("stop", "enough"), "tester")
    thread.join(60)
    assert ended
    view = call("run", run)
    assert (view.state, view.host) == (RunState.STOPPED, "ray-train")


def alone(**options: Any) -> HostedSession:
    model = net()
    return attach(model, sgd(model), **({"name": "alone", "hp": {"batch_size": 32}, "steps": 30} | options))


def test_a_rank_alone_is_a_plain_loop_and_goes_on_later() -> None:
    session = alone()
    session.knob("mixup", 0.2, min=0, max=1)
    assert session.hp.mixup == 0.2
    with session:
        assert hosted(session) == plain(0, 1, 30, 2)
        assert session.ended
        x, y = next(loader(0, 1))
        assert not session.step(cross_entropy(session.model(x), y))  # nothing is trained any more
    assert (session.hp.lr, session.hp.mixup) == (0.1, 0.2)
    view = call("run", session.run)
    assert (view.state, view.host, view.progress.samples) == (RunState.FINISHED, "attached", 30 * 32)
    assert view.noise is not None
    model = net()
    with attach(model, sgd(model), state={"run": session.run, "steps": 10, "samples": 320}) as again:
        assert again.progress.steps == 10
        hosted(again)
    assert again.progress.steps == 30
    assert call("run", session.run).formation == 2


def test_short_batches_weigh_by_their_samples() -> None:
    x, y = next(loader(0, 1, 48))
    model = net().eval()
    session = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), name="short", hp={"batch_size": 32})
    with session:
        for at in (slice(16), slice(16, 26)):
            session.step(cross_entropy(session.model(x[at]), y[at]))
    reference = net().eval()
    (cross_entropy(reference(x[:26]), y[:26], reduction="sum") / 32).backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    for got, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)
    assert session.progress.samples == 32


def test_the_host_s_own_mistake_ends_the_run() -> None:
    session = alone()

    def loop() -> None:
        with session:
            x, y = next(loader(0, 1))
            session.step(cross_entropy(session.model(x), y))
            raise KeyError("mistaken")

    with pytest.raises(KeyError):
        loop()
    view = call("run", session.run)
    assert (view.state, view.state_reason) == (RunState.FAILED, "rank 0: KeyError: 'mistaken'")


def test_a_loss_that_is_not_of_the_session_s_model_is_refused() -> None:
    x, y = next(loader(0, 1))
    session = alone(micro_batch=MICRO)
    with pytest.raises(RuntimeError, match=r"the loss must come from session\.model"), session:
        session.step(cross_entropy(session.model.module(x), y))
    session = alone(micro_batch=8)
    with pytest.raises(ValueError, match="first batch has 16 samples and the run's micro-batch is 8"), session:
        session.step(cross_entropy(session.model(x), y))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"policies": ["nothing"]}, Refused, "no policy of kind 'nothing'"),
        ({"policies": ["scale_workers"]}, Refused, "workers is not possible with attach: a program of its own"),
        ({"hp": {"workers": 2}}, ValueError, "workers cannot be a hyper-parameter here"),
        ({"hp": {"batch_size": 8}}, ValueError, "no room for a micro-batch of 16 from each of 1 ranks: raise it to 16"),
        ({"steps": None, "epochs": 2}, ValueError, "epochs need dataset_size"),
        ({"run": "no-such-run"}, Refused, "there is no run 'no-such-run'"),
        ({"sync": "nothing"}, ValueError, "sync must be one of"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    runs = len(call("runs")[0])
    with pytest.raises(error, match=match):
        alone(**({"micro_batch": MICRO} | options))
    assert len(call("runs")[0]) == runs


def test_ranks_without_a_process_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"one of 2 ranks.*init_process_group"):
        alone()


def test_an_address_where_no_cluster_is_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1:9 .*or with `trimtab up`"):
        alone(address="127.0.0.1:9")


def test_a_model_in_ddp_keeps_to_allreduce(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(net())
        with pytest.raises(ValueError, match=r"sync='sma' needs the bare model.*before it is wrapped"):
            attach(model, sgd(model), hp={"lr": 0.1}, sync="sma")
    finally:
        dist.destroy_process_group()


def test_a_batch_of_a_host_moves_by_accumulation_only() -> None:
    batching = Batching(2, 16, 16, 1, fixed=True)
    plans = {target: batching.plan(target) for target in (1, 32, 47, 90, 96, 1000)}
    assert plans == {
        target: Plan(2, 16, accumulation)
        for target, accumulation in ((1, 1), (32, 1), (47, 1), (90, 3), (96, 3), (1000, 31))
    }
    assert batching.smallest == 32
    assert batching.regrouped(1) == Batching(1, 16, 16, 1, fixed=True)
