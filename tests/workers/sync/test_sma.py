"""Synchronous model averaging: the rule by hand, replicas that agree on the central model, its start and its state."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from threads import Meeting, ThreadRanks, in_threads
from torch import Tensor

from trimtab.controller.sync import STRATEGIES
from trimtab.workers.sync.sma import ModelAveraging

DEFAULTS = {option.name: option.default for option in STRATEGIES["sma"]}


def make(
    ranks: ThreadRanks, w: list[float], buffers: Sequence[float] = (), **options: Any
) -> tuple[Any, Tensor, Tensor]:
    """A strategy over one parameter and one buffer, whose options may be changed through `strategy.options`."""
    parameter, buffer = torch.nn.Parameter(torch.tensor(w)), torch.tensor(list(buffers))
    values = DEFAULTS | options
    strategy: Any = ModelAveraging([parameter], [buffer] if buffers else [], ranks, values.__getitem__)
    strategy.options = values
    return strategy, parameter, buffer


@torch.no_grad()
def step(made: list[tuple[Any, Tensor, Tensor]], number: int, moves: list[float]) -> None:
    """One step of all ranks in lockstep; the local step adds a number to the parameter."""
    for strategy, _, _ in made:
        strategy.before_update(number)
    for (_, parameter, _), move in zip(made, moves, strict=True):
        parameter.add_(move)
    for strategy, _, _ in made:
        strategy.after_update(number)


def values(made: list[tuple[Any, Tensor, Tensor]]) -> list[float]:
    return [parameter.item() for _, parameter, _ in made]


def centres(made: list[tuple[Any, Tensor, Tensor]]) -> list[float]:
    return [strategy.centre[0].item() for strategy, _, _ in made]


def test_two_learners_by_hand() -> None:
    made = [make(ranks, [1.0]) for ranks in Meeting(2).ranks()]
    step(made, 1, [1.0, 0.0])  # c = 0, 0: z stays 1, Δ = 0
    assert (values(made), centres(made)) == ([2.0, 1.0], [1.0, 1.0])
    step(made, 2, [0.0, -1.0])  # c = 0.5, 0: Δ = 0.5, z = 1.5
    assert (values(made), centres(made)) == ([1.5, 0.0], [1.5, 1.5])
    step(made, 3, [0.0, 0.0])  # c = 0, -0.75: Δ = -0.75 + 0.9 · 0.5 = -0.3, z = 1.2
    assert values(made) == [1.5, 0.75]
    assert centres(made) == pytest.approx([1.2, 1.2])


def test_the_mean_alone_by_hand() -> None:
    made = [make(ranks, [1.0], [4.0 * ranks.rank], sma_form="mean") for ranks in Meeting(2).ranks()]
    step(made, 1, [2.0, 0.0])
    assert values(made) == [3.0, 1.0]
    assert [buffer.item() for _, _, buffer in made] == pytest.approx([0.2, 3.8])
    step(made, 2, [0.0, 0.0])  # 0.9 · 3 + 0.1 · 2 and 0.9 · 1 + 0.1 · 2
    assert values(made) == pytest.approx([2.9, 1.1])
    assert all(strategy.centre is None and strategy.state() == {} for strategy, _, _ in made)


def test_averages_only_at_every_so_manyth_step() -> None:
    made = [make(ranks, [0.0], sma_every=3, sma_alpha=0.25) for ranks in Meeting(2).ranks()]
    step(made, 1, [1.0, 0.0])
    step(made, 2, [1.0, 0.0])
    assert (values(made), centres(made)) == ([2.0, 0.0], [0.0, 0.0])
    step(made, 3, [1.0, 0.0])  # c = 0.5, 0
    assert (values(made), centres(made)) == ([2.5, 0.0], [0.5, 0.5])


def test_the_centre_is_the_same_on_all_ranks_bit_for_bit() -> None:
    def train(ranks: ThreadRanks) -> tuple[Tensor, Tensor, Tensor]:
        chance = torch.Generator().manual_seed(ranks.rank)
        strategy, w, _ = make(ranks, [0.5] * 1001, sma_alpha=0.3)
        for number in range(1, 41):
            strategy.before_update(number)
            with torch.no_grad():
                w.add_(0.1 * torch.randn(1001, generator=chance) - 0.1 * w)
            strategy.after_update(number)
        return strategy.centre[0], strategy.state()["velocity"], w

    (z, delta, w), *others = in_threads(3, train)
    assert all(torch.equal(other[0], z) and torch.equal(other[1], delta) for other in others)
    assert not any(torch.equal(other[2], w) for other in others)
    assert not torch.equal(z, torch.full_like(z, 0.5))


def test_one_learner_without_corrections_is_plain_sgd_bit_for_bit() -> None:
    def train(alpha: float | None) -> Tensor:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        options = {**DEFAULTS, "sma_alpha": alpha}
        (ranks,) = Meeting(1).ranks()
        strategy = ModelAveraging(list(model.parameters()), [], ranks, options.__getitem__)
        for number in range(1, 51):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            if alpha is not None:
                strategy.before_update(number)
            optimizer.step()
            if alpha is not None:
                strategy.after_update(number)
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    assert torch.equal(train(0.0).view(torch.int32), train(None).view(torch.int32))
    assert not torch.equal(train(-1.0), train(None))


def test_a_new_learning_rate_starts_all_from_the_centre() -> None:
    made = [make(ranks, [0.0], [float(ranks.rank)]) for ranks in Meeting(2).ranks()]
    step(made, 1, [4.0, 0.0])
    step(made, 2, [0.0, 0.0])  # c = 2, 0; z = 2, buffers 0.5
    for strategy, _, _ in made:
        strategy.restart()
    assert (values(made), centres(made)) == ([2.0, 2.0], [2.0, 2.0])
    assert [buffer.item() for _, _, buffer in made] == [0.5, 0.5]
    step(made, 3, [0.0, 0.0])  # no momentum is left
    assert centres(made) == [2.0, 2.0]


def test_buffers_are_averaged_for_the_centre_and_stay_their_own_on_the_replicas() -> None:
    made = [make(ranks, [1.0], [1.0, 10.0 * ranks.rank]) for ranks in Meeting(2).ranks()]
    step(made, 1, [0.0, 0.0])
    assert [strategy.centre[1].tolist() for strategy, _, _ in made] == [[1.0, 5.0], [1.0, 5.0]]
    assert [buffer.tolist() for _, _, buffer in made] == [[1.0, 0.0], [1.0, 10.0]]


def test_goes_on_from_its_state_bit_for_bit() -> None:
    made = [make(ranks, [0.3], [float(ranks.rank)], sma_alpha=0.4) for ranks in Meeting(2).ranks()]
    step(made, 1, [1.0, 0.5])
    step(made, 2, [-0.2, 0.1])
    state = made[1][0].state()
    copied = {name: tensor.clone() for name, tensor in state.items()}
    again = [make(ranks, [9.0], [9.0], sma_alpha=0.4) for ranks in Meeting(2).ranks()]
    for strategy, parameter, buffer in again:
        strategy.load(copied)
        assert parameter.item() == state["centre"][0].item()
        assert buffer.item() == state["centre"][1].item()
    for strategy, _, _ in made:  # they go on from the centre, with its momentum
        strategy._become(state["centre"])
    for number in (3, 4):
        step(made, number, [0.3, 0.0])
        step(again, number, [0.3, 0.0])
    assert (values(again), centres(again)) == (values(made), centres(made))
    assert copied["velocity"].item() != again[0][0].state()["velocity"].item()  # what was loaded is not written to


def test_options_are_live() -> None:
    made = [make(ranks, [0.0]) for ranks in Meeting(2).ranks()]
    step(made, 1, [4.0, 0.0])

    def turn(**options: Any) -> None:
        for strategy, _, _ in made:
            strategy.options.update(options)

    turn(sma_alpha=0.25, sma_momentum=0.0)
    step(made, 2, [0.0, 0.0])  # c = 1, 0
    assert (values(made), centres(made)) == ([3.0, 0.0], [1.0, 1.0])
    turn(sma_every=2)
    step(made, 3, [1.0, 0.0])
    assert (values(made), centres(made)) == ([4.0, 0.0], [1.0, 1.0])


def test_the_form_may_change_in_mid_run() -> None:
    def train(ranks: ThreadRanks) -> list[Any]:
        strategy, w, _ = make(ranks, [0.0])
        seen: list[Any] = []
        for number, form, move in (
            (1, "centre", 4.0 * ranks.rank),
            (2, "centre", 0.0),  # w = 0, 2; z = 2
            (3, "mean", 4.0 * ranks.rank),  # w = z, then the step
            (4, "mean", 0.0),  # the first that averages what differs
            (5, "centre", 0.0),  # w = z = mean(w)
        ):
            strategy.options["sma_form"] = form
            strategy.before_update(number)
            with torch.no_grad():
                w.add_(move)
            strategy.after_update(number)
            seen.append((w.item(), None if strategy.centre is None else strategy.centre[0].item()))
        return seen

    first, second = in_threads(2, train)
    assert first == [(0.0, 0.0), (0.0, 2.0), (2.0, None), (pytest.approx(2.2), None), (4.0, 4.0)]
    assert second == [(4.0, 0.0), (2.0, 2.0), (6.0, None), (pytest.approx(5.8), None), (4.0, 4.0)]


def test_a_state_of_the_other_form_is_taken_over() -> None:
    def train(ranks: ThreadRanks) -> tuple[float, float | None]:
        strategy, w, _ = make(ranks, [2.0 * ranks.rank])
        strategy.load({})  # of the form `mean`: there was no centre
        assert strategy.centre is None
        strategy.before_update(1)
        strategy.after_update(1)
        return w.item(), strategy.centre[0].item()

    assert in_threads(2, train) == [(1.0, 1.0), (1.0, 1.0)]
    made = [make(ranks, [0.0], sma_form="mean") for ranks in Meeting(2).ranks()]
    for strategy, _, _ in made:
        strategy.load({"centre": torch.tensor([3.0]), "velocity": torch.tensor([1.0])})
    step(made, 1, [0.0, 0.0])
    assert values(made) == [3.0, 3.0]
    assert all(strategy.centre is None for strategy, _, _ in made)


def test_the_consensus_is_the_centre_or_the_mean() -> None:
    def train(ranks: ThreadRanks, form: str) -> tuple[list[float], int]:
        strategy, w, _ = make(ranks, [1.0], [float(ranks.rank)], sma_form=form)
        with torch.no_grad():
            w.add_(ranks.rank)
        begun = ranks.collectives
        return [tensor.item() for tensor in strategy.consensus()], ranks.collectives - begun

    assert in_threads(2, lambda ranks: train(ranks, "mean")) == [([1.5, 0.5], 1)] * 2
    (first, none), (second, _) = in_threads(2, lambda ranks: train(ranks, "centre"))
    assert (first[0], second[0], none) == (1.0, 1.0, 0)
