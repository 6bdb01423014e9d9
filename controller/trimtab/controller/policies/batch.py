"""What the policies that choose the global batch from the gradient noise scale have in common."""

from collections.abc import Mapping
from typing import Self, TypedDict, cast

from pydantic import Field, model_validator

from trimtab.controller.hyperparameters import BATCH, LR
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.trajectory import LrRule

__all__ = ["BatchPolicy", "Rest"]

CUT = 0.9  # a learning rate below this share of what it was within a window has been cut


class Rest(TypedDict):
    """Why the batch may have to stay as it is; part of the state."""

    seen: int  # estimates at the last observation
    cooldown: int  # estimates until the batch may change again
    frozen: int  # estimates until the batch may grow again after a cut of the learning rate
    batch: int  # [samples] at the last observation
    lr: float | None  # what a cut is measured from
    lr_age: int  # estimates since `lr` was noted


class BatchPolicy(Policy):
    """Owns the batch; after a change, and after a cut of the learning rate, it rests for some estimates."""

    min: int = Field(1, ge=1, description="Smallest global batch to propose.", json_schema_extra={"unit": "samples"})
    max: int | None = Field(
        None,
        ge=1,
        description="Largest global batch to propose; empty: the hyper-parameter's own bound.",
        json_schema_extra={"unit": "samples"},
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

    def writes(self) -> Mapping[str, Part]:
        return {BATCH: "base"}

    def _at_first(self) -> Rest:
        return Rest(seen=0, cooldown=self.first_window, frozen=0, batch=0, lr=None, lr_age=0)

    def _aged(self, rest: Rest, observation: Observation, noise: Noise) -> Rest:
        """The rest that is left after the new estimates."""
        anew = noise.estimates < rest["seen"]  # another estimator
        new = noise.estimates if anew else noise.estimates - rest["seen"]
        lr, lr_age, cut = _watch_lr(rest["lr"], rest["lr_age"] + new, rest["batch"], observation, self.window)
        return Rest(
            seen=noise.estimates,
            cooldown=max(0, rest["cooldown"] - new),
            frozen=self.window if cut else max(0, rest["frozen"] - new),
            batch=observation.plan.batch_size,
            lr=lr,
            lr_age=lr_age,
        )

    def _rests(self, rest: Rest, observation: Observation, growing: bool) -> bool:
        """A cut lowers |G|^2 and so inflates the noise scale: a batch that grew on it would anneal a second time."""
        return bool(rest["cooldown"] or observation.rising & {LR} or (growing and rest["frozen"]))

    def waits(self, state: JsonState, observation: Observation) -> str | None:
        rest = cast(Rest, state)
        if observation.rising & {LR}:
            return "lr is still rising; the batch stays as it is until it has risen"
        if rest["cooldown"]:
            return f"the batch stays as it is for {rest['cooldown']:,} estimates of the noise more"
        if rest["frozen"]:
            return f"lr was cut; the batch does not grow for {rest['frozen']:,} estimates of the noise more"
        return None


def _watch_lr(
    noted: float | None, age: int, batch: int, observation: Observation, window: int
) -> tuple[float | None, int, bool]:
    """The learning rate to measure a cut from, its age in estimates, and whether one has just been made.

    `noted` is what was returned before (None: nothing yet), `age` its age now, `batch` the global batch at the last
    observation.
    """
    lr = observation.values.get(LR)
    if lr is None or isinstance(lr, str):
        return None, 0, False
    if noted is None or lr > noted or observation.plan.batch_size != batch:
        return lr, 0, False  # at a new batch the learning rate follows its coupling
    if lr < CUT * noted:
        return lr, 0, True
    return (lr, 0, False) if age >= window else (noted, age, False)
