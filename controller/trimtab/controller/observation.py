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
    dataset_size: int | None = None  # [samples]; None: not known
    decay_from: Progress | None = None  # where it was asked for that the decay begin
    metrics: Mapping[str, tuple[Reading, ...]] = field(default_factory=dict)  # new since the last observation
    nonfinite: Mapping[str, int] = field(default_factory=dict)  # values that were no reading, of the metrics read
    noise: Noise | None = None  # None: nothing measured yet
    checkpoints: tuple[int, ...] = ()  # steps that a roll back can go to, oldest first
    rank_times: tuple[float, ...] = ()  # (ranks,) median of each one's own time a step [s]; (): not known, or not read

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
    """Ask for something to be done to the run at one step.

    `decay` asks the schedules that wait for a word (`wsd`) to begin their decay now; the first wish counts.
    `rollback` asks for the checkpoint of `step` (None: the newest); with `skip_data` training goes on from there with
    the samples that come after the point of the roll back.
    """

    command: Literal["pause", "resume", "stop", "checkpoint", "decay", "rollback"]
    reason: str
    step: int | None = None
    skip_data: bool = False
    action: Literal["command"] = "command"


@dataclass(frozen=True, slots=True)
class Notice:
    """Tell people something; nothing is changed."""

    reason: str
    rank: int | None = None  # the one that it is about; None: the run
    action: Literal["notice"] = "notice"


def topic(proposal: "Proposal") -> str:
    """What is asked for: a parameter, a command, a notice."""
    match proposal:
        case Set() | Scale():
            return proposal.param
        case Command():
            return proposal.command
        case Notice():
            return "a notice" if proposal.rank is None else f"a notice of rank {proposal.rank}"


Proposal = Annotated[Set | Scale | Command | Notice, Field(discriminator="action")]
