"""Hyper-parameters: declaration, value as base x factors, pin, and the version that is a snapshot of all of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from trimtab.controller.batching import Batching, Plan
from trimtab.controller.trajectory import (
    LARGEST,
    Constant,
    Coupling,
    Curve,
    Factor,
    Progress,
    Scalar,
    Trajectory,
    product,
)

Kind = Literal["real", "integer", "choice"]
BATCH = "batch_size"
LR = "lr"
NUMBERS = frozenset({BATCH, LR, "momentum", "weight_decay", "beta1", "beta2"})  # whoever gives a word is mistaken
COUPLED = "batch"  # the name under which the learning rate carries its Coupling
WHOLE = 2**53  # whole numbers up to here are exact as floats


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameter:
    """The declaration of one hyper-parameter; `max_ratio` and `cooldown` bind policies, not persons."""

    name: str
    kind: Kind = "real"
    default: Scalar
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    max_ratio: float | None = 10.0  # largest change in one version, either way
    cooldown: int = 0  # [samples] between two changes by one policy
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a hyper-parameter's name must be an identifier, got {self.name!r}")
        if self.kind == "choice" and not self.choices:
            raise ValueError(f"{self.name} is a choice and needs `choices`")
        low, high = self.bounds
        if not low <= high:  # true for NaN too
            raise ValueError(f"{self.name}: min {self.min} and max {self.max} leave no value between them")
        if self.max_ratio is not None and not self.max_ratio > 1:
            raise ValueError(f"{self.name}: max_ratio must be above 1, got {self.max_ratio}")
        if self.cooldown < 0:
            raise ValueError(f"{self.name}: cooldown must be at least 0 samples, got {self.cooldown}")
        self.check(self.default)

    def check(self, value: Scalar) -> Scalar:
        """`value` in this parameter's own type; raises ValueError unless it may be set."""
        if self.kind == "choice":
            if value not in self.choices:
                raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, got {value}")
            return value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{self.name} must be a finite number, got {value}")
        if self.kind == "integer" and value != int(value):
            raise ValueError(f"{self.name} must be a whole number, got {value}")
        low, high = self.bounds
        if not low <= value <= high:
            raise ValueError(f"{self.name} must lie in [{low:g}, {high:g}], got {value:g}")
        return int(value) if self.kind == "integer" else value

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = self.min, self.max
        if self.kind == "integer":
            return (-WHOLE if low is None else math.ceil(low), WHOLE if high is None else math.floor(high))
        return (-LARGEST if low is None else low, LARGEST if high is None else high)

    def clamp(self, value: float) -> float:
        low, high = self.bounds
        value = min(max(value, low), high)
        return round(value) if self.kind == "integer" else value


@dataclass(frozen=True, slots=True)
class Pin:
    """A value held by a person, whatever the policies say."""

    value: Scalar
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A hyper-parameter with what makes its value: clamp(base x factors) unless pinned."""

    spec: HyperParameter
    base: Trajectory
    factors: Mapping[str, Factor] = field(default_factory=dict)  # by the policy's name
    pin: Pin | None = None

    def at(self, progress: Progress, batch_size: float) -> Scalar:
        if self.pin is not None:
            return self.pin.value
        value = self.base.at(progress)
        if isinstance(value, str):
            return value
        return self.spec.clamp(product([value, *(factor_at(f, progress, batch_size) for f in self.factors.values())]))


def factor_at(factor: Factor, progress: Progress, batch_size: float) -> float:
    return float(factor.at(batch_size) if isinstance(factor, Coupling) else factor.at(progress))


def folded(parameter: Parameter, name: str, progress: Progress) -> Parameter:
    """The parameter without the factor `name`, a policy's: what that is worth at `progress` joins the base."""
    worth = factor_at(parameter.factors[name], progress, 0)  # it does not depend on the batch
    factors = {n: f for n, f in parameter.factors.items() if n != name}
    return replace(parameter, base=multiplied(parameter.base, worth, progress), factors=factors)


def multiplied(base: Trajectory, by: float, progress: Progress) -> Trajectory:
    """The trajectory times a number; a curve that cannot be multiplied stands still where it is at `progress`."""
    moving = base.times(by) if isinstance(base, Curve) else None
    return moving or Constant(product([float(base.at(progress)), by]))


@dataclass(frozen=True, slots=True)
class Settings:
    """A version evaluated at one point of progress: what a step runs with."""

    values: Mapping[str, Scalar]  # `batch_size` is the plan's, after rounding
    plan: Plan


@dataclass(frozen=True, slots=True)
class Rollback:
    """Back to the checkpoint of `step`: model, optimizer, random states and data, once, on all ranks at one step."""

    number: int  # of the version that asked for it; those that follow carry it along
    step: int
    skip_data: bool = False  # go on with the samples after the point of the roll back


@dataclass(frozen=True, slots=True)
class Version:
    """A complete, numbered snapshot: whoever skips one has lost nothing.

    `checkpoints` counts the checkpoints asked for, so that a request inside a skipped version is still seen.
    `decay_from` is where the decay of schedules that wait for a word was asked for; the first wish counts.
    `rollback` stays in the versions that follow, for ranks that never see the one that asked for it; so does `group`,
    the number of the worker group that trains under it: ranks of an earlier group form that one first.
    """

    number: int
    term: int
    batching: Batching
    parameters: Mapping[str, Parameter]
    paused: bool = False
    stopped: bool = False
    checkpoints: int = 0
    decay_from: Progress | None = None
    rollback: Rollback | None = None  # the newest that was asked for
    group: int = 0

    def at(self, progress: Progress) -> Settings:
        batch = self.parameters[BATCH]
        plan = self.batching.plan(float(batch.at(progress, 0)), *batch.spec.bounds)
        values = {name: p.at(progress, plan.batch_size) for name, p in self.parameters.items() if name != BATCH}
        return Settings({BATCH: plan.batch_size, **values}, plan)

    def still(self, progress: Progress) -> bool:
        """Has every ramp and table come to its end? The values then stay as they are until another version."""
        return not any(
            isinstance(t, Curve) and t.moving(progress)
            for p in self.parameters.values()
            for t in (p.base, *p.factors.values())
        )

    def rising(self, progress: Progress) -> frozenset[str]:
        """Parameters that a ramp or a table is still raising: the learning rate during warm-up."""
        return frozenset(
            name
            for name, p in self.parameters.items()
            if any(isinstance(t, Curve) and t.rising(progress) for t in (p.base, *p.factors.values()))
        )

    def with_parameter(self, parameter: Parameter) -> "Version":
        return replace(self, parameters={**self.parameters, parameter.spec.name: parameter})


def initial_parameter(spec: HyperParameter) -> Parameter:
    return Parameter(spec, Constant(spec.default))
