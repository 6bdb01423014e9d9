import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Reading, Set
from trimtab.controller.policies.contract import check_policy
from trimtab.controller.policies.switch_sync import REST, SwitchSync
from trimtab.controller.sync import STRATEGIES
from trimtab.controller.trajectory import Constant, Progress


class Run:
    """Feeds one observation at a time; what the policy sets is in force at the next, unless it is refused."""

    def __init__(self, policy: SwitchSync, sync: str = "sma") -> None:
        self.policy, self.sync, self.steps = policy, sync, 0
        self.state: Mapping[str, Any] = policy.initial()
        self.refused = False
        self.seen: list[Observation] = []

    def see(self, *losses: float, steps: int = 10, noise: Noise | None = None) -> Set | None:
        self.steps += steps
        readings = tuple(Reading(self.steps, 64 * self.steps, loss, 0.01, steps) for loss in losses)
        observation = Observation(
            Progress(self.steps, 64 * self.steps),
            {"sync": self.sync},
            Batching(4, 8, 8).plan(64),
            metrics={"loss": readings} if readings else {},
            noise=noise,
        )
        self.seen.append(observation)
        self.state, proposals = self.policy.decide(self.state, observation)
        if not proposals:
            return None
        (proposal,) = proposals
        assert isinstance(proposal, Set)
        if not self.refused:
            self.sync = str(proposal.to.value)  # type: ignore[union-attr]
        return proposal

    def when(self, losses: Sequence[float]) -> int | None:
        """The number of the reading at which the policy acts."""
        return next((i for i, loss in enumerate(losses, 1) if self.see(loss)), None)


def noise(value: float | None, low: float | None, high: float | None) -> Noise:
    return Noise(value, low, high, 1.0, 1.0, 100, 0)


def averaged(values: Sequence[float], weight: float) -> list[float]:
    """Exponential means by their definition: a weighted mean whose weights fall with age."""
    means = []
    for n in range(1, len(values) + 1):
        weights = [(1 - weight) ** (n - 1 - i) for i in range(n)]
        means.append(sum(w * x for w, x in zip(weights, values, strict=False)) / sum(weights))
    return means


# ---- when -----------------------------------------------------------------------------------------------------------


def test_at_a_step() -> None:
    run = Run(SwitchSync(step=100))
    assert [run.see() for _ in range(9)] == [None] * 9
    assert run.see() == Set("sync", Constant("allreduce"), "step 100 (from 100 on): sma -> allreduce")
    assert [run.see() for _ in range(50)] == [None] * 50
    assert run.policy.reads() == frozenset()


def test_at_a_level_of_the_loss() -> None:
    losses = [2.0] * 30 + [0.5] * 60
    mean = averaged(losses, 0.05)
    first = next(i for i, value in enumerate(mean, 1) if value < 1.0)
    run = Run(SwitchSync(when="loss_level", level=1.0))
    # 0.5 + 1.5 x 0.95^k (1 - 0.95^30) / (1 - 0.95^(30 + k)) is 1.011 at k = 18 and 0.983 at k = 19
    assert run.when(losses) == first == 49
    assert run.sync == "allreduce"
    assert run.policy.reads() == {"loss"}


def test_the_reason_quotes_the_mean() -> None:
    run = Run(SwitchSync(when="loss_level", level=1.0))
    assert [run.see(0.25) for _ in range(19)] == [None] * 19  # a mean that remembers 20 readings needs as many
    assert run.see(0.25) == Set("sync", Constant("allreduce"), "mean loss 0.25 is below 1: sma -> allreduce")


def test_at_a_slope_of_the_loss() -> None:
    losses = [10 - 0.1 * i for i in range(60)] + [4.0] * 400
    slopes = averaged([after - before for before, after in pairwise(losses)], 0.02)
    first = next(i for i, slope in enumerate(slopes, 2) if i > 50 and slope > -0.01)
    run = Run(SwitchSync(when="loss_slope", slope=-0.01))
    assert run.when(losses) == first
    assert first > 100
    assert run.state["reason"].startswith("mean change of the loss -0.00")
    assert run.state["reason"].endswith(" a reading is above -0.01")


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_still_falls_does_not_switch_for_its_noise(seed: int) -> None:
    rng = random.Random(seed)
    run = Run(SwitchSync(when="loss_slope", slope=-1e-3))
    assert run.when([5 - 0.01 * i + rng.gauss(0, 0.05) for i in range(400)]) is None
    assert run.when([1 + rng.gauss(0, 0.02) for i in range(400)]) is not None


def test_losses_that_are_none_are_passed_over() -> None:
    run = Run(SwitchSync(when="loss_level", level=1.0))
    assert [run.see(loss) for loss in (-1e308, 1e308, -1e12) * 20] == [None] * 60
    assert run.state["count"] == 0
    assert run.see(*[0.5] * 20) is not None  # several readings of one observation each count


@pytest.mark.parametrize(
    ("options", "seen", "reason"),
    [
        ({}, (100, 80, 120), "noise scale 100 (95 % 80-120, 100 estimates) is above 1 x batch 64"),
        ({}, (None, 80, None), "noise scale at least 80 (95 %, 100 estimates) is above 1 x batch 64"),
        ({}, (100, 60, 140), None),  # perhaps not
        ({}, (100, None, None), None),
        ({"noise": 2}, (200, 120, 300), None),
        ({"noise": 2}, (200, 130, 300), "is above 2 x batch 64"),
        ({"noise": 500, "noise_unit": "samples"}, (600, 501, 700), "is above 500 samples"),
        ({"side": "below"}, (50, 40, 60), "is below 1 x batch 64"),
        ({"side": "below"}, (50, 40, 70), None),
        ({"side": "below"}, (50, 40, None), None),
    ],
)
def test_at_a_noise_scale(options: dict[str, Any], seen: tuple[float | None, ...], reason: str | None) -> None:
    run = Run(SwitchSync(when="noise", **options))
    assert run.policy.reads() == {"noise_scale"}
    assert [run.see() for _ in range(5)] == [None] * 5  # not measured: it waits
    proposal = run.see(noise=noise(*seen))
    assert (proposal is None) == (reason is None)
    if proposal is not None and reason is not None:
        assert proposal.reason.endswith(f"{reason}: sma -> allreduce")


def test_averaging_is_for_batches_above_the_noise_scale() -> None:
    run = Run(SwitchSync(when="noise", to="sma"), sync="allreduce")
    assert run.see(noise=noise(100, 80, 120)) is None
    proposal = run.see(noise=noise(40, 30, 50))
    assert proposal == Set(
        "sync",
        Constant("sma"),
        "noise scale 40 (95 % 30-50, 100 estimates) is below 1 x batch 64: allreduce -> sma",
    )


# ---- once -----------------------------------------------------------------------------------------------------------


def test_a_strategy_that_is_already_in_force_is_not_set() -> None:
    run = Run(SwitchSync(step=0), sync="allreduce")
    assert [run.see() for _ in range(5)] == [None] * 5
    run.sync = "sma"  # a person's wish afterwards
    assert [run.see() for _ in range(5)] == [None] * 5


def test_what_was_refused_is_asked_for_again_now_and_then() -> None:
    run = Run(SwitchSync(step=0))
    run.refused = True  # pinned
    asked = [run.see() is not None for _ in range(3 * (REST + 1))]
    assert [i for i, one in enumerate(asked) if one] == [0, REST + 1, 2 * (REST + 1)]
    run.refused = False
    assert sum(run.see() is not None for _ in range(100)) == 1


def test_an_edited_rule_begins_anew() -> None:
    run = Run(SwitchSync(when="loss_level", level=0.0))
    for _ in range(60):
        run.see(1.0)
    run.policy = SwitchSync(when="loss_slope")
    assert [run.see(1.0) for _ in range(50)] == [None] * 50  # 49 changes
    assert run.see(1.0) is not None


def test_a_run_without_the_parameter_waits() -> None:
    policy = SwitchSync(step=0)
    observation = Observation(Progress(10), {}, Batching(4, 8, 8).plan(64))
    assert policy.decide(policy.initial(), observation) == (policy.initial(), ())


def test_the_strategies_are_those_that_there_are() -> None:
    assert get_args(SwitchSync.model_fields["to"].annotation) == tuple(STRATEGIES)
    with pytest.raises(ValidationError):
        SwitchSync.model_validate({"to": "gossip"})
    with pytest.raises(ValidationError):
        SwitchSync(when="noise", noise=0.0)


@pytest.mark.parametrize(
    "policy", [SwitchSync(when="loss_level", level=2.0), SwitchSync(when="loss_slope"), SwitchSync(step=100)], ids=repr
)
def test_what_a_run_sees_keeps_the_contract(policy: SwitchSync) -> None:
    run = Run(policy)
    for i in range(500):
        run.see(*(3 - min(i, 100) / 50,) * (i % 3), *((1e308, -1e308, 5e-324)[i % 3],) * (i % 20 == 0))
    assert run.sync == "allreduce"
    check_policy(policy, run.seen)
