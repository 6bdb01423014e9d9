import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.noise import Noise, NoiseEstimator
from trimtab.controller.observation import Observation, Set
from trimtab.controller.policies.noise_scale import NoiseScale
from trimtab.controller.trajectory import Constant, Progress

DIM = 2000


class Run:
    """Feeds one observation at a time and follows what the policy sets."""

    def __init__(self, policy: NoiseScale, batch: int = 256, lr: float = 0.1, micro: int = 16) -> None:
        self.policy, self.batch, self.lr, self.micro = policy, batch, lr, micro
        self.state: Mapping[str, Any] = policy.initial()
        self.estimates = 0
        self.waits: str | None = None

    def see(self, low: float | None, value: float | None = None, high: float | None = None, **more: Any) -> Set | None:
        self.estimates += more.pop("new", 60)
        noise = Noise(value, low, high, 1.0, 1.0, self.estimates, 0)
        plan = Batching(4, self.micro, self.micro).plan(self.batch)
        values = {"lr": self.lr, "batch_size": plan.batch_size}
        observation = Observation(Progress(self.estimates), values, plan, noise=noise, **more)
        self.state, proposals = self.policy.decide(self.state, observation)
        self.waits = self.policy.waits(self.state, observation)
        if not proposals:
            return None
        (proposal,) = proposals
        assert isinstance(proposal, Set)
        assert isinstance(proposal.to, Constant)
        self.batch = int(proposal.to.value)
        return proposal


def test_grows_when_the_lower_bound_is_above_on_two_observations() -> None:
    run = Run(NoiseScale(coupling="sqrt"))
    assert run.see(640, 812, 1100) is None
    assert run.see(640, 812, 1100) == Set(
        "batch_size",
        Constant(512),
        "noise scale 812 (95 % 640-1,100, 120 estimates) is above 1.4 x batch 256: batch 256 -> 512",
        "sqrt",
    )


def test_an_observation_in_between_starts_the_count_again() -> None:
    run = Run(NoiseScale())
    assert [run.see(low, 812, 1100) for low in (640, 358, 640, None, 640)] == [None] * 5  # 1.4 x 256 = 358.4
    assert run.see(640, 812, 1100) is not None


def test_only_new_evidence_counts() -> None:
    run = Run(NoiseScale())
    run.see(640, 812, 1100)
    assert [run.see(640, 812, 1100, new=0) for _ in range(5)] == [None] * 5
    assert run.see(640, 812, 1100) is not None


def test_the_target_is_the_estimate_when_it_is_nearer_than_the_largest_change() -> None:
    run = Run(NoiseScale())
    run.see(360, 400, 440)
    proposal = run.see(360, 400, 440)
    assert proposal is not None
    assert proposal.to == Constant(384)  # nearest multiple of 4 workers x 16 samples to 400


def test_an_undefined_estimate_acts_through_its_bound() -> None:
    run = Run(NoiseScale())
    run.see(640)
    proposal = run.see(640)
    assert proposal is not None
    assert proposal.to == Constant(512)
    assert proposal.reason == (
        "noise scale at least 640 (95 %, 120 estimates) is above 1.4 x batch 256: batch 256 -> 512"
    )


def test_c_scales_the_target_and_the_reason_says_so() -> None:
    run = Run(NoiseScale(c=0.5))
    assert [run.see(700, 900, 1100) for _ in range(3)] == [None] * 3
    run.see(800, 900, 1100)
    proposal = run.see(800, 900, 1100)
    assert proposal is not None
    assert proposal.to == Constant(448)
    assert proposal.reason.startswith(
        "noise scale 900 (95 % 800-1,100, 300 estimates) times c = 0.5 is above 1.4 x batch"
    )


def test_max_is_respected_and_reached_silently() -> None:
    run = Run(NoiseScale(max=500))
    run.see(5000, 8000, 9000)
    proposal = run.see(5000, 8000, 9000)
    assert proposal is not None
    assert proposal.to == Constant(448)  # the largest multiple of 64 that is not above 500
    assert [run.see(5000, 8000, 9000) for _ in range(20)] == [None] * 20


def test_cool_down_is_short_at_first_and_then_a_window() -> None:
    run = Run(NoiseScale(first_window=50, window=200))
    grew = [run.estimates for _ in range(60) if run.see(1e6, 2e6, 3e6, new=10)]
    assert grew == [50, 250, 450]
    assert run.waits == "the batch stays as it is for 50 estimates of the noise more"


def test_does_not_shrink_by_default() -> None:
    run = Run(NoiseScale())
    assert [run.see(50, 60, 70) for _ in range(5)] == [None] * 5


def test_shrinks_when_the_upper_bound_is_below() -> None:
    run = Run(NoiseScale(shrink=True))
    assert run.see(100, 150, 179) is None
    proposal = run.see(100, 150, 179)
    assert proposal is not None
    assert proposal.to == Constant(128)
    assert proposal.reason == (
        "noise scale 150 (95 % 100-179, 120 estimates) is below 0.7 x batch 256: batch 256 -> 128"
    )
    run = Run(NoiseScale(shrink=True, min=200))
    run.see(10, 15, 17)
    assert run.see(10, 15, 17) is None  # 192 would be below min


def test_an_unbounded_estimate_does_not_shrink() -> None:
    run = Run(NoiseScale(shrink=True))
    assert [run.see(10, 15, None) for _ in range(5)] == [None] * 5


def test_frozen_during_warm_up() -> None:
    run = Run(NoiseScale())
    assert [run.see(640, 812, 1100, rising=frozenset({"lr"})) for _ in range(10)] == [None] * 10
    assert run.waits == "lr is still rising; the batch stays as it is until it has risen"
    assert run.see(640, 812, 1100, rising=frozenset({"momentum"})) is not None


def test_growth_is_frozen_for_a_window_after_a_cut() -> None:
    run = Run(NoiseScale(window=200))
    run.see(300, 350, 400)
    run.lr = 0.01
    frozen = [run.see(640, 812, 1100, new=50) for _ in range(4)]  # the cut is seen at the first
    assert frozen == [None] * 4
    assert run.waits == "lr was cut; the batch does not grow for 50 estimates of the noise more"
    assert run.see(640, 812, 1100, new=50) is not None


def test_a_small_or_slow_fall_of_the_learning_rate_is_no_cut() -> None:
    run = Run(NoiseScale(window=200))
    for _ in range(30):
        run.see(300, 350, 400, new=50)
        run.lr *= 0.98  # 7.8 % in a window
    run.see(640, 812, 1100)
    assert run.see(640, 812, 1100) is not None


def test_a_gradual_cut_within_a_window_is_a_cut() -> None:
    run = Run(NoiseScale(window=200))
    for _ in range(30):
        assert run.see(640, 812, 1100, new=20) is None or run.lr > 0.09
        run.lr *= 0.97


def test_a_fall_together_with_the_batch_is_no_cut() -> None:
    run = Run(NoiseScale())
    run.see(300, 350, 400)
    run.lr, run.batch = 0.05, 128  # a person halved the batch and the learning rate with it
    run.see(300, 350, 400)
    assert run.see(300, 350, 400) is not None


def test_a_rise_with_the_batch_and_then_a_cut() -> None:
    run = Run(NoiseScale(first_window=1, window=100))
    run.see(1e6, 2e6, 3e6)
    assert run.see(1e6, 2e6, 3e6) is not None
    run.lr *= math.sqrt(2)  # the coupling, in the same version
    run.see(1e6, 2e6, 3e6)
    assert run.see(1e6, 2e6, 3e6) is not None  # no freeze
    run.see(1e6, 2e6, 3e6)
    run.lr *= 0.5
    assert run.see(1e6, 2e6, 3e6) is None  # frozen, though the cool-down is over
    assert run.see(1e6, 2e6, 3e6) is None
    assert run.see(1e6, 2e6, 3e6) is not None


def test_an_estimator_that_begins_anew_does_not_stop_the_policy() -> None:
    run = Run(NoiseScale())
    run.see(640, 812, 1100, new=100_000)
    run.estimates = 0
    assert run.see(640, 812, 1100, new=5) is not None


def test_nothing_measured() -> None:
    policy = NoiseScale()
    observation = Observation(Progress(), {}, Batching(1, 8, 8).plan(8))
    assert policy.decide(policy.initial(), observation) == (policy.initial(), ())


def test_refuses_bounds_out_of_order() -> None:
    with pytest.raises(ValidationError, match="min 64 is above max 32"):
        NoiseScale(min=64, max=32)


def simulated_run(seed: int, scale: float, start: int, ticks: int = 120, steps: int = 25) -> int:
    """The batch at the end of a run of 4 workers whose true noise scale is constant."""
    rng = np.random.default_rng(seed)
    policy, estimator = NoiseScale(max=65536), NoiseEstimator()
    state: Mapping[str, Any] = policy.initial()
    batching, target, var = Batching(4, 8, 64), start, scale / DIM
    for tick in range(ticks):
        plan = batching.plan(target)
        batch, micro = plan.batch_size, plan.batch_size / 4
        grad_sq = rng.noncentral_chisquare(DIM, batch / var, steps) * var / batch
        local_sq = grad_sq + rng.chisquare(DIM * 3, steps) * var / batch
        estimator.update(local_sq, np.full(steps, micro), grad_sq, np.full(steps, float(batch)))
        observation = Observation(Progress(steps * tick), {"batch_size": batch}, plan, noise=estimator.noise())
        state, proposals = policy.decide(state, observation)
        for proposal in proposals:
            assert isinstance(proposal, Set)
            assert isinstance(proposal.to, Constant)
            target = int(proposal.to.value)
            assert target <= 2 * batch
    return batching.plan(target).batch_size


def test_a_constant_noise_scale_is_found_and_the_cap_is_not() -> None:
    ends = [simulated_run(seed, 1000, 32) for seed in range(50)]
    assert min(ends) >= 500
    assert max(ends) <= 2000


def test_a_batch_at_the_noise_scale_stays() -> None:
    assert {simulated_run(seed, 256, 256, ticks=60) for seed in range(20)} == {256}
