"""A metric as a chart shows it: bucketed, without losing a spike."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.records import Floats, Ints, Times

Axis = Literal["step", "samples", "time"]


@dataclass(frozen=True, slots=True)
class Series:
    """Buckets of consecutive points, each (buckets,).

    `min` and `max` are exact, so no spike disappears. NaN points count for none of the four values; a bucket of
    nothing else is NaN.
    """

    x: Ints | Times  # of the bucket's last point: a step, samples, or unix seconds
    last: Floats
    min: Floats
    max: Floats
    mean: Floats

    def __len__(self) -> int:
        return len(self.x)


def bucketed(x: Ints | Times, values: Floats, max_points: int) -> Series:
    """At most `max_points` buckets of as many points each, give or take one; x is ascending, both are (n,)."""
    n = len(x)
    buckets = min(n, max_points)
    if buckets == n:
        return Series(x, values, values, values, values)
    starts: NDArray[np.int64] = np.arange(buckets) * n // buckets
    ends = np.append(starts[1:], n)
    missing = np.isnan(values)
    newest = np.maximum.reduceat(np.where(missing, -1, np.arange(n)), starts)
    with np.errstate(invalid="ignore", over="ignore"):  # all NaN, or infinities of both signs: NaN is the mean
        total = np.add.reduceat(np.where(missing, 0.0, values.astype(np.float64)), starts)
        mean = total / (ends - starts - np.add.reduceat(missing, starts, dtype=np.int64))
    return Series(
        x=x[ends - 1],
        last=np.where(newest < 0, np.float32(np.nan), values[newest]),
        min=np.fmin.reduceat(values, starts),
        max=np.fmax.reduceat(values, starts),
        mean=mean.astype(np.float32),
    )
