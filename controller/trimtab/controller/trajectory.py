"""Trajectories: what a base or a factor is worth at a point of progress.

A worker evaluates them at every step, so one decision (a warm-up, a decay) needs one message however long it
lasts, stays exact however late that message is, and goes on while the controller is down.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, StrictStr

# Strict, because a union of lax types may give 1 for true and 5 for "5", depending on what was validated before
# (pydantic 2.14, inside a dataclass with defaults).
Scalar = StrictInt | StrictFloat | StrictStr
Unit = Literal["samples", "steps"]
LrRule = Literal["none", "linear", "sqrt", "adascale"]
LARGEST = sys.float_info.max  # products stop here, so that no value is ever infinite
LATEST = 2**63 - 1  # the last mark of progress
MOST_MARKS = 1000  # of a table: it stands in every version as long as it is in force


def product(numbers: Iterable[float]) -> float:
    """The product of finite numbers, which stays finite."""
    result = 1.0
    for number in numbers:
        result = min(max(result * number, -LARGEST), LARGEST)
    return result


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. One step is one optimizer update, whatever the accumulation."""

    steps: int = 0
    samples: int = 0  # consumed by all ranks together

    def __post_init__(self) -> None:
        if self.steps < 0 or self.samples < 0:
            raise ValueError(f"progress cannot be negative, got {self}")

    def in_unit(self, unit: Unit) -> int:
        return self.samples if unit == "samples" else self.steps


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value at every point; the only trajectory that a choice (a string) can have."""

    value: Scalar
    shape: Literal["constant"] = "constant"

    def __post_init__(self) -> None:
        if isinstance(self.value, float | int) and not math.isfinite(self.value):
            raise ValueError(f"value must be finite, got {self.value}")

    def at(self, progress: Progress) -> Scalar:  # noqa: ARG002
        return self.value

    def __str__(self) -> str:
        return self.value if isinstance(self.value, str) else f"{self.value:.4g}"


@dataclass(frozen=True, slots=True)
class Ramp:
    """From `start` to `end` between two marks of progress; constant before and after.

    `cosine` is half a period (Loshchilov & Hutter 2017), `sqrt` is 1 - sqrt(x) (Hägele et al. 2024), `exponential`
    is geometric and needs both ends above zero.
    """

    start: float
    end: float
    begin: int
    until: int
    unit: Unit = "samples"
    shape: Literal["linear", "cosine", "sqrt", "exponential"] = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"start and end must be finite, got {self.start} and {self.end}")
        if not 0 <= self.begin < self.until <= LATEST:
            raise ValueError(f"a ramp needs 0 <= begin < until <= {LATEST}, got {self.begin} and {self.until}")
        if self.shape == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError(f"an exponential ramp needs ends above zero, got {self.start} and {self.end}")

    def at(self, progress: Progress) -> float:
        x = (progress.in_unit(self.unit) - self.begin) / (self.until - self.begin)
        if x <= 0:
            return self.start
        if x >= 1:
            return self.end
        low, high = sorted((self.start, self.end))
        return min(max(self._between(x), low), high)  # rounding may step over an end

    def _between(self, x: float) -> float:
        if self.shape == "exponential":
            return math.pow(self.start, 1 - x) * math.pow(self.end, x)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        elif self.shape == "sqrt":
            x = math.sqrt(x)
        return self.start * (1 - x) + self.end * x

    def moving(self, progress: Progress) -> bool:
        return progress.in_unit(self.unit) < self.until

    def rising(self, progress: Progress) -> bool:
        return self.end > self.start and self.moving(progress)

    def times(self, worth: float) -> "Ramp | None":
        """`worth` times itself; None if that is not of this shape."""
        start, end = product([self.start, worth]), product([self.end, worth])
        if self.shape == "exponential" and min(start, end) <= 0:
            return None
        return replace(self, start=start, end=end)

    def __str__(self) -> str:
        return f"{self.shape} {self.start:.4g}→{self.end:.4g} until {self.until:,} {self.unit}"


@dataclass(frozen=True, slots=True)
class Table:
    """Values at marks of progress; constant before the first and after the last.

    Between two marks it holds the value of the earlier (`step`) or goes straight to that of the later (`linear`).
    """

    marks: tuple[int, ...]
    values: tuple[float, ...]
    unit: Unit = "samples"
    interpolation: Literal["step", "linear"] = "linear"
    shape: Literal["table"] = "table"

    def __post_init__(self) -> None:
        if not 2 <= len(self.marks) <= MOST_MARKS:
            raise ValueError(f"a table needs 2 to {MOST_MARKS:,} marks, got {len(self.marks):,}")
        if len(self.values) != len(self.marks):
            raise ValueError(f"a table needs a value for each of its {len(self.marks)} marks, got {len(self.values)}")
        if not (self.marks[0] >= 0 and self.marks[-1] <= LATEST and all(a < b for a, b in pairwise(self.marks))):
            raise ValueError(f"the marks of a table must rise within [0, {LATEST}], got {self.marks}")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"the values of a table must be finite, got {self.values}")

    def at(self, progress: Progress) -> float:
        mark = progress.in_unit(self.unit)
        later = bisect_right(self.marks, mark)
        if later == 0:
            return self.values[0]
        before = self.values[later - 1]
        if later == len(self.marks) or self.interpolation == "step":
            return before
        after, begin = self.values[later], self.marks[later - 1]
        x = (mark - begin) / (self.marks[later] - begin)
        low, high = sorted((before, after))
        return min(max(before * (1 - x) + after * x, low), high)  # rounding may step over an end

    def moving(self, progress: Progress) -> bool:
        return progress.in_unit(self.unit) < self.marks[-1]

    def rising(self, progress: Progress) -> bool:
        """Is its next change one upwards?"""
        later = max(1, bisect_right(self.marks, progress.in_unit(self.unit)))
        return next((b > a for a, b in pairwise(self.values[later - 1 :]) if a != b), False)

    def times(self, worth: float) -> "Table":
        """`worth` times itself."""
        return replace(self, values=tuple(product([value, worth]) for value in self.values))

    def __str__(self) -> str:
        between = "→…→" if len(self.values) > 2 else "→"
        ends = f"{self.values[0]:.4g}{between}{self.values[-1]:.4g}"
        return f"{self.interpolation} table {ends} until {self.marks[-1]:,} {self.unit}"


Curve = Ramp | Table  # what moves with progress
Trajectory = Annotated[Constant | Ramp | Table, Field(discriminator="shape")]


@dataclass(frozen=True, slots=True)
class Coupling:
    """The learning rate's factor that follows the global batch, relative to the *base* batch.

    With κ = batch / base_batch the gain is `linear` κ (Goyal et al. 2017), `sqrt` √κ, `adascale`
    (φ/B + 1)/(φ/(κB) + 1) (Johnson et al., ICML 2020) with φ the gradient noise scale [samples]. Without an estimate of
    φ `adascale` falls back to √κ, which lies between its two limits. The factor is scale x gain ^ exponent; `scale`
    holds what changes of the batch under another rule, or under none, have left behind.
    """

    rule: LrRule
    base_batch: float
    noise_scale: float | None = None
    exponent: float = 1.0
    scale: float = 1.0
    shape: Literal["coupling"] = "coupling"

    def __post_init__(self) -> None:
        if not 0 < self.base_batch < math.inf:
            raise ValueError(f"base_batch must be finite and above zero, got {self.base_batch}")
        if self.noise_scale is not None and not (0 < self.noise_scale < math.inf):
            raise ValueError(f"noise_scale must be finite and above zero, got {self.noise_scale}")
        if not (math.isfinite(self.exponent) and 0 < self.scale < math.inf):
            raise ValueError(f"exponent must be finite and scale above zero, got {self.exponent} and {self.scale}")

    def at(self, batch_size: float) -> float:
        return product([self.scale, self._gain(batch_size)])

    def _gain(self, batch_size: float) -> float:
        return math.pow(self._of_rule(batch_size), self.exponent)

    def _of_rule(self, batch_size: float) -> float:
        kappa = batch_size / self.base_batch
        if self.rule == "none":
            return 1.0
        if self.rule == "linear":
            return kappa
        if self.rule == "sqrt" or self.noise_scale is None:
            return math.sqrt(kappa)
        return (self.noise_scale / self.base_batch + 1) / (self.noise_scale / batch_size + 1)

    def rebased(self, before: float, after: float) -> "Coupling":
        """The same rule, such that going from batch `before` to `after` leaves the factor."""
        return self._scaled(self._gain(before) / self._gain(after))

    def under(self, rule: LrRule, batch_size: float) -> "Coupling":
        """Another rule from here on: at `batch_size` the factor is what it was."""
        other = replace(self, rule=rule)
        return other._scaled(self._gain(batch_size) / other._gain(batch_size))

    def _scaled(self, by: float) -> "Coupling":
        return replace(self, scale=max(product([self.scale, by]), sys.float_info.min))

    def __str__(self) -> str:
        text = f"{self.rule} of batch / {self.base_batch:,.0f}"
        return text if self.scale == 1 else f"{text} × {self.scale:.4g}"


Factor = Annotated[Constant | Ramp | Table | Coupling, Field(discriminator="shape")]
