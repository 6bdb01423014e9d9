"""What policies see, and what they answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from trimtab.controller.batching import Plan
from trimtab.controller.noise import Noise
from trimtab.controller.trajectory import Factor, LrRule, Progress, Scalar, Trajectory, Unit


@dataclass(frozen=True, slots=True)
class Horizon:
    """Where a run ends; epochs are turned into samples once the data set's size is known."""

    amount: int
    unit: Unit = "samples"

    def __post_init__(self) -> None:
        if self.amount < 1:
            raise ValueError(f"a horizon must be at least 1, got {self.amount} {self.unit}")

    def fraction(self, progress: Progress) -> float:
        return min(1.0, progress.in_unit(self.unit) / self.amount)


@dataclass(frozen=True, slots=True)
class Reading:
    """One finite value of a metric, reduced over ranks. Metrics of every step come as one mean reading a tick."""

    step: int
    samples: int
    value: float
    std_error: float | None = None  # of the mean, over `count` values
    count: int = 1


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a run at one control tick: all that a policy may know."""

    progress: Progress
    values: Mapping[str, Scalar]  # in force at `progress`
    plan: Plan
    rising: frozenset[str] = frozenset()  # parameters that a ramp is still raising
    horizon: Horizon | None = None
    metrics: Mapping[str, tuple[Reading, ...]] = field(default_factory=dict)  # new since the last observation
    noise: Noise | None = None  # None: nothing measured yet

    def last(self, metric: str) -> Reading | None:
        readings = self.metrics.get(metric, ())
        return readings[-1] if readings else None


@dataclass(frozen=True, slots=True)
class Set:
    """Set the base of a parameter, which the policy must own.

    A constant is the value wanted, as `Observation.values` shows it: the engine divides it by the factors that stand
    still (another policy's, the coupling to the batch), so that none is applied twice. A factor that a ramp is still
    moving goes on from there: what is set during a warm-up is reached at its end. A ramp is the base itself.

    `lr_rule` overrides the run's rule for this change of the batch; "none" leaves the learning rate as it is.
    """

    param: str
    to: Trajectory
    reason: str
    lr_rule: LrRule | None = None
    action: Literal["set"] = "set"


@dataclass(frozen=True, slots=True)
class Scale:
    """Set the policy's own factor of a parameter."""

    param: str
    by: Factor
    reason: str
    lr_rule: LrRule | None = None
    action: Literal["scale"] = "scale"


@dataclass(frozen=True, slots=True)
class Command:
    """Ask for something to be done to the run at one step."""

    command: Literal["pause", "resume", "stop", "checkpoint"]
    reason: str
    action: Literal["command"] = "command"


Proposal = Annotated[Set | Scale | Command, Field(discriminator="action")]
