"""A metric as a chart shows it: bucketed, without losing a spike."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trimtab.controller.records import Floats, Ints, Times

Axis = Literal["step", "samples", "time"]


@dataclass(frozen=True, slots=True)
class Series:
    """Buckets of consecutive points, each (buckets,).

    `min` and `max` are exact over all points of all ranks, so no spike disappears; `last` and `mean` are those of the
    ranks' mean. NaN points count for none of the four values; a bucket of nothing else is NaN.
    """

    x: Ints | Times  # of the bucket's last point: a step, samples, or unix seconds
    last: Floats
    min: Floats
    max: Floats
    mean: Floats

    def __len__(self) -> int:
        return len(self.x)


def series(x: Ints | Times, values: Floats) -> Series:
    """Points of one rank, each a bucket."""
    return Series(x, values, values, values, values)


def bucketed(of: Series, max_points: int, weights: Ints | None = None) -> Series:
    """At most `max_points` buckets of as many points each, give or take one.

    `weights` says how many points each row of `of` stands for; one, if it is not given.
    """
    n = len(of)
    if n <= max_points:
        return of
    if weights is None:
        return merged(of, np.arange(max_points) * n // max_points)
    before = np.cumsum(weights) - weights
    total = int(before[-1] + weights[-1])
    starts = np.searchsorted(before, np.arange(max_points) * total // max_points)
    return merged(of, np.unique(np.minimum(starts, n - 1)), weights)


def merged(of: Series, starts: Ints, weights: Ints | None = None) -> Series:
    """Buckets that begin at the rows `starts`, which are ascending, the first of them 0."""
    n = len(of)
    ends = np.append(starts[1:], n)
    newest = np.maximum.reduceat(np.where(np.isnan(of.last), -1, np.arange(n)), starts)
    weight = np.where(np.isnan(of.mean), 0, 1 if weights is None else weights)
    with np.errstate(invalid="ignore", over="ignore"):  # all NaN, or infinities of both signs: NaN is the mean
        total = np.add.reduceat(np.where(weight == 0, 0.0, of.mean.astype(np.float64) * weight), starts)
        mean = total / np.add.reduceat(weight, starts)
    return Series(
        x=of.x[ends - 1],
        last=np.where(newest < 0, np.float32(np.nan), of.last[newest]),
        min=np.fmin.reduceat(of.min, starts),
        max=np.fmax.reduceat(of.max, starts),
        mean=mean.astype(np.float32),
    )
