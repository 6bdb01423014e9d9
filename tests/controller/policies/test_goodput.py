import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.noise import Noise, NoiseEstimator
from trimtab.controller.observation import Observation, Reading, Set
from trimtab.controller.policies.contract import check_policy
from trimtab.controller.policies.goodput import FEWEST, MOST, SIZES, WARM, Goodput, Line, _fit
from trimtab.controller.trajectory import Constant, Progress

A, C = (
    10e-3,
    0.1e-3,
)  # [s], [s/sample]: with a noise scale of 1,000 the best batch is sqrt(1000 x 0.01 / 0.0001) = 316.2
DIM = 2000


class Run:
    """Feeds one observation at a time and follows what the policy sets."""

    def __init__(self, policy: Goodput, batch: int = 64, workers: int = 4, micro: int = 8) -> None:
        self.policy, self.batch, self.workers, self.micro = policy, batch, workers, micro
        self.state: Mapping[str, Any] = policy.initial()
        self.estimates, self.lr = 0, 0.1
        self.rising: frozenset[str] = frozenset()

    def see(self, time: float | None = None, scale: float | None = 1000.0, new: int = 60, **more: Any) -> Set | None:
        """An observation of steps that took A + C x batch, if `time` is not given."""
        self.estimates += new
        time = A + C * self.batch if time is None else time
        low, high = more.get("low", scale and 0.8 * scale), more.get("high", scale and 1.25 * scale)
        metrics = {
            "step_time": (Reading(1, 1, time, 0.01, 10),),
            "hp/batch_size": (Reading(1, 1, more.get("in_force", self.batch), more.get("mixed", 0.0), 10),),
        }
        observation = Observation(
            Progress(self.estimates),
            {"lr": self.lr},
            Batching(self.workers, self.micro, self.micro).plan(self.batch),
            rising=self.rising,
            metrics=metrics,
            noise=Noise(scale, low, high, 1.0, 1.0, self.estimates, 0),
        )
        self.state, proposals = self.policy.decide(self.state, observation)
        if not proposals:
            return None
        (proposal,) = proposals
        assert isinstance(proposal, Set)
        assert isinstance(proposal.to, Constant)
        self.batch = int(proposal.to.value)
        return proposal

    def until(self, most: int = 40, **more: Any) -> Set:
        """Goes on until the policy acts."""
        return next(proposal for _ in range(most) if (proposal := self.see(**more)))


def knowing(policy: Goodput, batch: int = 64, **more: Any) -> Run:
    """A run at `batch` that has also measured half of it, long ago."""
    run = Run(policy, batch, **more)
    run.state = {**policy.initial(), "world_size": run.workers, "times": {str(batch // 2): A + C * batch / 2}}
    return run


# ---- the model ------------------------------------------------------------------------------------------------------


def test_the_line_through_two_batches() -> None:
    line = _fit({64: 0.0164, 128: 0.0228})
    assert line == pytest.approx(Line(A, C))
    assert line.best(1000) == pytest.approx(316.23, abs=0.01)
    # goodput(B) = B / (0.01 + 0.0001 B) / (1000 + B): 3.6680 at 64, 4.9770 at 128
    assert line.gain(64, 128, 1000) == pytest.approx(4.9770 / 3.6680, rel=1e-4)
    assert line.gain(128, 64, 1000) == pytest.approx(3.6680 / 4.9770, rel=1e-4)


def test_the_best_batch_is_that_of_a_search() -> None:
    rng = np.random.default_rng(0)
    for a, c, scale in np.exp(rng.uniform(-3, 3, (100, 3))):
        line = Line(a, c)
        batches = line.best(scale) * np.exp(np.linspace(-1, 1, 2001))
        goodput = batches / (a + c * batches) / (scale + batches)
        assert batches[goodput.argmax()] == pytest.approx(line.best(scale), rel=1e-3)


def test_a_line_weighs_relative_errors_and_never_falls() -> None:
    assert _fit({64: 0.02, 128: 0.01}).c == 0  # a larger batch is no faster: the noise is told from the time
    # weights 1/t^2 are 2500 and 10000: the mean is (2500 x 0.02 + 10000 x 0.01) / 12500
    assert _fit({64: 0.02, 128: 0.01}).a == pytest.approx(0.012)
    assert _fit({64: 0.02, 128: 0.01}).best(1000) == math.inf
    # more than proportional: no constant part, c from b/t = 6400 and 2560: 8960 / (6400^2 + 2560^2)
    line = _fit({64: 0.01, 128: 0.05})
    assert line == pytest.approx(Line(0.0, 8960 / (6400**2 + 2560**2)))
    assert line.best(1000) == 0
    assert _fit({32: 0.0132, 64: 0.0164, 128: 0.0228, 256: 0.0356}) == pytest.approx(Line(A, C))


# ---- decisions ------------------------------------------------------------------------------------------------------


def test_tries_a_larger_batch_when_only_one_was_seen() -> None:
    run = Run(Goodput(coupling="sqrt"))
    assert [run.see() for _ in range(WARM + FEWEST - 1)] == [None] * (WARM + FEWEST - 1)
    assert run.see() == Set(
        "batch_size",
        Constant(128),
        "only batch 64 has been seen, and how the step time grows takes two: trying batch 64 -> 128",
        "sqrt",
    )


def test_goes_to_the_best_batch_and_stays() -> None:
    run = Run(Goodput(window=200))
    run.until()
    proposal = run.until()
    assert proposal == Set(
        "batch_size",
        Constant(256),
        "step time 10 ms + 100 µs a sample, noise scale 1,000 (95 % 800-1,250, 900 estimates): best batch 316, "
        "goodput +15%: batch 128 -> 256",  # 128 / 22.8 / 1128 = 4.9770e-3 and 256 / 35.6 / 1256 = 5.7254e-3
    )
    assert [run.see() for _ in range(60)] == [None] * 60  # 320 would be worth 0.8 %


def test_returns_from_a_trial_that_was_too_large() -> None:
    run = Run(Goodput(), batch=320)
    assert run.until().to == Constant(640)
    assert run.until().to == Constant(320)
    assert [run.see() for _ in range(60)] == [None] * 60


def test_a_trial_that_led_nowhere_is_made_the_other_way_next_time() -> None:
    run = Run(Goodput())
    assert run.until().to == Constant(128)
    run.batch = 64  # the engine held it at its bound
    assert run.until().to == Constant(32)


def test_tries_a_smaller_batch_at_the_largest() -> None:
    assert Run(Goodput(max=64)).until().to == Constant(32)
    run = Run(Goodput(min=64, max=64))
    assert [run.see() for _ in range(40)] == [None] * 40


def test_needs_more_than_five_percent() -> None:
    # from 192 to 320: goodput 192 / 29.2 / 1192 = 5.5162e-3 and 320 / 42 / 1320 = 5.7720e-3: 4.6 %
    run = knowing(Goodput(), batch=192)
    assert [run.see() for _ in range(40)] == [None] * 40
    run = knowing(Goodput(min_gain=0.04), batch=192)
    proposal = run.until()
    assert proposal.to == Constant(320)
    assert "goodput +5%" in proposal.reason


def test_a_vague_noise_scale_moves_nothing() -> None:
    run = knowing(Goodput(), batch=128)
    assert [run.see(low=100) for _ in range(40)] == [None] * 40  # were it 100, 128 would be above the best, 100
    assert [run.see(low=None) for _ in range(40)] == [None] * 40
    run = knowing(Goodput(), batch=1280)
    assert [run.see(high=None) for _ in range(40)] == [None] * 40
    assert run.until().to == Constant(640)


def test_an_undefined_noise_scale_acts_through_its_bound() -> None:
    proposal = knowing(Goodput(), batch=64).until(scale=None, low=1000, high=None)
    assert proposal.to == Constant(128)
    assert "noise scale at least 1,000 (95 %" in proposal.reason


def test_two_observations_must_agree() -> None:
    run = knowing(Goodput(first_window=1))
    for _ in range(WARM + FEWEST):
        run.see(scale=0.1)  # the best batch is 3
        run.batch = 64
    run = knowing(Goodput(first_window=1))
    seen = [run.see(scale=scale, low=0.8 * scale) for scale in [60.0] * 20]  # the best batch is 77: nothing to gain
    assert seen == [None] * 20
    assert [run.see(scale=scale) is None for scale in (1000, 60, 1000)] == [True] * 3
    assert run.see(scale=1000) is not None


def test_rests_for_a_window_and_during_a_warm_up() -> None:
    run = knowing(Goodput(first_window=1, window=500), batch=32, micro=4)
    run.rising = frozenset({"lr"})
    assert [run.see() for _ in range(40)] == [None] * 40
    run.rising = frozenset({"momentum"})
    assert run.see() is not None
    at = run.estimates
    run.until()
    assert run.estimates - at >= 500


def test_growth_is_frozen_for_a_window_after_a_cut() -> None:
    run = knowing(Goodput(window=600), batch=64)
    for _ in range(WARM + FEWEST + 1):
        run.see(scale=60)
    run.lr = 0.01
    assert [run.see() for _ in range(10)] == [None] * 10  # 600 estimates, from the one that saw the cut on
    assert run.see() is not None


def test_readings_of_two_batches_or_of_no_time_are_left_out() -> None:
    run = Run(Goodput())
    assert [run.see(mixed=0.5) for _ in range(40)] == [None] * 40
    assert [run.see(time=time) for time in (0.0, -1.0, 1e300) * 10] == [None] * 30
    assert [run.see(in_force=batch) for batch in (0.0, -1.0, 1e300) * 10] == [None] * 30
    assert run.state["recent"] == []


def test_the_first_readings_and_single_slow_ones_do_not_count() -> None:
    run = Run(Goodput())
    for _ in range(WARM):
        run.see(time=5.0)
    for time in (None, None, 60.0, None, None):
        run.see(time=time)
    assert run.batch == 128
    for _ in range(WARM):
        run.see(time=5.0)
    assert "step time 10 ms + 100 µs a sample" in run.until().reason


def test_other_workers_are_measured_anew() -> None:
    run = knowing(Goodput(), batch=64)
    run.workers = 2
    assert run.until().reason.startswith("only batch 64 has been seen")


def test_the_state_stays_small() -> None:
    run = Run(Goodput())
    for batch in range(64, 64 + 32 * 20, 32):
        run.batch = batch
        for _ in range(30):
            run.see(new=0)
    assert (len(run.state["times"]), len(run.state["recent"])) == (SIZES, MOST)


def test_an_estimator_that_begins_anew_does_not_stop_the_policy() -> None:
    run = Run(Goodput(first_window=10))
    run.see(new=100_000)
    run.estimates = 0
    assert run.until(new=5).to == Constant(128)


def test_bounds() -> None:
    run = knowing(Goodput(max=100), batch=64)
    assert run.until().to == Constant(96)  # a multiple of 4 workers x 8 samples that is not above 100
    run = knowing(Goodput(max_change=4), batch=64)
    assert run.until().to == Constant(256)
    with pytest.raises(ValidationError, match="min 64 is above max 32"):
        Goodput(min=64, max=32)


# ---- whole runs -----------------------------------------------------------------------------------------------------


class World:
    """A run of 4 workers whose true noise scale and step time are constant, but seen through noise."""

    def __init__(self, policy: Goodput, seed: int, start: int, scale: float) -> None:
        self.policy, self.rng, self.target, self.var = policy, np.random.default_rng(seed), start, scale / DIM
        self.state: Mapping[str, Any] = policy.initial()
        self.estimator, self.batching = NoiseEstimator(), Batching(4, 4, 64)
        self.steps = 0
        self.batches: list[int] = []
        self.seen: list[Observation] = []

    def tick(self, steps: int = 25) -> None:
        plan = self.batching.plan(self.target)
        ran = self.batching.plan(self.batches[-1] if self.batches else self.target)  # a change takes a tick to arrive
        self._measure(ran.batch_size, steps)
        times = (A + C * ran.batch_size) * self.rng.lognormal(0, 0.15, steps)
        times[self.rng.random(steps) < 0.01] *= 20  # a checkpoint, a neighbour
        metrics = {
            "step_time": (Reading(1, 1, float(times.mean()), float(times.std()), steps),),
            "hp/batch_size": (Reading(1, 1, float(ran.batch_size), 0.0, steps),),
        }
        self.steps += steps
        values = {"batch_size": plan.batch_size}
        noise = self.estimator.noise()
        observation = Observation(Progress(self.steps), values, plan, metrics=metrics, noise=noise)
        self.batches.append(self.target)
        self.seen.append(observation)
        self.state, proposals = self.policy.decide(self.state, observation)
        for proposal in proposals:
            assert isinstance(proposal, Set)
            assert isinstance(proposal.to, Constant)
            self.target = int(proposal.to.value)

    def _measure(self, batch: int, steps: int) -> None:
        grad_sq = self.rng.noncentral_chisquare(DIM, batch / self.var, steps) * self.var / batch
        local_sq = grad_sq + self.rng.chisquare(DIM * 3, steps) * self.var / batch
        self.estimator.update(local_sq, np.full(steps, batch / 4), grad_sq, np.full(steps, float(batch)))

    @property
    def changes(self) -> list[int]:
        """The batches in their order."""
        return [b for a, b in zip([0, *self.batches], self.batches, strict=False) if a != b]


@pytest.mark.parametrize("start", [16, 64, 320, 2048])
def test_the_best_batch_is_found_and_kept(start: int) -> None:
    line = Line(A, C)
    for seed in range(15):
        world = World(Goodput(), seed, start, 1000)
        for _ in range(240):
            world.tick()
        changes = world.changes
        kept = [line.gain(line.best(1000), batch, 1000) for batch in world.batches[160:]]
        assert min(kept) >= 0.95, (seed, changes)
        turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(changes, changes[1:], changes[2:], strict=False))
        assert turns <= 1, (seed, changes)  # back from the trial of a larger batch, if it was too large


def test_what_a_whole_run_sees_keeps_the_contract() -> None:
    world = World(Goodput(), 0, 16, 1000)
    for _ in range(120):
        world.tick()
    assert len(world.changes) > 3
    check_policy(Goodput(), world.seen)
