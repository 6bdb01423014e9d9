import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Command, Observation, Reading
from trimtab.controller.policies.early_stop import EarlyStop
from trimtab.controller.trajectory import Progress

PLAN = Batching(1, 64, 64).plan(64)


class Run:
    """Feeds readings and tells why the policy stops."""

    def __init__(self, policy: EarlyStop) -> None:
        self.policy = policy
        self.state: Mapping[str, Any] = policy.initial()

    def see(self, *values: float) -> str | None:
        finite = tuple(Reading(i, i, value) for i, value in enumerate(values) if math.isfinite(value))
        lost = len(values) - len(finite)
        metrics, nonfinite = {self.policy.metric: finite}, {self.policy.metric: lost} if lost else {}
        observation = Observation(Progress(), {}, PLAN, metrics=metrics, nonfinite=nonfinite)
        self.state, proposals = self.policy.decide(self.state, observation)
        if not proposals:
            return None
        (proposal,) = proposals
        assert isinstance(proposal, Command)
        assert proposal.command == "stop"
        return proposal.reason


def test_stops_when_patience_is_over() -> None:
    run = Run(EarlyStop(patience=2))
    assert [run.see(value) for value in (1.0, 0.5, 0.5, 0.4, 0.41)] == [None] * 5
    assert run.see(0.4) == "val_loss 0.4 has not improved on the best 0.4 for 2 readings (patience 2)"


def test_several_readings_in_one_observation_are_several_checks() -> None:
    assert Run(EarlyStop(patience=2)).see(1.0, 1.5, 1.25, 0.1) is not None
    assert Run(EarlyStop(patience=2)).see(1.0, 1.5, 0.5, 0.75) is None


def test_improvement_must_be_larger_than_min_delta() -> None:
    run = Run(EarlyStop(patience=1, min_delta=0.25))
    assert run.see(1.0) is None
    assert run.see(0.5) is None
    assert run.see(0.25) is not None  # 0.25 better, and no more
    run = Run(EarlyStop(metric="accuracy", mode="max", patience=1, min_delta=0.25))
    assert run.see(0.5) is None
    assert run.see(0.75) is not None


def test_a_run_that_goes_on_has_its_patience_again() -> None:
    run = Run(EarlyStop(patience=3))
    assert [run.see(1.0) is None for _ in range(10)] == [True] * 3 + [False] + [True] * 2 + [False] + [True] * 2 + [
        False
    ]


def test_a_goal_and_a_limit() -> None:
    run = Run(EarlyStop(stopping_threshold=0.5, divergence_threshold=2.0))
    assert [run.see(value) for value in (2.0, 0.5)] == [None] * 2
    assert run.see(0.49) == "val_loss 0.49 is below the stopping threshold 0.5"
    assert run.see(2.5) == "val_loss 2.5 is above the divergence threshold 2; the best was 0.5"
    run = Run(EarlyStop(metric="accuracy", mode="max", stopping_threshold=0.9, divergence_threshold=0.1))
    assert run.see(0.05) == "accuracy 0.05 is below the divergence threshold 0.1; nothing was read before"
    assert run.see(0.95) == "accuracy 0.95 is above the stopping threshold 0.9"


def test_stops_at_what_is_not_finite() -> None:
    run = Run(EarlyStop())
    run.see(0.5)
    assert run.see(math.nan) == "val_loss: 1 value not finite; the best was 0.5"
    assert run.see(0.4, math.inf, -math.inf) == "val_loss: 2 values not finite; the best was 0.5"
    run = Run(EarlyStop(check_finite=False, patience=1))
    assert [run.see(value) for value in (0.5, math.nan, math.inf)] == [None] * 3


def test_the_other_metrics_are_not_looked_at() -> None:
    policy = EarlyStop()
    observation = Observation(Progress(), {}, PLAN, metrics={"loss": (Reading(1, 1, 9.0),)}, nonfinite={"loss": 3})
    assert policy.decide(policy.initial(), observation) == (policy.initial(), ())


def test_refuses_thresholds_that_every_reading_passes() -> None:
    with pytest.raises(ValidationError, match="with mode min 1 is better than 2"):
        EarlyStop(stopping_threshold=2, divergence_threshold=1)
    with pytest.raises(ValidationError, match="with mode max 2 is better than 1"):
        EarlyStop(mode="max", stopping_threshold=1, divergence_threshold=2)


class Lightning:
    """The rule of `lightning.pytorch.callbacks.EarlyStopping`, in its own order and with its own signs."""

    def __init__(self, mode: str, patience: int, min_delta: float, stop: float | None, limit: float | None) -> None:
        self.sign = 1 if mode == "max" else -1
        self.patience, self.delta, self.stop, self.limit = patience, self.sign * min_delta, stop, limit
        self.best_score, self.wait_count = -self.sign * math.inf, 0

    def op(self, one: float, other: float) -> bool:
        return one > other if self.sign == 1 else one < other

    def should_stop(self, current: float) -> bool:
        if not math.isfinite(current):
            return True
        if self.stop is not None and self.op(current, self.stop):
            return True
        if self.limit is not None and self.op(-current, -self.limit):
            return True
        if self.op(current - self.delta, self.best_score):
            self.best_score, self.wait_count = current, 0
            return False
        self.wait_count += 1
        return self.wait_count >= self.patience


levels = st.sampled_from([-1.0, 0.0, 0.5, 0.75, 1.0, 2.0, math.nan, math.inf]) | st.floats(-10, 10, allow_nan=False)


@settings(max_examples=400, deadline=None)
@given(
    values=st.lists(levels, max_size=40),
    mode=st.sampled_from(["min", "max"]),
    patience=st.integers(0, 4),
    min_delta=st.sampled_from([0.0, 0.25, 3.0]),
    thresholds=st.sampled_from([(None, None), (-5.0, 5.0), (None, 3.0), (0.0, None)]),
)
def test_stops_where_lightning_does(
    values: list[float], mode: Any, patience: int, min_delta: float, thresholds: tuple[float | None, float | None]
) -> None:
    stop, limit = thresholds if mode == "min" else reversed(thresholds)
    oracle = Lightning(mode, patience, min_delta, stop, limit)
    run = Run(
        EarlyStop(
            mode=mode, patience=patience, min_delta=min_delta, stopping_threshold=stop, divergence_threshold=limit
        )
    )
    for value in values:
        should_stop = oracle.should_stop(value)
        assert (run.see(value) is not None) == should_stop
        if should_stop:
            break
