from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Observation, Proposal, Reading, Scale
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.trajectory import Constant, Progress

PLAN = Batching(1, 64, 64).plan(64)


class Run:
    """Feeds readings and follows the factors that the policy sets; the base of `lr` is `lr`."""

    def __init__(self, policy: Plateau, lr: float = 0.1) -> None:
        self.policy, self.base = policy, lr
        self.state: Mapping[str, Any] = policy.initial()
        self.factors: dict[str, float] = {}

    @property
    def lr(self) -> float:
        return self.base * self.factors.get("lr", 1.0)

    def see(self, *values: float) -> Sequence[Proposal]:
        readings = tuple(Reading(i, i, value) for i, value in enumerate(values))
        observation = Observation(Progress(), {"lr": self.lr}, PLAN, metrics={self.policy.metric: readings})
        self.state, proposals = self.policy.decide(self.state, observation)
        for proposal in proposals:
            assert isinstance(proposal, Scale)
            assert isinstance(proposal.by, Constant)
            self.factors[proposal.param] = float(proposal.by.value)
        return proposals


def test_cuts_when_bad_exceeds_patience() -> None:
    run = Run(Plateau(patience=2))
    assert [run.see(value) for value in (1.0, 0.5, 0.6, 0.5)] == [()] * 4
    (proposal,) = run.see(0.55)
    assert proposal == Scale(
        "lr",
        Constant(0.1),
        "val_loss 0.55 has not improved on the best 0.5 for 3 readings (patience 2): lr 0.1 -> 0.01",
    )
    assert [run.see(value) for value in (0.6, 0.6)] == [()] * 2
    (proposal,) = run.see(0.6)
    assert isinstance(proposal, Scale)
    assert isinstance(proposal.by, Constant)
    assert proposal.by.value == pytest.approx(0.01)


def test_several_readings_in_one_observation_are_several_steps() -> None:
    run = Run(Plateau(patience=0))
    (proposal,) = run.see(1.0, 2.0, 2.0)
    assert run.lr == pytest.approx(0.001)
    assert proposal.reason.endswith("lr 0.1 -> 0.001")


def test_min_lr_and_eps() -> None:
    run = Run(Plateau(patience=0, min_lr=0.03))
    run.see(1.0, 1.0)
    assert run.lr == pytest.approx(0.03)
    assert run.see(1.0) == ()
    assert Run(Plateau(patience=0, eps=0.5)).see(1.0, 1.0) == ()


def test_no_reading_is_no_step_and_an_unknown_lr_is_not_cut() -> None:
    policy = Plateau(patience=0)
    assert policy.decide(policy.initial(), Observation(Progress(), {}, PLAN)) == (policy.initial(), ())
    metrics = {"val_loss": (Reading(1, 1, 1.0), Reading(2, 2, 1.0))}
    assert policy.decide(policy.initial(), Observation(Progress(), {}, PLAN, metrics=metrics))[1] == ()


def test_instead_batch_raises_the_batch_and_leaves_the_learning_rate() -> None:
    run = Run(Plateau(patience=0, factor=0.25, instead="batch"))
    assert run.policy.writes() == {"batch_size": "factor"}
    assert run.see(1.0, 1.5) == (
        Scale(
            "batch_size",
            Constant(4.0),
            "val_loss 1.5 has not improved on the best 1 for 1 reading (patience 0): batch 64 -> 256",
            lr_rule="none",
        ),
    )
    for _ in range(400):
        run.see(2.0)
    assert run.factors["batch_size"] <= 1e9


def test_instead_seesaw_does_both() -> None:
    run = Run(Plateau(patience=0, factor=0.25, instead="seesaw"))
    assert run.policy.writes() == {"lr": "factor", "batch_size": "factor"}
    lr, batch = run.see(1.0, 1.5)
    why = "val_loss 1.5 has not improved on the best 1 for 1 reading (patience 0)"
    assert lr == Scale("lr", Constant(0.5), f"{why}: lr 0.1 -> 0.05")
    assert batch == Scale("batch_size", Constant(4.0), f"{why}: batch 64 -> 256", lr_rule="none")


def test_refuses_a_relative_threshold_that_nothing_can_pass() -> None:
    with pytest.raises(ValidationError, match="must be below 1, got 1"):
        Plateau(threshold=1)
    assert Plateau(threshold=2, threshold_mode="abs").threshold == 2
