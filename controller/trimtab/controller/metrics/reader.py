"""Reads a run's metrics while they are being written."""

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trimtab.controller.metrics.block import Block
from trimtab.controller.metrics.index import Index
from trimtab.controller.metrics.points import Points
from trimtab.controller.metrics.series import Axis, Series, bucketed
from trimtab.controller.records import Floats, Ints

_PAGE = 4096  # rows turned into Python objects at once


class Row(NamedTuple):
    """One step of a table."""

    step: int
    samples: int
    time: float  # unix seconds
    values: tuple[float, ...]  # one a key, NaN where the step has none


class MetricReader:
    """Opens the file `path` of a `MetricWriter`, read-only. For one thread; it sees what `refresh` has found.

    Raises FileNotFoundError as long as nothing has been written.
    """

    def __init__(self, path: str | Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._index = Index()
        self._words: Floats = np.empty(0, np.float32)
        self.refresh()

    def refresh(self) -> bool:
        """Take in what has been written since; whether there was anything."""
        before = self._index.end
        self._index.extend(self._fd)
        end = self._index.end
        if end > before:
            # The old map goes when no array is left that looks into it.
            self._words = np.frombuffer(mmap.mmap(self._fd, end, access=mmap.ACCESS_READ), "<f4")
        return end > before

    def keys(self) -> tuple[str, ...]:
        """The metrics that have points, sorted."""
        return tuple(sorted({key for layout in self._index.layouts for key in layout}))

    def query(
        self,
        keys: Sequence[str],
        x: Axis = "step",
        start: float | None = None,
        end: float | None = None,
        max_points: int = 1000,
    ) -> dict[str, Series]:
        """Each key's points with start <= x <= end, in at most `max_points` buckets; an unknown key has none."""
        if max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {max_points}")
        found: dict[str, Series] = {}
        known: dict[tuple[int, ...], Points] = {}
        for key in keys:
            points, columns = self._points(key, x, known)
            low = 0 if start is None else int(np.searchsorted(points.x, start, "left"))
            high = len(points.x) if end is None else int(np.searchsorted(points.x, end, "right"))
            found[key] = bucketed(points.x[low:high], points.values(columns)[low:high], max_points)
        return found

    def table(self, keys: Sequence[str]) -> Iterator[Row]:
        """Every step that has a point of one of `keys`, ascending; of a step that was written twice, the later."""
        known: dict[tuple[int, ...], Points] = {}
        parts = [self._points(key, "step", known) for key in keys]
        steps = np.unique(np.concatenate([points.x for points in known.values()])) if known else np.empty(0, np.int64)
        samples, times = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.float64)
        for points in known.values():
            at = np.searchsorted(steps, points.x)
            samples[at], times[at] = points.samples(), points.times()
        values = np.full((len(steps), len(keys)), np.nan, np.float32)
        for column, (points, columns) in enumerate(parts):
            values[np.searchsorted(steps, points.x), column] = points.values(columns)
        for low in range(0, len(steps), _PAGE):
            page = slice(low, low + _PAGE)
            yield from map(
                Row,
                steps[page].tolist(),
                samples[page].tolist(),
                times[page].tolist(),
                map(tuple, values[page].tolist()),
            )

    def block(self, key: str) -> Block | None:
        """All points of `key` by step; None if it has none."""
        points, columns = self._points(key, "step", {})
        if not len(points.x):
            return None
        return Block(points.steps(), points.samples(), points.times(), {key: points.values(columns)})

    def close(self) -> None:
        """Release the file; closing twice does no harm."""
        self._words = np.empty(0, np.float32)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _points(self, key: str, axis: Axis, known: dict[tuple[int, ...], Points]) -> tuple[Points, Ints]:
        """The points of `key`, and its place in each layout; keys that were written together share their points."""
        columns = np.array([layout.index(key) if key in layout else -1 for layout in self._index.layouts], np.int64)
        layouts = tuple(np.flatnonzero(columns >= 0).tolist())
        if layouts not in known:
            widths = np.array([len(layout) for layout in self._index.layouts], np.int64)
            chunks = self._index.chunks
            mine = chunks[columns[chunks["layout"]] >= 0]
            known[layouts] = Points(self._words, mine, widths[mine["layout"]], axis)
        return known[layouts], columns
