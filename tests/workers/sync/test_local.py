"""Local steps: the mean every so many steps, and the outer Nesterov step by hand and as torch makes it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from threads import Meeting, ThreadRanks, in_threads
from torch import Tensor

from trimtab.controller.sync import STRATEGIES
from trimtab.workers.sync.local import LocalSteps

DEFAULTS = {option.name: option.default for option in STRATEGIES["local"]}


def make(ranks: ThreadRanks, w: Sequence[float], buffers: Sequence[float] = (), **options: Any) -> Any:
    """A strategy over one parameter, `.w`, and one buffer, `.b`; `.options` may be changed."""
    parameter, buffer = torch.nn.Parameter(torch.tensor(list(w))), torch.tensor(list(buffers))
    values = DEFAULTS | options
    strategy: Any = LocalSteps([parameter], [buffer] if len(buffers) else [], ranks, values.__getitem__)
    strategy.w, strategy.b, strategy.options = parameter, buffer, values
    return strategy


def advance(strategy: Any, number: int, move: float) -> float:
    strategy.before_update(number)
    with torch.no_grad():
        strategy.w.add_(move)
    strategy.after_update(number)
    return float(strategy.w.detach()[0])


def test_replicas_become_their_mean_every_so_many_steps() -> None:
    def train(ranks: ThreadRanks) -> tuple[list[float], list[float], int]:
        strategy = make(ranks, [0.0], [float(ranks.rank)], local_steps=3)
        seen = [advance(strategy, number, float(ranks.rank)) for number in range(1, 7)]
        assert strategy.lag == 3
        return seen, strategy.b.tolist(), ranks.collectives

    assert in_threads(3, train) == [
        ([0.0, 0.0, 3.0, 3.0, 3.0, 6.0], [1.0], 2),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0], 2),
        ([2.0, 4.0, 3.0, 5.0, 7.0, 6.0], [1.0], 2),
    ]


def test_local_steps_are_live() -> None:
    def train(ranks: ThreadRanks) -> list[float]:
        strategy = make(ranks, [0.0], local_steps=4)
        seen = [advance(strategy, 1, 2.0 * ranks.rank)]
        strategy.options["local_steps"] = 2
        return [*seen, advance(strategy, 2, 0.0), advance(strategy, 3, ranks.rank)]

    assert in_threads(2, train) == [[0.0, 1.0, 1.0], [2.0, 1.0, 2.0]]


def test_every_step_with_plain_sgd_is_the_mean_of_the_gradients() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 2, 6, 5), torch.randn(40, 2, 6, 1)  # (steps, ranks, samples, ...)

    def model() -> torch.nn.Module:
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))

    def loss(net: torch.nn.Module, number: int, rank: int) -> Tensor:
        return (net(x[number, rank]) - y[number, rank]).square().mean()

    nets = [model(), model()]  # made here, as threads share one generator

    def train(ranks: ThreadRanks) -> list[Tensor]:
        net = nets[ranks.rank]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        options = DEFAULTS | {"local_steps": 1}
        strategy = LocalSteps(list(net.parameters()), [], ranks, options.__getitem__)
        for number in range(40):
            optimizer.zero_grad()
            loss(net, number, ranks.rank).backward()
            strategy.before_update(number + 1)
            optimizer.step()
            strategy.after_update(number + 1)
        return [p.detach() for p in net.parameters()]

    reference = model()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for number in range(40):
        optimizer.zero_grad()
        (sum(loss(reference, number, rank) for rank in range(2)) / 2).backward()
        optimizer.step()
    for trained in in_threads(2, train):
        torch.testing.assert_close(trained, [p.detach() for p in reference.parameters()], rtol=1e-4, atol=1e-5)


def test_the_outer_step_by_hand() -> None:
    def train(ranks: ThreadRanks) -> list[float]:
        strategy = make(ranks, [0.0], local_steps=1, outer_lr=0.5, outer_momentum=0.5)
        return [advance(strategy, 1, -2.0 * ranks.rank), advance(strategy, 2, 0.0)]

    # mean -1: g = 1, v = 1, x = 0 - 0.5 (1 + 0.5) = -0.75; then g = 0, v = 0.5, x = -0.75 - 0.5 (0.25)
    assert in_threads(2, train) == [[-0.75, -0.875]] * 2


@pytest.mark.parametrize(("lr", "momentum"), [(0.7, 0.9), (0.5, 0.0), (1.0, 0.4)])
def test_the_outer_step_is_that_of_torch(lr: float, momentum: float) -> None:
    chance = torch.Generator().manual_seed(0)
    moves = torch.randn(6, 2, generator=chance).tolist()
    outer = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([outer], lr=lr, momentum=momentum, nesterov=momentum > 0)
    expected = []
    for pair in moves:
        outer.grad = torch.tensor([-sum(pair) / 2])
        optimizer.step()
        expected.append(outer.item())

    def train(ranks: ThreadRanks) -> list[float]:
        strategy = make(ranks, [0.0], local_steps=1, outer_lr=lr, outer_momentum=momentum)
        return [advance(strategy, number + 1, pair[ranks.rank]) for number, pair in enumerate(moves)]

    first, second = in_threads(2, train)
    assert first == second == pytest.approx(expected, abs=1e-5)


def test_the_outer_step_may_be_turned_on_and_off() -> None:
    (ranks,) = Meeting(1).ranks()
    strategy = make(ranks, [0.0], local_steps=1)
    assert advance(strategy, 1, 2.0) == 2.0
    strategy.options |= {"outer_lr": 0.5, "outer_momentum": 0.5}
    assert advance(strategy, 2, 2.0) == 3.5  # g = -2, v = -2
    strategy.options |= {"outer_lr": 1.0, "outer_momentum": 0.0}
    assert advance(strategy, 3, 1.0) == 4.5
    assert "velocity" not in strategy.state()


def test_goes_on_from_its_state() -> None:
    def train(ranks: ThreadRanks, restarted: bool) -> list[float]:
        strategy = make(ranks, [0.5], local_steps=2, outer_lr=0.7, outer_momentum=0.9)
        seen = []
        for number in range(1, 9):
            if restarted and number == 4:  # one step after an averaging
                state = {name: tensor.clone() for name, tensor in strategy.state().items()}
                strategy = make(ranks, strategy.w.tolist(), **strategy.options)
                strategy.load(state)
            seen.append(advance(strategy, number, 0.1 * (number + ranks.rank)))
        return seen

    assert in_threads(2, lambda ranks: train(ranks, True)) == in_threads(2, lambda ranks: train(ranks, False))


def test_the_consensus_is_the_mean_and_leaves_the_replicas() -> None:
    def train(ranks: ThreadRanks) -> tuple[list[float], float]:
        strategy = make(ranks, [2.0 * ranks.rank], [4.0 * ranks.rank])
        return [tensor.item() for tensor in strategy.consensus()], strategy.w.item()

    assert in_threads(2, train) == [([1.0, 2.0], 0.0), ([1.0, 2.0], 2.0)]
