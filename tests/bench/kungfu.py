"""The rule of KungFu's example policy, to be compared with: double the batch whenever the noise scale has risen."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypedDict, cast

from pydantic import Field

from trimtab.controller.observation import Observation, Proposal, Set
from trimtab.controller.policies import JsonState, Policy
from trimtab.controller.policies.policy import Part
from trimtab.controller.trajectory import Constant


class State(TypedDict):
    periods: int  # that are over
    ratio: float | None  # |noise scale| / batch at the end of the last one


class KungFu(Policy):
    """At the end of each period double the batch if |noise scale| / batch is larger than a period ago.

    The learning rate stays, as in the original. There a period is an epoch, and the mean is one over the last ten
    steps or so; the estimate here is one over a hundred, which is kinder to the rule.

    Source: Mai et al. 2020, KungFu, OSDI; examples/policies/gns_policy of its repository.
    """

    kind: ClassVar[str] = "kungfu"
    source: ClassVar[str] = "Mai et al. 2020, KungFu: Making Training in Distributed Machine Learning Adaptive, OSDI"

    period: int = Field(3000, ge=1, description="Samples between two decisions.")
    max: int = Field(1024, ge=1, description="Largest global batch to propose [samples].")

    def reads(self) -> frozenset[str]:
        return frozenset({"noise_scale"})

    def writes(self) -> Mapping[str, Part]:
        return {"batch_size": "base"}

    def initial(self) -> State:
        return State(periods=0, ratio=None)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        before, noise = cast(State, state), observation.noise
        periods = observation.progress.samples // self.period
        if noise is None or noise.grad_sq == 0 or periods == before["periods"]:
            return state, ()
        batch = observation.plan.batch_size
        ratio = abs(noise.trace / noise.grad_sq) / batch
        after = State(periods=periods, ratio=ratio)
        larger = min(2 * batch, self.max)
        if before["ratio"] is None or ratio <= before["ratio"] or larger == batch:
            return after, ()
        reason = f"noise scale / batch has risen from {before['ratio']:.3g} to {ratio:.3g}: batch {batch} -> {larger}"
        return after, (Set("batch_size", Constant(larger), reason, lr_rule="none"),)
