"""Gradient monitors against brute force and against plain DDP."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import answers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from trimtab.workers.gradients import MicroMonitor, RankMonitor, clip_gradients, gradient_norm, squared


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 64, generator=generator), torch.randint(10, (count,), generator=generator)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])


def brute(x: Tensor, y: Tensor) -> Tensor:
    model = net()
    cross_entropy(model(x), y).backward()
    return flat(model)


def test_one_rank_s_accumulation_is_bit_identical_and_measured() -> None:
    x, y = data(64, 1)
    plain, ours = net(), net()
    monitor = MicroMonitor(list(ours.parameters()))
    for step in range(3):
        plain.zero_grad()
        ours.zero_grad()
        for i in range(0, 64, 16):
            (cross_entropy(plain(x[i : i + 16]), y[i : i + 16]) / 4).backward()
            (cross_entropy(ours(x[i : i + 16]), y[i : i + 16]) / 4).backward()
            monitor.collect(1 / 4)
        measured = monitor.finish()
        assert torch.equal(flat(plain), flat(ours)), step
    squares = [squared(brute(x[i : i + 16], y[i : i + 16])) for i in range(0, 64, 16)]
    assert measured.gradients == 4
    assert float(measured.local_sq) == pytest.approx(float(sum(squares)) / 4, rel=1e-5)
    torch.testing.assert_close(flat(ours), brute(x, y), rtol=1e-4, atol=1e-7)


def test_parameters_that_only_some_micro_batches_use() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    monitor = MicroMonitor([first, second, nn.Parameter(torch.ones(1))])
    for loss in (first.sum() / 2, (first * second).sum() / 2):
        loss.backward()
        monitor.collect(1 / 2)
    assert float(monitor.finish().local_sq) == pytest.approx((2 + 4) / 2)
    assert first.grad is not None
    assert first.grad.tolist() == [1, 1]
    assert second.grad is not None
    assert second.grad.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
def test_norm_and_clipping_are_torch_s(max_norm: float) -> None:
    x, y = data(32, 2)
    theirs, ours = net(), net()
    for model in (theirs, ours):
        cross_entropy(model(x), y).backward()
    expected = clip_grad_norm_(theirs.parameters(), max_norm)
    norm = gradient_norm(list(ours.parameters()))
    clip_gradients(list(ours.parameters()), max_norm, norm)
    assert torch.equal(norm, expected)
    assert torch.equal(flat(ours), flat(theirs))


def test_a_half_s_square_does_not_overflow() -> None:
    assert squared(torch.full((4,), 300.0, dtype=torch.float16)).item() == pytest.approx(360000)


def test_ddp_s_hook_at_two_and_three_ranks(tmp_path: Path) -> None:
    answers(hooked, 3, tmp_path)


def train(group: dist.ProcessGroup, monitored: bool, steps: int) -> Tensor:
    model = DistributedDataParallel(net(), process_group=group, bucket_cap_mb=0.2, gradient_as_bucket_view=True)
    monitor = RankMonitor(model) if monitored else None
    scale = (monitor.loss_scale if monitor else 1.0) / 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        x, y = data(32, step * 100 + group.rank())
        with model.no_sync():
            (cross_entropy(model(x[:16]), y[:16]) * scale).backward()
        (cross_entropy(model(x[16:]), y[16:]) * scale).backward()
        if monitor:
            elapsed = monitor.finish().reduce_time
            assert isinstance(elapsed, float)
            assert elapsed > 0
        optimizer.step()
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def check_norms(group: dist.ProcessGroup) -> None:
    model = DistributedDataParallel(net(), process_group=group, bucket_cap_mb=0.2, gradient_as_bucket_view=True)
    monitor = RankMonitor(model)
    sizes = (16, 5, 0)[: group.size()] if group.size() == 3 else (16, 8)
    batches = [data(size, rank) for rank, size in enumerate(sizes)]
    everything = [torch.cat(part) for part in zip(*batches, strict=True)]
    size = sizes[group.rank()]
    x, y = batches[group.rank()] if size else data(1, 9)
    monitor.weight = size * group.size() / sum(sizes)
    for _ in range(2):  # after the first step DDP builds its buckets anew
        model.zero_grad()
        (cross_entropy(model(x), y) * monitor.loss_scale).backward()
        measured = monitor.finish()
        assert float(measured.local_sq) == pytest.approx(squared(brute(x, y)).item(), rel=1e-5)
        torch.testing.assert_close(flat(model), brute(everything[0], everything[1]), rtol=1e-4, atol=1e-7)


def hooked(_: Path, rank: int, __: int, ___: dist.ProcessGroup) -> None:
    for ranks in ([0, 1], [0, 1, 2]):
        group = dist.new_group(ranks)
        if rank in ranks:
            assert torch.equal(train(group, True, 200), train(group, False, 200)), f"{len(ranks)} ranks differ"
            check_norms(group)
