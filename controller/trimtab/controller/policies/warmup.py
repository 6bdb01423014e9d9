"""The policy `warmup`: a hyper-parameter rises to its value."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypedDict

from pydantic import Field, model_validator

from trimtab.controller.hyperparameters import LR
from trimtab.controller.observation import Observation, Proposal, Scale
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.trajectory import Ramp, Unit

__all__ = ["Warmup"]

WITHOUT_HORIZON = 1000  # [samples]


class State(TypedDict):
    begin: Mapping[str, int] | None  # progress by unit
    made_of: Mapping[str, Any] | None  # the parameters that the ramp in force was made of


class Warmup(Policy):
    """Raise a hyper-parameter's factor from `start` to 1, once, beginning where the run is when the policy is added.

    Editing the policy draws the ramp anew from the same beginning.

    With x the share of the warm-up done, the factor is start + (1 - start) x (linear) or start^(1 - x) (exponential).
    Its length is `samples`, or `steps`, or else `fraction` of the horizon (1,000 samples in a run without one). The
    whole warm-up is one proposal: workers evaluate it at every step.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 2.2.
    """

    kind: ClassVar[str] = "warmup"
    source: ClassVar[str] = "Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv 1706.02677, section 2.2"

    param: str = Field(
        LR, min_length=1, description="The hyper-parameter to warm up.", json_schema_extra={"unit": "name"}
    )
    start: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Factor at the beginning; above 0 where the shape is exponential.",
        json_schema_extra={"unit": "1"},
    )
    samples: int | None = Field(
        None, ge=1, description="Length in samples of all ranks together.", json_schema_extra={"unit": "samples"}
    )
    steps: int | None = Field(None, ge=1, description="Length in optimizer steps.", json_schema_extra={"unit": "steps"})
    fraction: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Length as a share of the horizon, where neither samples nor steps are given.",
        json_schema_extra={"unit": "of the horizon"},
    )
    shape: Literal["linear", "exponential"] = Field(
        "linear", description="How the factor rises (linear: Goyal et al. 2017).", json_schema_extra={"unit": "shape"}
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.samples is not None and self.steps is not None:
            raise ValueError(f"give samples or steps, not both; got {self.samples} samples and {self.steps} steps")
        if self.shape == "exponential" and self.start == 0:
            raise ValueError("an exponential warm-up needs a start above 0, got 0")
        return self

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {self.param: "factor"}

    def initial(self) -> State:
        return State(begin=None, made_of=None)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        made_of = self.model_dump(mode="json")
        if state["made_of"] == made_of:
            return state, ()
        now = observation.progress
        begins = state["begin"] or {"samples": now.samples, "steps": now.steps}
        amount, unit = self._length(observation)
        begin = begins[unit]
        ramp = Ramp(self.start, 1.0, begin, begin + amount, unit, self.shape)
        reason = (
            f"warm-up: {self.param} x {self.start:g} -> 1, {self.shape} over {amount:,} {unit} "
            f"from {unit.removesuffix('s')} {begin:,}"
        )
        return State(begin=begins, made_of=made_of), (Scale(self.param, ramp, reason),)

    def _length(self, observation: Observation) -> tuple[int, Unit]:
        if self.samples is not None:
            return self.samples, "samples"
        if self.steps is not None:
            return self.steps, "steps"
        horizon = observation.horizon
        if horizon is None:
            return WITHOUT_HORIZON, "samples"
        return max(1, round(self.fraction * horizon.amount)), horizon.unit
