"""The policy `noise_scale`: the batch follows the gradient noise scale."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self, TypedDict, cast

from pydantic import Field, model_validator

from trimtab.controller.hyperparameters import BATCH, LR
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Proposal, Set
from trimtab.controller.policies.cut import watch_lr
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.trajectory import Constant, LrRule

__all__ = ["NoiseScale"]


class State(TypedDict):
    seen: int  # estimates at the last observation
    cooldown: int  # estimates until the batch may change again
    frozen: int  # estimates until the batch may grow again after a cut of the learning rate
    above: int  # consecutive observations whose lower bound asks for a larger batch
    below: int  # consecutive observations whose upper bound asks for a smaller one
    batch: int  # [samples] at the last observation
    lr: float | None  # what a cut is measured from
    lr_age: int  # estimates since `lr` was noted


class NoiseScale(Policy):
    """Grow the global batch B with the gradient noise scale, B_simple = tr(Sigma) / |G|^2 [samples].

    Well below B_simple a larger batch saves as many steps as it costs samples; well above it samples are wasted.
    The batch goes to clamp(c * B_simple, min, max) when the 95 % *lower* bound of c * B_simple exceeds `grow_above` * B
    on `confirm` consecutive observations, by `max_change` times at most, to a batch that the workers can take. The
    one-sided bound acts where B is far below B_simple and the estimate itself is vague, and noise alone does not
    pass it; where |G|^2 is not above zero the bound stands in for the estimate.

    After a change the batch rests for `window` estimates. It does not change while the learning rate is warming up,
    nor grow for a window after the learning rate was cut at an unchanged batch: a cut lowers |G|^2 and so inflates
    B_simple, and the run would anneal twice.

    Source: McCandlish et al. 2018 (arXiv 1812.06162); c = 1 / eta^2 is the norm test of AdAdaGrad
    (Lau et al. 2024); the couplings are those of Goyal et al. 2017 (linear), Krizhevsky 2014 (sqrt) and Johnson et
    al. 2020 (adascale); growth in place of decay is Smith et al. 2017.
    """

    kind: ClassVar[str] = "noise_scale"
    source: ClassVar[str] = "McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv 1812.06162"

    c: float = Field(
        1.0,
        gt=0,
        description="Target batch in units of B_simple; 1 / eta^2 gives the norm test of AdAdaGrad (Lau et al. 2024).",
        json_schema_extra={"unit": "1"},
    )
    min: int = Field(1, ge=1, description="Smallest global batch to propose.", json_schema_extra={"unit": "samples"})
    max: int | None = Field(
        None,
        ge=1,
        description="Largest global batch to propose; empty: the hyper-parameter's own bound.",
        json_schema_extra={"unit": "samples"},
    )
    grow_above: float = Field(
        1.4,
        ge=1,
        description="Grow when the 95 % lower bound of c * B_simple exceeds this multiple of the batch.",
        json_schema_extra={"unit": "x batch"},
    )
    shrink: bool = Field(
        False, description="Whether the batch may become smaller.", json_schema_extra={"unit": "yes or no"}
    )
    shrink_below: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="Shrink when the 95 % upper bound of c * B_simple is below this multiple of the batch.",
        json_schema_extra={"unit": "x batch"},
    )
    confirm: int = Field(
        2,
        ge=1,
        description="Consecutive observations with new estimates that must agree before a change.",
        json_schema_extra={"unit": "observations"},
    )
    max_change: float = Field(
        2.0, gt=1, le=16, description="Largest ratio of one change, either way.", json_schema_extra={"unit": "x batch"}
    )
    first_window: int = Field(
        50,
        ge=1,
        description="Estimates before the first change; a long one costs a small task much of its run.",
        json_schema_extra={"unit": "estimates"},
    )
    window: int = Field(
        200,
        ge=1,
        description="Estimates between two changes, and without growth after a cut of the learning rate; "
        "twice the memory of the estimator's means (decay 0.99).",
        json_schema_extra={"unit": "estimates"},
    )
    coupling: LrRule | None = Field(
        None,
        description="How the learning rate follows the batch: none (Smith et al. 2017), linear (Goyal et al. 2017), "
        "sqrt (usual with Adam), adascale (Johnson et al. 2020); empty: the run's rule.",
        json_schema_extra={"unit": "rule"},
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; lower min or raise max")
        return self

    def reads(self) -> frozenset[str]:
        return frozenset({"noise_scale"})

    def writes(self) -> Mapping[str, Part]:
        return {BATCH: "base"}

    def initial(self) -> State:
        return State(seen=0, cooldown=self.first_window, frozen=0, above=0, below=0, batch=0, lr=None, lr_age=0)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        noise = observation.noise
        before = cast(State, state)
        if noise is None or noise.estimates == before["seen"]:
            return state, ()
        after = self._weigh(before, observation, noise)
        if after["cooldown"] or observation.rising & {LR}:
            return after, ()
        if after["above"] >= self.confirm and not after["frozen"]:
            target, why = self._larger(observation, noise), f"above {self.grow_above:g}"
        elif self.shrink and after["below"] >= self.confirm:
            target, why = self._smaller(observation, noise), f"below {self.shrink_below:g}"
        else:
            return after, ()
        batch = observation.plan.batch_size
        if target == batch:
            return after, ()
        scale = "noise scale" if self.c == 1 else f"{self.c:g} x noise scale"
        reason = f"{scale} {noise} is {why} x batch {batch:,}: batch {batch:,} -> {target:,}"
        rested = State(**{**after, "cooldown": self.window, "above": 0, "below": 0})
        return rested, (Set(BATCH, Constant(target), reason, self.coupling),)

    def _weigh(self, before: State, observation: Observation, noise: Noise) -> State:
        """What the new estimates add to the evidence."""
        batch = observation.plan.batch_size
        anew = noise.estimates < before["seen"]  # another estimator
        new = noise.estimates if anew else noise.estimates - before["seen"]
        lr, lr_age, cut = watch_lr(before["lr"], before["lr_age"] + new, before["batch"], observation, self.window)
        above = noise.low is not None and self.c * noise.low > self.grow_above * batch
        below = noise.high is not None and self.c * noise.high < self.shrink_below * batch
        return State(
            seen=noise.estimates,
            cooldown=max(0, before["cooldown"] - new),
            frozen=self.window if cut else max(0, before["frozen"] - new),
            above=before["above"] + 1 if above else 0,
            below=before["below"] + 1 if below else 0,
            batch=batch,
            lr=lr,
            lr_age=lr_age,
        )

    def _larger(self, observation: Observation, noise: Noise) -> int:
        plan = observation.plan
        grain = plan.world_size * plan.micro_batch
        target = self.c * (noise.value or noise.low or 0.0)  # undefined: B_simple is at least its bound
        most = self.max_change * plan.batch_size
        most = most if self.max is None else min(most, self.max)
        nearest = plan.nearest(min(max(target, self.min), most))
        return max(plan.batch_size, min(nearest, int(most // grain) * grain))

    def _smaller(self, observation: Observation, noise: Noise) -> int:
        batch = observation.plan.batch_size
        target = self.c * (noise.value or 0.0)
        least = max(batch / self.max_change, self.min)
        nearest = observation.plan.nearest(max(target if self.max is None else min(target, self.max), least))
        return nearest if least <= nearest < batch else batch
