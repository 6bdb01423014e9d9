"""Policies against the code that the field uses: torch's schedulers; and AdaScale's gain against its formula.

A policy acts on a Trial as the controller would have it, step for step; its scheduler acts on an optimizer.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from trimtab.controller.batching import Batching
from trimtab.controller.hyperparameters import BATCH, LR, HyperParameter, Parameter, Version, initial_parameter
from trimtab.controller.observation import Horizon, Observation, Reading, Scale, Set
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.policies.policy import Policy
from trimtab.controller.policies.schedule import Schedule
from trimtab.controller.policies.warmup import Warmup
from trimtab.controller.trajectory import Constant, Coupling, Progress

SIZE = 64  # [samples] the batch, which stays
BASE = 0.1
Oracle = Callable[[torch.optim.Optimizer], LRScheduler]


class Trial:
    """A run at constant batch with some policies, each asked before every step."""

    def __init__(self, *policies: Policy, horizon: Horizon | None = None, dataset_size: int | None = None) -> None:
        self.policies, self.horizon, self.dataset_size = policies, horizon, dataset_size
        self.states: list[Mapping[str, Any]] = [policy.initial() for policy in policies]
        batch = initial_parameter(HyperParameter(name=BATCH, kind="integer", default=SIZE, min=1))
        lr = Parameter(HyperParameter(name=LR, default=BASE), Constant(BASE), {"batch": Coupling("linear", SIZE)})
        self.version = Version(1, 1, Batching(1, SIZE, SIZE), {BATCH: batch, LR: lr})
        self.decay_from: Progress | None = None

    def tick(self, step: int, metrics: Mapping[str, tuple[Reading, ...]] | None = None) -> None:
        now = Progress(step, SIZE * step)
        seen = self.version.at(now)
        for i, policy in enumerate(self.policies):
            observation = Observation(
                now,
                seen.values,
                seen.plan,
                horizon=self.horizon,
                dataset_size=self.dataset_size,
                decay_from=self.decay_from,
                metrics=metrics or {},
            )
            self.states[i], proposals = policy.decide(self.states[i], observation)
            for proposal in proposals:
                assert isinstance(proposal, Set | Scale)
                lr = self.version.parameters[proposal.param]
                if isinstance(proposal, Set):
                    lr = Parameter(lr.spec, proposal.to, lr.factors)
                else:
                    lr = Parameter(lr.spec, lr.base, {**lr.factors, str(i): proposal.by})
                self.version = self.version.with_parameter(lr)

    def lr(self, step: int) -> float:
        value = self.version.at(Progress(step, SIZE * step)).values[LR]
        assert isinstance(value, float)
        return value

    def run(self, steps: int) -> Iterator[float]:
        for step in range(steps):
            self.tick(step)
            yield self.lr(step)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)


def torchs(oracle: Oracle, steps: int) -> Iterator[float]:
    sgd = optimizer()
    scheduler = oracle(sgd)
    for _ in range(steps):
        yield sgd.param_groups[0]["lr"]
        sgd.step()
        scheduler.step()


def check(trial: Trial, oracle: Oracle, steps: int) -> None:
    """The learning rate of every step; 1e-12 of the base is what torch's own recursions lose near zero."""
    for step, (ours, theirs) in enumerate(zip(trial.run(steps), torchs(oracle, steps), strict=True)):
        assert math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12 * BASE), (step, ours, theirs)


# ---- schedule and warm-up ------------------------------------------------------------------------------------------

lengths = st.integers(2, 120)
shares = st.floats(0.01, 1.0)
each = settings(max_examples=60, deadline=None)


def step_of(**params: Any) -> Schedule:
    return Schedule(unit="steps", **params)


@each
@given(lengths, shares, lengths)
def test_constant_lr(until: int, factor: float, more: int) -> None:
    table = step_of(shape="table", marks=(0, until), values=(factor, 1.0), interpolation="step")
    check(Trial(table), lambda sgd: ConstantLR(sgd, factor, until), until + more)
    check(Trial(Schedule(shape="constant", start=factor)), lambda sgd: ConstantLR(sgd, factor, 10**9), more)


@each
@given(lengths, shares, shares, lengths)
def test_linear_lr(until: int, start: float, end: float, more: int) -> None:
    schedule = step_of(shape="linear", horizon=until, start=start, end=end)
    check(Trial(schedule), lambda sgd: LinearLR(sgd, start, end, until), until + more)
    if start < 1:
        warmup = Warmup(steps=until, start=start)
        check(Trial(warmup), lambda sgd: LinearLR(sgd, start, 1.0, until), until + more)


@each
@given(st.integers(1, 50), st.floats(0.3, 2.0).filter(lambda gamma: gamma != 1), st.integers(1, 20))
def test_step_lr(every: int, gamma: float, times: int) -> None:
    schedule = step_of(shape="step", every=every, gamma=gamma)
    check(Trial(schedule), lambda sgd: StepLR(sgd, every, gamma), every * times)


@each
@given(st.lists(st.integers(1, 120), min_size=1, max_size=6, unique=True).map(sorted), shares)
def test_multi_step_lr(marks: list[int], gamma: float) -> None:
    schedule = step_of(shape="step", marks=tuple(marks), gamma=gamma)
    check(Trial(schedule), lambda sgd: MultiStepLR(sgd, marks, gamma), 130)


@each
@given(lengths, st.floats(0, 0.9))
def test_cosine_annealing_lr(until: int, end: float) -> None:
    """Until the minimum: from there torch goes up again."""
    cosine: Oracle = lambda sgd: CosineAnnealingLR(sgd, until, BASE * end)  # noqa: E731
    check(Trial(step_of(horizon=until, end=end)), cosine, until + 1)
    check(Trial(Schedule(end=end), horizon=Horizon(until, "steps")), cosine, until + 1)
    check(Trial(Schedule(end=end), horizon=Horizon(until * SIZE)), cosine, until + 1)
    check(Trial(step_of(horizon=until, of="base", start=BASE, end=BASE * end)), cosine, until + 1)
    epochs = Trial(Schedule(unit="epochs", horizon=3, end=end), dataset_size=SIZE * until)
    check(epochs, lambda sgd: CosineAnnealingLR(sgd, 3 * until, BASE * end), 3 * until + 1)


DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def wsd(shape: str, begin: int, length: int) -> Callable[[int], float]:
    return lambda step: DECAYS[shape](min(max((step - begin) / length, 0.0), 1.0))


@each
@given(st.integers(10, 200), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from(sorted(DECAYS)))
def test_wsd_is_its_lambda(steps: int, decay: float, shape: str) -> None:
    length = round(decay * steps)
    schedule = step_of(shape="wsd", horizon=steps, decay=decay, decay_shape=shape)
    check(Trial(schedule), lambda sgd: LambdaLR(sgd, wsd(shape, steps - length, length)), steps + 10)


@each
@given(st.integers(10, 100), st.integers(0, 8), st.sampled_from(sorted(DECAYS)))
def test_wsd_decays_when_told(told: int, late: int, shape: str) -> None:
    """The word may reach the policy some steps late; the learning rate is then that of a decay in time."""
    length = round(told * 0.2 / 0.8)
    trial = Trial(step_of(shape="wsd", decay=0.2, decay_shape=shape, horizon=1000))
    assert list(trial.run(told)) == [BASE] * told
    trial.decay_from = Progress(told, SIZE * told)
    trial.tick(told + late)
    ours = [trial.lr(step) for step in range(told + late, told + length + 20)]
    theirs = list(torchs(lambda sgd: LambdaLR(sgd, wsd(shape, told, length)), told + length + 20))[told + late :]
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12 * BASE)


@each
@given(st.integers(2, 40), st.integers(2, 80), shares.filter(lambda share: share < 1))
def test_warm_up_then_cosine_is_a_sequence(up: int, down: int, start: float) -> None:
    """Both are factors, so the cosine must begin where the warm-up has ended."""
    trial = Trial(Warmup(steps=up, start=start), step_of(horizon=down))

    def both(sgd: torch.optim.Optimizer) -> LRScheduler:
        return SequentialLR(sgd, [LinearLR(sgd, start, 1.0, up), CosineAnnealingLR(sgd, down)], [up])

    theirs = torchs(both, up + down + 1)
    schedule, trial.policies = trial.policies[1], trial.policies[:1]
    for step in range(up + down + 1):
        if step == up:
            trial.policies = (*trial.policies, schedule)
        trial.tick(step)
        assert math.isclose(trial.lr(step), next(theirs), rel_tol=1e-9, abs_tol=1e-12 * BASE), step


@each
@given(st.integers(2, 40), st.integers(5, 80), st.floats(0.2, 0.9), st.sampled_from(sorted(DECAYS)))
def test_warm_up_stable_decay(up: int, stable: int, start: float, shape: str) -> None:
    """Added together at the beginning, the two factors are one warm-up-stable-decay."""
    steps = up + stable + round((up + stable) / 9)
    length = round(0.1 * steps)
    trial = Trial(
        Warmup(steps=up, start=start), Schedule(shape="wsd", decay_shape=shape), horizon=Horizon(steps, "steps")
    )
    late = wsd(shape, steps - length, length)
    check(trial, lambda sgd: LambdaLR(sgd, lambda s: late(s) * min(1.0, start + (1 - start) * s / up)), steps + 5)


# ---- plateau -------------------------------------------------------------------------------------------------------

levels = st.sampled_from([-1.0, 0.0, 0.5, 0.9999, 1.0, 1.00005, 2.0]) | st.floats(-10, 10, allow_nan=False)


@settings(max_examples=1000, deadline=None)
@given(
    values=st.lists(levels, max_size=60),
    chunk=st.integers(1, 4),
    mode=st.sampled_from(["min", "max"]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    threshold=st.sampled_from([0.0, 1e-4, 0.1]),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
    min_lr=st.sampled_from([0.0, 1e-3, 0.03, 0.2]),
    eps=st.sampled_from([1e-8, 0.02]),
)
def test_reduce_lr_on_plateau(values: list[float], chunk: int, **config: Any) -> None:
    """Its readings come `chunk` a tick. What it counts is torch's too, after every tick."""
    trial, sgd = Trial(Plateau(**config)), optimizer()
    oracle = ReduceLROnPlateau(sgd, **config)
    for tick, few in enumerate(_chunks(values, chunk)):
        trial.tick(tick, {"val_loss": tuple(Reading(tick, SIZE * tick, value) for value in few)})
        for value in few:
            oracle.step(value)
        assert math.isclose(trial.lr(tick), sgd.param_groups[0]["lr"], rel_tol=1e-9)
        assert trial.states[0]["bad"] == oracle.num_bad_epochs
        assert trial.states[0]["best"] == oracle.best
        assert trial.states[0]["cooldown"] == oracle.cooldown_counter


def _chunks(values: Sequence[float], size: int) -> Iterator[Sequence[float]]:
    return (values[i : i + size] for i in range(0, len(values), size))


# ---- AdaScale ------------------------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 2**30), st.integers(1, 2**30), st.floats(1e-6, 1e12))
def test_adascale_gain(base: int, batch: int, noise_scale: float) -> None:
    """r(kappa) = (phi / B + 1) / (phi / (kappa B) + 1), to 1e-12, computed in fractions."""
    phi, kappa = Fraction(noise_scale), Fraction(batch, base)
    expected = (phi / base + 1) / (phi / (kappa * base) + 1)
    gain = Coupling("adascale", base, noise_scale).at(batch)
    assert math.isclose(gain, float(expected), rel_tol=1e-12)
    assert min(1.0, float(kappa)) * (1 - 1e-12) <= gain <= max(1.0, float(kappa)) * (1 + 1e-12)
