from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Command, Notice, Observation, Proposal, Reading, Scale, Set
from trimtab.controller.policies.spike_guard import FEWEST, SpikeGuard
from trimtab.controller.trajectory import Constant, Progress

PLAN = Batching(1, 64, 64).plan(64)
VALUES = {"lr": 0.1, "skip_sigma": 6.0, "zclip": 0.0}


class Run:
    """One reading of the loss a tick of ten steps; steps that were skipped."""

    def __init__(self, policy: SpikeGuard, calm: int = 0, checkpoints: tuple[int, ...] = ()) -> None:
        self.policy = policy
        self.checkpoints = checkpoints
        self.state: Mapping[str, Any] = policy.initial()
        self.step = 0
        for i in range(calm):  # mean 1, deviation 0.1
            assert self.see(1.1 if i % 2 else 0.9) == []

    def see(self, loss: float | None = None, *skipped: int, values: Mapping[str, float] = VALUES) -> list[Proposal]:
        self.step += 10
        metrics = {"skipped_step": tuple(Reading(step, step, 1.0) for step in skipped)}
        if loss is not None:
            metrics["loss"] = (Reading(self.step, self.step, loss, None, 10),)
        observation = Observation(
            Progress(self.step, self.step * 64), values, PLAN, metrics=metrics, checkpoints=self.checkpoints
        )
        self.state, proposals = self.policy.decide(self.state, observation)
        return list(proposals)


def test_the_thresholds_are_set_once_as_configured() -> None:
    run = Run(SpikeGuard(skip_sigma=4, zclip=2.5))
    assert run.see(values={"lr": 0.1}) == []  # nothing declared yet
    assert run.see(values=VALUES) == [
        Set("skip_sigma", Constant(4.0), "skip_sigma 4, as configured"),
        Set("zclip", Constant(2.5), "zclip 2.5, as configured"),
    ]
    assert run.see(values=VALUES) == []
    assert Run(SpikeGuard()).see(values=VALUES) == []  # as they are


def test_mean_and_deviation_are_those_of_the_readings() -> None:
    run = Run(SpikeGuard())
    for loss in (1.0, 3.0, 5.0):
        run.see(loss)
    assert (run.state["mean"], run.state["variance"]) == (3.0, pytest.approx(8 / 3))
    fading = Run(SpikeGuard(window=16), calm=16)
    fading.see(1.3)
    assert fading.state["mean"] == pytest.approx(1 + 0.3 / 16)
    assert fading.state["variance"] == pytest.approx(15 / 16 * (0.01 + 0.3**2 / 16))


def test_a_reading_is_a_spike_beyond_six_deviations_and_is_not_learnt_from() -> None:
    run = Run(SpikeGuard(), calm=FEWEST)
    run.see(1.59)
    assert run.state["spikes"] == []
    run = Run(SpikeGuard(), calm=FEWEST)
    run.see(1.61)
    assert run.state["spikes"] == [[161, 170]]
    assert run.state["mean"] == pytest.approx(1.0)
    run = Run(SpikeGuard(), calm=FEWEST - 1)
    run.see(100.0)
    assert run.state["spikes"] == []
    run = Run(SpikeGuard(loss_sigma=0), calm=FEWEST)
    run.see(100.0)
    assert run.state["spikes"] == []


def test_a_skipped_step_and_the_loss_of_that_moment_are_one_spike() -> None:
    run = Run(SpikeGuard(), calm=FEWEST)
    run.see(9.0, 165)
    assert run.state["spikes"] == [[165, 165]]
    run.see(9.0)
    assert run.state["spikes"] == [[165, 165], [171, 180]]
    run.see(1.0, 180)  # told one tick later
    assert run.state["spikes"] == [[165, 165], [171, 180]]


def test_after_three_spikes_it_goes_back_to_before_the_first() -> None:
    run = Run(SpikeGuard(), checkpoints=(50, 100, 150))
    assert run.see(None, 101) == []
    assert run.see(None, 140) == []
    rollback, cut = run.see(None, 160)
    why = "3 spikes within 200 steps, the first at step 101"
    assert rollback == Command("rollback", why, step=100, skip_data=True)
    assert cut == Scale("lr", Constant(0.5), f"{why}: lr × 0.5")
    assert (run.state["spikes"], run.state["quiet_until"], run.state["actions"]) == ([], 300, 1)


def test_spikes_count_within_the_stretch_only() -> None:
    run = Run(SpikeGuard(within=50), checkpoints=(1,))
    assert run.see(None, 100, 149) == []
    assert run.see(None, 150) == []  # that of step 100 is 50 steps ago
    assert run.state["spikes"] == [[149, 149], [150, 150]]
    assert len(run.see(None, 151)) == 2


def test_none_counts_during_the_cooldown() -> None:
    run = Run(SpikeGuard(spikes=1, cooldown=30), checkpoints=(100,))
    assert len(run.see(None, 101)) == 2
    assert run.see(None, 130) == []
    assert len(run.see(None, 131)) == 2
    assert run.state["lr"] == 0.25


def test_without_a_checkpoint_from_before_only_the_learning_rate_is_cut() -> None:
    run = Run(SpikeGuard(spikes=1), checkpoints=(101,))
    (cut,) = run.see(None, 101)
    assert isinstance(cut, Scale)
    assert run.state["actions"] == 1
    run = Run(SpikeGuard(spikes=1, lr_factor=1))
    assert run.see(None, 101) == [
        Notice("1 spike within 200 steps, the first at step 101: no checkpoint from before it is kept")
    ]


@pytest.mark.parametrize("then", ["stop", "warn"])
def test_when_the_roll_backs_are_used_up_it_stops_or_warns(then: Any) -> None:
    run = Run(SpikeGuard(spikes=1, cooldown=0, max_rollbacks=1, then=then), checkpoints=(100,))
    assert len(run.see(None, 101)) == 2
    (last,) = run.see(None, 102)
    why = "1 spike within 200 steps, the first at step 102, and all 1 roll backs are used up"
    assert last == (Command("stop", why) if then == "stop" else Notice(why))


@pytest.mark.parametrize("wrong", [{"skip_sigma": -1}, {"lr_factor": 0}, {"spikes": 0}, {"window": 3}, {"then": "x"}])
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SpikeGuard(**wrong)
