"""Reads a run's metrics while they are being written."""

import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.metrics.block import HIGH, LAST, LOW, Block, key_of, part
from trimtab.controller.metrics.index import NONE, Chunks, Index
from trimtab.controller.metrics.points import Points, Rows
from trimtab.controller.metrics.pyramid import STRIDES
from trimtab.controller.metrics.series import Axis, Series, bucketed
from trimtab.controller.records import Floats, Ints, Times

Mask = NDArray[np.bool_]
PAGE_ROWS = 20_000  # about so many rows of a table are in memory at once


class Row(NamedTuple):
    """One step of a table."""

    step: int
    samples: int
    time: float  # unix seconds
    values: tuple[float, ...]  # one a column, NaN where the step has none


class Window(NamedTuple):
    """A part of an axis, both ends in it, and how many buckets of it are wanted."""

    axis: Axis = "step"
    start: float = -np.inf
    end: float = np.inf
    max_points: float = np.inf  # infinite: every row, as it was appended


EVERYTHING = Window()


class MetricReader:
    """Opens the file `path` of a `MetricWriter`, read-only. For one thread; it sees what `refresh` has found.

    Raises FileNotFoundError as long as nothing has been written.
    """

    def __init__(self, path: str | Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._index = Index()
        self._words: Floats = np.empty(0, np.float32)
        self._spans: dict[Axis, tuple[Times, Times]] = {}
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

    @property
    def end(self) -> int:
        """Where the intact file ends [bytes]."""
        return self._index.end

    @property
    def epoch(self) -> int:
        """The newest writer's."""
        return self._index.epoch

    @property
    def names(self) -> dict[int, str]:
        """The columns by their numbers."""
        return self._index.names

    @property
    def summarised(self) -> int:
        """The highest step in a summary."""
        return max((segment.last for segment in self._index.segments.values()), default=0)

    def keys(self) -> tuple[str, ...]:
        """The metrics that have points, sorted."""
        return tuple(sorted({key_of(column) for layout in self._index.layouts for column in layout}))

    def columns(self, keys: Sequence[str]) -> list[str]:
        """The columns of these metrics: where ranks differed, the lowest and the highest rank's too."""
        chunks = self._index.chunks
        appended = np.unique(chunks["layout"][chunks["level"] == 0])  # summaries always hold both
        stored = {column for number in appended.tolist() for column in self._index.layouts[number]}
        return [column for key in keys for column in (key, part(key, LOW), part(key, HIGH)) if column in {key} | stored]

    def query(
        self,
        keys: Sequence[str],
        x: Axis = "step",
        start: float | None = None,
        end: float | None = None,
        max_points: int = 1000,
    ) -> dict[str, Series]:
        """Each key's points with start <= x <= end, in at most `max_points` buckets; an unknown key has none.

        Where the window holds many more points they are read from the summaries that lie in it whole.
        """
        if max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {max_points}")
        window = Window(x, -np.inf if start is None else start, np.inf if end is None else end, max_points)
        return {key: bucketed(found, max_points, weights) for key, (found, weights) in self.points(keys, window)}

    def points(self, keys: Sequence[str], window: Window) -> Iterator[tuple[str, tuple[Series, Ints]]]:
        """Each key's points, or summaries of them, in the window, with the number of points each one stands for."""
        known: dict[tuple[int, ...], Points] = {}
        for key in keys:
            points = self._points(key, window, known)
            low = int(np.searchsorted(points.x, window.start, "left"))
            high = int(np.searchsorted(points.x, window.end, "right"))
            parts = (key, part(key, LAST), part(key, LOW), part(key, HIGH))
            mean, last, least, most = (self._values(points, column)[low:high] for column in parts)
            yield key, (Series(points.x[low:high], last, least, most, mean), points.weights()[low:high])

    def began(self) -> float:
        """When the first point was measured [unix s]."""
        return float(self._index.chunks["time"].min(initial=np.inf))

    def span(self, keys: Sequence[str], axis: Axis) -> tuple[float, float] | None:
        """The lowest and the highest x of these metrics, void points among them; None if they have none."""
        has = self._chunks_of(*keys) & (self._index.chunks["level"] == 0)
        if not has.any():
            return None
        low, high = self._spans_of(has, axis)
        return float(low[has].min()), float(high[has].max())

    def table(self, columns: Sequence[str], start: float = -np.inf) -> Iterator[Row]:
        """Every step from `start` on that has a point in one of `columns`, ascending; of a step that was written twice,
        the later."""
        has = self._chunks_of(*columns) & (self._index.chunks["level"] == 0)
        low = self._spans_of(has, "step")[0][has]
        order = np.argsort(low)
        rows = np.cumsum(self._index.chunks["rows"][has][order])
        pages = np.searchsorted(rows, np.arange(PAGE_ROWS, rows[-1] if len(rows) else 0, PAGE_ROWS))
        cuts = np.unique(low[order][pages])
        for first, end in pairwise([start, *cuts[cuts > start].tolist(), np.inf]):
            yield from self._page(columns, first, end)

    def _page(self, columns: Sequence[str], start: float, end: float) -> Iterator[Row]:
        """The rows at start <= step < end."""
        known: dict[tuple[int, ...], Points] = {}
        parts = [self._points(column, Window("step", start, end), known) for column in columns]
        steps = np.unique(np.concatenate([points.x for points in known.values()]))
        steps = steps[(steps >= start) & (steps < end)]
        samples, times = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.float64)
        values = np.full((len(steps), len(columns)), np.nan, np.float32)
        for points in known.values():
            rows, at = _places(points.x, steps)
            samples[at], times[at] = points.samples()[rows], points.times()[rows]
        for number, (column, points) in enumerate(zip(columns, parts, strict=True)):
            rows, at = _places(points.x, steps)
            values[at, number] = self._values(points, column)[rows]
        yield from map(Row, steps.tolist(), samples.tolist(), times.tolist(), map(tuple, values.tolist()))

    def block(self, column: str) -> Block | None:
        """All points of a column by step; None if it has none."""
        points = self._points(column, EVERYTHING, {})
        if not len(points.x):
            return None
        return Block(points.steps(), points.samples(), points.times(), {column: self._values(points, column)})

    def uncovered(self) -> dict[tuple[str, ...], Block]:
        """The rows that no summary covers, by their metrics."""
        found = {}
        for keys, numbers in self._index.uncovered.items():
            chunks = self._index.chunks[numbers]
            points = Points(Rows(self._words, chunks, self._widths(chunks)), "step")
            columns = {key: self._values(points, key) for key in keys}
            ends = {
                key: (self._values(points, part(key, LOW)), self._values(points, part(key, HIGH)))
                for key in keys
                if len(self.columns([key])) > 1
            }
            found[keys] = Block(points.steps(), points.samples(), points.times(), columns, ends)
        return found

    def close(self) -> None:
        """Release the file; closing twice does no harm."""
        self._words = np.empty(0, np.float32)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _points(self, column: str, window: Window, known: dict[tuple[int, ...], Points]) -> Points:
        """The points of a column; those that were written together share them."""
        layouts = tuple(number for number, place in enumerate(self._places(column)) if place != NONE)
        if layouts not in known:
            chunks = self._chosen(self._chunks_of(column), window)
            known[layouts] = Points(Rows(self._words, chunks, self._widths(chunks)), window.axis)
        return known[layouts]

    def _chosen(self, has: Mask, window: Window) -> Chunks:
        """Of the chunks that `has` marks those that make up the window: as they were appended, or summaries that lie in
        it whole where they are at least twice as many as the buckets that are wanted."""
        chunks = self._index.chunks
        appended = has & (chunks["level"] == 0)
        if window == EVERYTHING:
            return _of(chunks, appended)
        low, high = self._spans_of(appended, window.axis)
        overlapping = appended & (low <= window.end) & (high >= window.start)
        rows = int(chunks["rows"][overlapping].sum())
        level = int(np.searchsorted(STRIDES, rows / (2 * window.max_points), "right"))
        if not level:
            return _of(chunks, overlapping)
        whole = np.ones(self._index.summaries + 1, bool)  # by segment; the last is NONE
        whole[NONE] = False
        whole[chunks["segment"][appended & ~((low >= window.start) & (high <= window.end))]] = False
        summed = whole[chunks["segment"]]
        return _of(chunks, (overlapping & ~summed) | (has & summed & (chunks["level"] == level)))

    def _spans_of(self, wanted: Mask, axis: Axis) -> tuple[Times, Times]:
        """Each chunk's lowest and highest x, where it is wanted; what has been looked up is kept."""
        chunks = self._index.chunks
        low, high = self._spans.get(axis, (np.empty(0), np.empty(0)))
        unknown = np.full(len(chunks) - len(low), np.nan)
        low, high = self._spans[axis] = np.append(low, unknown), np.append(high, unknown)
        missing = np.flatnonzero(wanted & np.isnan(low))
        if len(missing):
            rows = Rows(self._words, chunks[missing], self._widths(chunks[missing]))
            low[missing], high[missing] = rows.spans(axis)
        return low, high

    def _chunks_of(self, *columns: str) -> Mask:
        """Which chunks have one of these columns."""
        has = np.zeros(len(self._index.layouts), bool)
        for column in columns:
            has |= self._places(column) != NONE
        marked: Mask = has[self._index.chunks["layout"]]
        return marked

    def _widths(self, chunks: Chunks) -> Ints:
        """How many columns each chunk has."""
        widths: Ints = np.array([len(layout) for layout in self._index.layouts], np.int64)[chunks["layout"]]
        return widths

    def _values(self, points: Points, column: str) -> Floats:
        return points.values(self._places(column))

    def _places(self, column: str) -> Ints:
        """Where in each layout a column stands, or its metric's where it equals that; NONE: neither."""
        layouts, key = self._index.layouts, key_of(column)
        places = (
            layout.index(column) if column in layout else layout.index(key) if key in layout else NONE
            for layout in layouts
        )
        return np.fromiter(places, np.int64, len(layouts))


def _of(chunks: Chunks, mask: Mask) -> Chunks:
    chosen: Chunks = chunks[mask]
    return chosen


def _places(some: Ints | Times, of: Ints) -> tuple[Ints, Ints]:
    """Which of `some` steps are among the steps `of`, and where."""
    at = np.minimum(np.searchsorted(of, some), len(of) - 1)
    rows = np.flatnonzero(of[at] == some) if len(of) else np.empty(0, np.int64)
    return rows, at[rows]
