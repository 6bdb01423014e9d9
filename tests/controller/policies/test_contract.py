import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import ConfigDict, Field

from trimtab.controller.observation import Command, Observation, Proposal, Scale, Set
from trimtab.controller.policies.contract import check_policy, sample_observations
from trimtab.controller.policies.early_stop import EarlyStop
from trimtab.controller.policies.goodput import Goodput
from trimtab.controller.policies.learners import Learners
from trimtab.controller.policies.noise_scale import NoiseScale
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.policies.policy import JsonState, Part, Policy, kinds
from trimtab.controller.policies.scale_workers import ScaleWorkers
from trimtab.controller.policies.schedule import Schedule
from trimtab.controller.policies.stragglers import Stragglers
from trimtab.controller.policies.switch_sync import SwitchSync
from trimtab.controller.policies.warmup import Warmup
from trimtab.controller.trajectory import Constant

OPTIONS = [
    EarlyStop(metric="accuracy", mode="max", stopping_threshold=5.0, divergence_threshold=-5.0, patience=1),
    EarlyStop(check_finite=False, min_delta=0.5),
    Goodput(min=64, max=64, min_gain=0.0, confirm=1, first_window=1, window=1, coupling="sqrt"),
    Goodput(max_workers=3, worker_gain=0, confirm=1, first_window=1, window=1, patience=1),
    Learners(window=2, patience=1, gain=0.0),
    NoiseScale(shrink=True, confirm=1, first_window=1, window=1),
    NoiseScale(c=1e-3, max=64, coupling="none"),
    Plateau(patience=0, factor=0.5, eps=0.0),
    Plateau(patience=0, instead="batch", mode="max"),
    Plateau(patience=1, instead="seesaw", cooldown=2, threshold_mode="abs", metric="accuracy"),
    ScaleWorkers(window=2, patience=1, max=2, alpha=0.0),
    Stragglers(ratio=1.01, window=1),
    SwitchSync(when="loss_level", level=10.0),
    SwitchSync(when="loss_slope", slope=-1e300, to="sma"),
    SwitchSync(when="noise", noise=1e-3, noise_unit="samples", side="above"),
    Warmup(param="weight_decay", steps=10, shape="exponential"),
    Warmup(start=0),
    Schedule(shape="wsd", decay=0.5, decay_shape="cosine"),
    Schedule(shape="wsd", unit="epochs", horizon=2, of="base", start=0.5, end=0.1),
    Schedule(shape="step", every=70, unit="steps", gamma=0.5),
    Schedule(shape="table", marks=(0, 2, 9), values=(0, 1, 0.5), unit="epochs", param="momentum"),
    Schedule(shape="constant", start=-1e300),
]


@pytest.mark.parametrize("kind", kinds())
def test_every_installed_policy_keeps_the_contract(kind: str) -> None:
    check_policy(kinds()[kind]())


@pytest.mark.parametrize("policy", OPTIONS, ids=repr)
def test_options_keep_the_contract(policy: Policy) -> None:
    check_policy(policy)


ACTING = [
    EarlyStop(check_finite=False),
    EarlyStop(),
    NoiseScale(),
    NoiseScale(shrink=True),
    Plateau(patience=2),
    Stragglers(),
    Warmup(),
]


@pytest.mark.parametrize("policy", ACTING, ids=repr)
def test_the_sample_makes_policies_act(policy: Policy) -> None:
    state, acted = policy.initial(), 0
    for observation in sample_observations(policy):
        state, proposals = policy.decide(state, observation)
        acted += len(proposals)
    assert acted


def test_the_sample_is_the_same_every_time() -> None:
    assert sample_observations(Plateau()) == sample_observations(Plateau())


class Good(Policy):
    """Says something now and then."""

    kind: ClassVar[str] = "good"
    source: ClassVar[str] = "none: an example"
    every: int = Field(3, ge=1, description="Observations between two proposals.")

    def reads(self) -> frozenset[str]:
        return frozenset({"loss"})

    def writes(self) -> Mapping[str, Part]:
        return {"lr": "factor"}

    def initial(self) -> JsonState:
        return {"count": 0}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        count = state["count"] + 1
        return {"count": count}, [self.proposal()] if count % self.every == 0 else []

    def proposal(self) -> Proposal:
        return Scale("lr", Constant(0.5), "an example")


class Mutates(Good):
    """Changes its input."""

    def decide(self, state: Any, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        state["count"] += 1
        return super().decide(state, observation)


class MutatesObservation(Good):
    """Changes what it sees."""

    def decide(self, state: JsonState, observation: Any) -> tuple[JsonState, Sequence[Proposal]]:
        observation.values["lr"] = 1.0
        return super().decide(state, observation)


class Impure(Good):
    """Remembers outside its state."""

    calls: ClassVar[list[int]] = []

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        self.calls.append(1)
        return {"count": len(self.calls)}, ()


class NoJson(Good):
    """Has a state that JSON does not know."""

    def initial(self) -> JsonState:
        return {"count": 0, "seen": {1}}


class Infinite(Good):
    """Has a state that JSON cannot hold."""

    def initial(self) -> JsonState:
        return {"count": 0, "best": math.inf}


class Tuples(Good):
    """Has a state that JSON changes."""

    def initial(self) -> JsonState:
        return {"count": 0, "pair": (1, 2)}


class Undeclared(Good):
    """Writes what it did not declare."""

    def proposal(self) -> Proposal:
        return Set("lr", Constant(0.5), "an example")


class Speechless(Good):
    """Gives no reason."""

    def proposal(self) -> Proposal:
        return Command("stop", " ")


class Undescribed(Good):
    """Has a parameter without a description."""

    other: int = 3


class Thawed(Good):
    """Is not frozen."""

    model_config = ConfigDict(frozen=False)


class Unsourced(Good):
    """Does not say where it comes from."""

    source: ClassVar[str] = ""


class NoDocs(Good):
    pass


FAULTS = {
    Mutates: "must not change the state",
    MutatesObservation: "must not change the observation",
    Impure: "the same state and observation",
    NoJson: "must be JSON",
    Infinite: "must be JSON",
    Tuples: "must survive JSON",
    Undeclared: "for a base; writes",
    Speechless: "a reason is one sentence",
    Undescribed: "Undescribed.other needs a description",
    Thawed: "frozen",
    Unsourced: "source must name",
    NoDocs: "needs a docstring",
}


def test_a_stranger_that_keeps_the_contract_passes() -> None:
    check_policy(Good())
    check_policy(Good(every=1), sample_observations(Good(), count=5, seed=3))


@pytest.mark.parametrize(("cls", "message"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", None))
def test_each_fault_is_named(cls: type[Policy], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(cls())
