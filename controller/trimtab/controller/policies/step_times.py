"""Step times: the readings that tell one, and the line through those of several batches."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trimtab.controller.hyperparameters import BATCH
from trimtab.controller.observation import Observation

__all__ = ["IN_FORCE", "STEP_TIME", "Line", "fit", "fit_worlds", "gain", "timed", "usual"]

STEP_TIME = "step_time"
IN_FORCE = f"hp/{BATCH}"  # the batch that each step ran with
SHORTEST, LONGEST = 1e-9, 1e9  # step times outside cannot be [s]
LARGEST = 1e12  # batch beyond which a reading cannot be one [samples]


class Line(NamedTuple):
    """The step time a + c B of a batch of B samples."""

    a: float  # [s]
    c: float  # [s/sample]

    def time(self, batch: float) -> float:
        return self.a + self.c * batch

    def best(self, scale: float) -> float:
        """The batch of the largest goodput at that noise scale; infinite where a larger one takes no longer."""
        return math.sqrt(self.a) * math.sqrt(scale / self.c) if self.c > 0 else math.inf

    def gain(self, batch: float, to: float, scale: float) -> float:
        """The goodput of `to` over that of `batch`: throughput B / (a + c B) x efficiency 1 / (scale + B)."""
        return gain(self, batch, self, to, scale)

    def __str__(self) -> str:
        return f"{self.a * 1e3:.3g} ms + {self.c * 1e6:.3g} µs a sample"


def gain(line: Line, batch: float, other: Line, to: float, scale: float) -> float:
    """The goodput of the batch `to` where steps take as `other` says, over that of `batch` where `line` does."""
    faster = (to / batch) * line.time(batch) / other.time(to)
    return faster * ((scale + batch) / (scale + to))


def timed(observation: Observation) -> tuple[int, float] | None:
    """The batch that all steps since the last observation ran with [samples], and their mean time [s]."""
    time, in_force = observation.last(STEP_TIME), observation.last(IN_FORCE)
    if time is None or in_force is None or in_force.std_error:
        return None
    if not (SHORTEST <= time.value <= LONGEST and 1 <= in_force.value <= LARGEST):
        return None
    return round(in_force.value), time.value


def usual(times: Sequence[float]) -> float:
    """The lower quartile: what disturbs a step makes it longer, and one such step raises the mean that a reading is."""
    return sorted(times)[len(times) // 4]


class Moments(NamedTuple):
    """What a line is fitted from: the step times of one group of workers, weighted by 1 / time^2."""

    batch: float  # mean [samples]
    time: float  # mean [s]
    spread: float
    product: float

    @classmethod
    def of(cls, times: Mapping[int, float]) -> "Moments":
        weights = [1 / time**2 for time in times.values()]
        whole = sum(weights)
        batch, time = (sum(w * x for w, x in zip(weights, xs, strict=True)) / whole for xs in (times, times.values()))
        spread = sum(w * (b - batch) ** 2 for w, b in zip(weights, times, strict=True))
        product = sum(w * (b - batch) * t for w, (b, t) in zip(weights, times.items(), strict=True))
        return cls(batch, time, spread, product)


def fit(times: Mapping[int, float]) -> Line:
    """The line through the step times of two batches or more, by least squares of relative errors, a and c >= 0."""
    moments = Moments.of(times)
    return _through(times, moments, moments.product / moments.spread)


def fit_worlds(worlds: Mapping[int, Mapping[int, float]]) -> dict[int, Line]:
    """The line a_R + c B / R of each world size R, from its step times by batch.

    A rank's samples cost the same in all of them, so c is one and is told from the worlds with two batches or more;
    the constant part, in which the network is, is each one's own. Without a second batch anywhere there are no lines.
    """
    moments = {ranks: Moments.of(times) for ranks, times in worlds.items() if times}
    spread = sum(one.spread / ranks**2 for ranks, one in moments.items())
    if not spread:
        return {}
    c = sum(one.product / ranks for ranks, one in moments.items()) / spread
    return {ranks: _through(worlds[ranks], one, c / ranks) for ranks, one in moments.items()}


def _through(times: Mapping[int, float], moments: Moments, c: float) -> Line:
    """The line of that slope, or the nearest that is nowhere below zero."""
    if c <= 0:
        return Line(moments.time, 0.0)
    if moments.time <= c * moments.batch:
        return Line(0.0, sum(b / t for b, t in times.items()) / sum((b / t) ** 2 for b, t in times.items()))
    return Line(moments.time - c * moments.batch, c)
