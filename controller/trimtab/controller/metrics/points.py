"""The points of some chunks as columns, all chunks at once."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.metrics.index import Chunks
from trimtab.controller.metrics.series import Axis
from trimtab.controller.records import Floats, Ints, Times

Number = TypeVar("Number", np.int64, np.float64)


class Points:
    """n rows out of `chunks`, without the void ones, ascending along `axis`.

    `words` is the file as float32. Rows that are equal along the axis keep the order in which they were written.
    """

    def __init__(self, words: Floats, chunks: Chunks, widths: Ints, axis: Axis) -> None:
        self._words = words
        self._chunks = chunks
        self._rows = chunks["rows"]
        self._first = np.cumsum(self._rows) - self._rows  # a chunk's first row
        self._row = np.arange(self._rows.sum())
        self._rest = chunks["at"] + self._rows * (1 + widths)  # where a chunk's rests begin [words]; widths (chunks,)
        self._pick: Ints | slice = slice(None)  # the rows that count, in the axis's order
        self.x: Ints | Times = self._choose(axis)  # (n,)

    def steps(self) -> Ints:
        return self._line("step", self._rest * 4)

    def samples(self) -> Ints:
        return self._line("samples", self._rest * 4 + self._rows * self._chunks["step_width"])

    def times(self) -> Times:
        return self._spread(self._chunks["time"])[self._pick] + self._column(self._chunks["at"])

    def values(self, columns: Ints) -> Floats:
        """(n,) of the metric whose place in each layout is `columns`, (layouts,)."""
        return self._column(self._chunks["at"] + self._rows * (1 + columns[self._chunks["layout"]]))

    def _choose(self, axis: Axis) -> Ints | Times:
        steps = self.steps()
        x: Ints | Times = self.times() if axis == "time" else self.samples() if axis == "samples" else steps
        valid = steps <= self._spread(self._chunks["limit"])
        if valid.all() and (x[1:] >= x[:-1]).all():  # mostly so, and then nothing need be copied
            return x
        rows = np.flatnonzero(valid)
        self._pick = rows[np.argsort(x[rows], kind="stable")]
        return x[self._pick]

    def _line(self, name: str, rest: Ints) -> Ints:
        """Steps or samples; `rest` is where each chunk's deviations from the line begin [bytes]."""
        stride = self._chunks[f"{name}_stride"]
        line = self._spread(self._chunks[name] - stride * self._first) + self._spread(stride) * self._row
        width = self._chunks[f"{name}_width"]
        for i in np.flatnonzero(width):
            n, first = int(self._rows[i]), int(self._first[i])
            line[first : first + n] += np.frombuffer(self._words, f"<i{width[i]}", n, int(rest[i]))
        picked: Ints = line[self._pick]
        return picked

    def _column(self, at: Ints) -> Floats:
        column: Floats = self._words[(self._spread(at - self._first) + self._row)[self._pick]]
        return column

    def _spread(self, of_chunks: NDArray[Number]) -> NDArray[Number]:
        """(chunks,) to (rows,)"""
        return np.repeat(of_chunks, self._rows)
