"""The policies `scale_workers` and `learners`, and what they have in common."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Notice, Observation, Proposal, Reading, Set
from trimtab.controller.policies.contract import check_policy
from trimtab.controller.policies.growth import ANEW, Growth, _mean
from trimtab.controller.policies.learners import Learners
from trimtab.controller.policies.policy import Policy
from trimtab.controller.policies.scale_workers import ScaleWorkers
from trimtab.controller.trajectory import Constant, Progress, Scalar

Speed = Callable[[int, int], float]  # ranks, batch -> samples/s

BATCH = 64


def linear(ranks: int, batch: int) -> float:  # noqa: ARG001
    return 1000.0 * ranks


def saturating(ranks: int, batch: int) -> float:  # noqa: ARG001
    """1,000, 1,900, 2,600, 2,700: the second brings 90 %, the third 36.8 %, the fourth 3.8 %."""
    return {1: 1000.0, 2: 1900.0, 3: 2600.0}.get(ranks, 2700.0)


class Cluster:
    """A run whose size follows the policy's wish, one observation later, as far as there is room."""

    def __init__(self, policy: Growth, speed: Speed = linear, **more: Any) -> None:
        self.policy, self.speed = policy, speed
        self.sizes = {"workers": more.get("workers", 1), "learners": more.get("learners", 1)}
        self.bound: int = more.get("bound", 2**31)  # of the hyper-parameter: the engine clamps to it
        self.room: int = more.get("room", 2**31)  # ranks that the cluster has devices for
        self.batch: int = more.get("batch", BATCH)
        self.late: int = more.get("late", 2)  # observations until a wish comes true
        self.scale: bool = more.get("scale", False)  # does the batch grow with the ranks?
        self.noise = more.get("noise")
        self.pin: int | None = None
        self.ranks = self.wished
        self.pending = 0
        self.state: Mapping[str, Any] = policy.initial()
        self.seen: list[Observation] = []
        self.said: list[Proposal] = []

    @property
    def wished(self) -> int:
        return self.sizes["workers"] * self.sizes["learners"]

    def see(self, **more: Any) -> Proposal | None:
        """One observation of the run as it is, with a step time and a batch in force of its own if given."""
        self._arrive()
        in_force = self.batch * (self.ranks if self.scale else 1)
        plan = Batching(self.ranks, 1, 1).plan(in_force)
        time = more.get("time", plan.batch_size / self.speed(self.ranks, plan.batch_size))
        time *= self.noise() if self.noise else 1
        values: dict[str, Scalar] = {**self.sizes, "batch_size": plan.batch_size}
        if self.pin is not None:
            values[self.policy.param] = self.pin
        metrics = {
            "step_time": (Reading(1, 1, time, 0.01, 10),),
            "hp/batch_size": (Reading(1, 1, more.get("in_force", plan.batch_size), more.get("mixed", 0.0), 10),),
        }
        observation = Observation(Progress(len(self.seen)), values, plan, metrics=metrics)
        self.seen.append(observation)
        self.state, proposals = self.policy.decide(self.state, observation)
        if not proposals:
            return None
        (proposal,) = proposals
        self.said.append(proposal)
        if isinstance(proposal, Set) and self.pin is None:
            assert isinstance(proposal.to, Constant)
            self.sizes[proposal.param] = min(int(proposal.to.value), self.bound)
            self.pending = self.late
        return proposal

    def _arrive(self) -> None:
        self.pending = max(0, self.pending - 1)
        if not self.pending:
            self.ranks = min(self.wished, max(self.room, self.ranks if self.ranks < self.wished else 1))

    def until(self, most: int = 200) -> Proposal:
        return next(proposal for _ in range(most) if (proposal := self.see()))

    def rest(self, observations: int = 1500) -> list[int | None]:
        """What the policy sets until nothing more comes; None stands for a notice."""
        for _ in range(observations):
            self.see()
        return [int(one.to.value) if isinstance(one, Set) else None for one in self.said]  # type: ignore[arg-type, union-attr]


# ---- the rule -------------------------------------------------------------------------------------------------------


def test_a_worker_stays_while_it_pays_and_the_last_one_is_given_back() -> None:
    run = Cluster(ScaleWorkers(window=10), saturating)
    assert [run.see() for _ in range(9)] == [None] * 9
    assert run.see() == Set(
        "workers", Constant(2), "1 worker takes 1,000 samples/s, and one more is tried: workers 1 -> 2"
    )
    assert [run.see() for _ in range(10)] == [None] * 10  # the second worker is late by one
    # 1,900 / 1,000 against 1 + 1/6, 2,600 / 1,900 = 1.368 against 1 + 1/9, 2,700 / 2,600 = 1.038 against 1 + 1/12
    assert run.see() == Set(
        "workers",
        Constant(3),
        "2 workers take 1,900 samples/s, 90.0% more than 1 (1,000), where 16.7% more are asked for: workers 2 -> 3",
    )
    assert run.until() == Set(
        "workers",
        Constant(4),
        "3 workers take 2,600 samples/s, 36.8% more than 2 (1,900), where 11.1% more are asked for: workers 3 -> 4",
    )
    assert run.until() == Set(
        "workers",
        Constant(3),
        "4 workers take 2,700 samples/s, 3.8% more than 3 (2,600), where 8.3% more are asked for: workers 4 -> 3, and "
        "growing ends",
    )
    assert run.rest() == [2, 3, 4, 3]
    assert run.ranks == 3


def test_less_than_before_is_said_so() -> None:
    run = Cluster(ScaleWorkers(window=2), lambda ranks, _: 1000 / ranks)
    run.rest(20)
    assert run.said[-1].reason == (
        "2 workers take 500 samples/s, 50.0% less than 1 (1,000), where 16.7% more are asked for: workers 2 -> 1, and "
        "growing ends"
    )


@pytest.mark.parametrize(("rise", "last"), [(1.0 + 1 / 6, 3), (1.16, 1)])
def test_just_as_much_as_is_asked_for_is_enough(rise: float, last: int) -> None:
    run = Cluster(ScaleWorkers(window=4, max=3), lambda ranks, _: 1000 * rise ** (ranks - 1) * 1.0000001)
    run.rest(60)
    assert run.sizes["workers"] == last


def test_linear_growth_ends_at_the_most() -> None:
    run = Cluster(ScaleWorkers(window=4, max=5))
    assert run.rest(100) == [2, 3, 4, 5, None]
    assert run.said[-1] == Notice(
        "5 workers take 5,000 samples/s, 25.0% more than 4 (4,000), where 6.7% more are asked for, and 5 is the most "
        "that may be: workers stays at 5, and growing ends"
    )


def test_alpha_sets_the_bar() -> None:
    assert Cluster(ScaleWorkers(window=4, alpha=0, max=5), saturating).rest(80) == [2, 3, 4, 5, None]  # no slower
    assert Cluster(ScaleWorkers(window=4, alpha=2), saturating).rest(80) == [2, 1]  # 90 % where 100 % are asked for


def test_learners_grow_while_each_brings_a_tenth() -> None:
    speed = {1: 1000.0, 2: 1500.0, 3: 1700.0, 4: 1750.0}  # +50 %, +13.3 %, +2.9 %
    run = Cluster(Learners(window=6), lambda ranks, _: speed[ranks])
    assert run.rest() == [2, 3, 4, 3]
    assert {one.param for one in run.said if isinstance(one, Set)} == {"learners"}
    assert run.said[0].reason == "1 learner takes 1,000 samples/s, and one more is tried: learners 1 -> 2"
    assert run.said[-1].reason == (
        "4 learners take 1,750 samples/s, 2.9% more than 3 (1,700), where 10.0% more are asked for: learners 4 -> 3, "
        "and growing ends"
    )
    assert Cluster(Learners(window=6, gain=0.2), lambda ranks, _: speed[ranks]).rest() == [2, 3, 2]


def test_learners_are_counted_on_each_worker() -> None:
    run = Cluster(Learners(window=6, max=3), workers=4)
    assert run.rest() == [2, 3, None]
    assert run.ranks == 12


def test_a_run_without_the_parameter_is_left_alone() -> None:
    run = Cluster(ScaleWorkers(window=2))
    del run.sizes["learners"]
    run.sizes["workers"] = 1
    observation = Observation(Progress(), {"learners": 2}, Batching(1, 1, 1).plan(8))
    state = run.state
    for _ in range(20):
        state, proposals = run.policy.decide(state, observation)
        assert not proposals


# ---- the window -----------------------------------------------------------------------------------------------------


def test_the_first_half_of_a_window_is_warm_up() -> None:
    run = Cluster(ScaleWorkers(window=10), saturating)
    for _ in range(2):
        for _ in range(5):
            run.see(time=1e3)
        run.until()
    assert run.said[1].reason.startswith("2 workers take 1,900 samples/s, 90.0% more than 1 (1,000)")


def test_a_checkpoint_within_the_window_does_not_count() -> None:
    run = Cluster(ScaleWorkers(window=10), saturating)
    for _ in range(7):
        run.see()
    run.see(time=30.0)
    assert run.until().reason.startswith("1 worker takes 1,000 samples/s")


def test_the_mean_is_of_what_is_not_odd() -> None:
    assert _mean([1.0, 1.2, 1.4, 100.0, 0.01]) == pytest.approx(1.2)
    assert _mean([1.0, 1.4]) == pytest.approx(1.2)
    assert _mean([1.0, 10.0]) == 5.5  # the median: neither is near it


@pytest.mark.parametrize("seed", range(20))
def test_noisy_times_lead_to_the_same_end(seed: int) -> None:
    """Step times of a reading 5 % off, and in one of twenty a checkpoint that takes as long as all of it."""
    rng = random.Random(seed)
    noise = lambda: rng.lognormvariate(0, 0.05) * (2 if rng.random() < 0.05 else 1)  # noqa: E731
    run = Cluster(ScaleWorkers(), saturating, noise=noise)
    assert run.rest(600) == [2, 3, 4, 3]


def test_readings_of_two_batches_or_of_no_time_do_not_count() -> None:
    run = Cluster(ScaleWorkers(window=2))
    assert [run.see(mixed=0.5) for _ in range(20)] == [None] * 20
    assert [run.see(time=time) for time in (0.0, -1.0, 1e300) * 5] == [None] * 15
    assert [run.see(in_force=batch) for batch in (0.0, -1.0, 1e300) * 5] == [None] * 15
    assert run.state["seen"] == 0


# ---- wishes ---------------------------------------------------------------------------------------------------------


def test_nothing_is_measured_while_newcomers_are_on_their_way() -> None:
    run = Cluster(ScaleWorkers(window=4), saturating, late=50)
    run.until()
    assert [run.see(time=1e3) for _ in range(49)] == [None] * 49  # their start makes the others slow
    assert run.ranks == 1
    assert run.until().reason.startswith("2 workers take 1,900 samples/s, 90.0% more than 1 (1,000)")


def test_a_wish_that_does_not_come_true_goes_back_to_what_there_is() -> None:
    run = Cluster(ScaleWorkers(window=4, patience=30), room=2)
    assert run.until().to == Constant(2)  # type: ignore[union-attr]
    assert run.until().to == Constant(3)  # type: ignore[union-attr]
    assert [run.see() for _ in range(29)] == [None] * 29
    assert run.see() == Set(
        "workers",
        Constant(2),
        "3 workers wished, but the run trains on 2 after 30 observations: workers 3 -> 2, and growing ends",
    )
    assert run.rest() == [2, 3, 2]


def test_a_run_that_never_gets_what_it_began_with() -> None:
    run = Cluster(ScaleWorkers(window=4, patience=30), workers=4, learners=2)
    run.room = run.ranks = 5  # of 8: two workers and a half
    assert [run.see() for _ in range(29)] == [None] * 29
    assert run.until().to == Constant(2)  # type: ignore[union-attr]
    assert run.rest() == [2]


def test_a_bound_ends_it() -> None:
    run = Cluster(ScaleWorkers(window=4), bound=3)
    assert run.rest() == [2, 3, 4, None]
    assert run.said[-1] == Notice(
        "4 workers asked for, but a bound or a pin holds it at 3: workers stays at 3, and growing ends"
    )
    assert run.ranks == 3


def test_what_is_pinned_meanwhile_is_not_measured() -> None:
    run = Cluster(ScaleWorkers(window=4), saturating)
    run.until()
    run.see()
    run.pin = 7
    assert [run.see() for _ in range(50)] == [None] * 50
    run.pin = None
    assert run.rest() == [2, 3, 4, 3]


def test_other_learners_make_it_measure_anew() -> None:
    run = Cluster(ScaleWorkers(window=4, max=2), lambda ranks, _: 100.0 if ranks == 1 else 1000.0)
    run.until()
    run.sizes["learners"] = 2
    assert run.until().reason == (
        "2 workers take 1,000 samples/s, but 1 took what they did with another batch and must be measured anew: "
        "workers 2 -> 1"
    )
    assert run.rest(60) == [2, 1, None]  # two learners on one worker are as fast


# ---- the batch ------------------------------------------------------------------------------------------------------


def by_batch(ranks: int, batch: int) -> float:
    """A step takes 10 ms and 0.4 ms a sample of a rank: two workers at 64 bring 56 %, at 16 little more than 20 %."""
    return batch / (0.01 + 0.0004 * batch / ranks)


def test_a_batch_that_moves_begins_the_window_anew() -> None:
    run = Cluster(ScaleWorkers(window=10), by_batch)
    for _ in range(9):
        run.see()
    run.batch = 128
    assert [run.see() for _ in range(9)] == [None] * 9
    assert run.see() == Set(
        "workers",
        Constant(2),
        "1 worker takes 2,092 samples/s, and one more is tried: workers 1 -> 2",  # 128 / 61.2 ms
    )


@pytest.mark.parametrize("after", [0, 5], ids=["while it comes", "within the window"])
def test_the_size_before_is_measured_anew_at_another_batch(after: int) -> None:
    run = Cluster(ScaleWorkers(window=10, max=2), by_batch)
    run.until()
    for _ in range(after):
        run.see()
    run.batch = 128
    assert run.until() == Set(
        "workers",
        Constant(1),
        "2 workers take 3,596 samples/s, but 1 took what they did with another batch and must be measured anew: "
        "workers 2 -> 1",
    )
    assert run.until().reason == "1 worker takes 2,092 samples/s, and one more is tried: workers 1 -> 2"
    # 128 / 61.2 ms = 2,091.5 and 128 / 35.6 ms = 3,595.5
    assert run.until().reason == (
        "2 workers take 3,596 samples/s, 71.9% more than 1 (2,092), where 16.7% more are asked for, and 2 is the most "
        "that may be: workers stays at 2, and growing ends"
    )


def test_one_that_does_not_pay_at_the_new_batch_is_known_when_the_one_before_has_been_measured() -> None:
    run = Cluster(ScaleWorkers(window=10), by_batch)
    run.until()
    run.batch = 4  # 4 / 11.6 ms = 344.8 with one, 4 / 10.8 ms = 370.4 with two: 7.4 %
    assert run.rest() == [2, 1, None]
    assert run.said[-1].reason == (
        "2 workers took 370 samples/s, 7.4% more than 1 (345), where 16.7% more are asked for: workers stays at 1, and "
        "growing ends"
    )


def test_a_batch_that_never_stands_still_ends_it_where_it_was_proven() -> None:
    run = Cluster(ScaleWorkers(window=4), by_batch)
    for _ in range(40):
        proposal = run.see()
        if isinstance(proposal, Set) and proposal.to == Constant(2):
            run.batch *= 2
    assert [one.to.value for one in run.said if isinstance(one, Set)] == [2, 1] * (ANEW + 1)  # type: ignore[union-attr]
    assert run.said[-1].reason == (
        "the batch has moved 4 times since 1 had been measured: workers 2 -> 1, and growing ends"
    )


def test_what_rounding_makes_of_a_batch_is_the_same_batch() -> None:
    run = Cluster(ScaleWorkers(window=4, max=3), batch=8)  # three workers take 9
    assert run.rest(60) == [2, 3, None]


def test_a_batch_that_grows_with_the_workers_is_the_same_share() -> None:
    run = Cluster(ScaleWorkers(window=4, max=4), by_batch, scale=True)
    assert run.rest(80) == [2, 3, 4, None]
    assert "33.3% more than 3" in run.said[-1].reason  # its steps take as long as ever


# ---- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [ScaleWorkers(window=3, patience=5), Learners(window=2, max=3)], ids=repr)
def test_what_a_whole_run_sees_keeps_the_contract(policy: Growth) -> None:
    run = Cluster(policy, saturating, room=3)
    run.rest(200)
    check_policy(policy, run.seen)


def test_the_state_stays_small() -> None:
    run = Cluster(ScaleWorkers(window=100, alpha=0))
    largest = 0
    for _ in range(4000):
        run.see()
        largest = max(largest, len(json.dumps(run.state)))
    assert run.ranks > 30
    assert largest < 1000


def test_roll_backs_of_the_model_do_not_concern_it() -> None:
    assert ScaleWorkers.lasting
    assert Learners.lasting


@pytest.mark.parametrize("kind", [ScaleWorkers, Learners])
@pytest.mark.parametrize("wrong", [{"window": 1}, {"max": 0}, {"patience": 0}, {"alpha": -1}, {"gain": -1}])
def test_parameters_have_bounds(kind: type[Policy], wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(wrong)
