"""The points of some chunks as columns, all chunks at once."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.metrics.index import Chunks
from trimtab.controller.metrics.pyramid import STRIDES
from trimtab.controller.metrics.series import Axis
from trimtab.controller.records import Floats, Ints, Times

Number = TypeVar("Number", np.int64, np.float64)
_STRIDES = np.array([1, *STRIDES])  # by level


class Rows:
    """The n rows of `chunks`, void ones too, as they stand in the file, `words`, of float32."""

    def __init__(self, words: Floats, chunks: Chunks, widths: Ints) -> None:
        self.chunks = chunks
        self._words = words
        self._rows = chunks["rows"]
        self._first = np.cumsum(self._rows) - self._rows  # a chunk's first row
        self._row = np.arange(self._rows.sum())
        self._rest = chunks["at"] + self._rows * (1 + widths)  # where a chunk's rests begin [words]; widths (chunks,)

    def along(self, axis: Axis) -> Ints | Times:
        return self.times() if axis == "time" else self.samples() if axis == "samples" else self.steps()

    def steps(self) -> Ints:
        return self._line("step", self._rest * 4)

    def samples(self) -> Ints:
        return self._line("samples", self._rest * 4 + self._rows * self.chunks["step_width"])

    def times(self) -> Times:
        times: Times = self.spread(self.chunks["time"]) + self.column(self.chunks["at"])
        return times

    def values(self, columns: Ints) -> Floats:
        """(n,) of the column whose place in each layout is `columns`, (layouts,)."""
        return self.column(self.chunks["at"] + self._rows * (1 + columns[self.chunks["layout"]]))

    def weights(self) -> Ints:
        """How many rows, as they were appended, each one stands for: at a segment's end fewer than its level says."""
        stride = _STRIDES[self.chunks["level"]]
        weights = self.spread(stride)
        weights[self._first + self._rows - 1] = self.chunks["stands_for"] - stride * (self._rows - 1)
        return weights

    def spans(self, axis: Axis) -> tuple[Times, Times]:
        """Each chunk's lowest and highest x."""
        x = self.along(axis).astype(np.float64)
        return np.minimum.reduceat(x, self._first), np.maximum.reduceat(x, self._first)

    def spread(self, of_chunks: NDArray[Number]) -> NDArray[Number]:
        """(chunks,) to (rows,)"""
        return np.repeat(of_chunks, self._rows)

    def column(self, at: Ints) -> Floats:
        """(n,) words; `at` is where each chunk's begin."""
        found: Floats = self._words[self.spread(at - self._first) + self._row]
        return found

    def _line(self, name: str, rest: Ints) -> Ints:
        """Steps or samples; `rest` is where each chunk's deviations from the line begin [bytes]."""
        stride = self.chunks[f"{name}_stride"]
        line: Ints = self.spread(self.chunks[name] - stride * self._first) + self.spread(stride) * self._row
        width = self.chunks[f"{name}_width"]
        for i in np.flatnonzero(width):
            n, first = int(self._rows[i]), int(self._first[i])
            line[first : first + n] += np.frombuffer(self._words, f"<i{width[i]}", n, int(rest[i]))
        return line


class Points:
    """The rows that are not void, ascending along `axis`; those that are equal there keep their order in the file."""

    def __init__(self, rows: Rows, axis: Axis) -> None:
        self._rows = rows
        self._pick: Ints | slice = slice(None)
        steps = rows.steps()
        x = steps if axis == "step" else rows.along(axis)
        valid = steps <= rows.spread(rows.chunks["limit"])
        if not (valid.all() and (x[1:] >= x[:-1]).all()):  # mostly so, and then nothing need be copied
            kept = np.flatnonzero(valid)
            self._pick = kept[np.argsort(x[kept], kind="stable")]
        self.x: Ints | Times = x[self._pick]  # (n,)

    def steps(self) -> Ints:
        found: Ints = self._rows.steps()[self._pick]
        return found

    def samples(self) -> Ints:
        found: Ints = self._rows.samples()[self._pick]
        return found

    def times(self) -> Times:
        found: Times = self._rows.times()[self._pick]
        return found

    def weights(self) -> Ints:
        found: Ints = self._rows.weights()[self._pick]
        return found

    def values(self, columns: Ints) -> Floats:
        found: Floats = self._rows.values(columns)[self._pick]
        return found
