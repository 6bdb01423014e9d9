"""Several runs' metrics on one grid, for charts that lay runs beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.controller.metrics.reader import MetricReader, Window
from trimtab.controller.metrics.series import Axis, Series, merged
from trimtab.controller.records import Floats, Ints, Times

Column = list[float | None]  # one entry a cell, None where the run has no point in it
NAMES = ("last", "min", "max", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """`points` cells of the same width from `start` to `end`, or over all that there is.

    A time is in seconds since the run's first point, so that runs can be laid beside each other.
    """

    x: Axis = "step"
    start: float | None = None
    end: float | None = None
    points: int = 500


@dataclass(frozen=True, slots=True)
class Shared:
    """What stands in the cells: by run, metric and `NAMES`."""

    grid: list[float]  # (cells,) each one's right end, which belongs to it
    runs: Mapping[str, Mapping[str, Mapping[str, Column]]]


def on_grid(readers: Mapping[str, MetricReader], keys: Sequence[str], grid: Grid) -> Shared:
    """The metrics `keys` of all runs on one grid; a run without points has empty cells."""
    began = {run: reader.began() if grid.x == "time" else 0.0 for run, reader in readers.items()}
    spans = [
        (span[0] - began[run], span[1] - began[run])
        for run, reader in readers.items()
        if (span := reader.span(keys, grid.x)) is not None
    ]
    if not spans:
        return Shared([], {run: {key: _cells(None, np.empty(0)) for key in keys} for run in readers})
    start = min(low for low, _ in spans) if grid.start is None else grid.start
    end = max(high for _, high in spans) if grid.end is None else grid.end
    edges = _edges(start, end, grid)
    found: dict[str, dict[str, dict[str, Column]]] = {}
    for run, reader in readers.items():
        window = Window(grid.x, start + began[run], end + began[run], len(edges) - 1)
        found[run] = {key: _cells(points, edges + began[run]) for key, points in reader.points(keys, window)}
    return Shared(edges[1:].tolist(), found)


def _edges(start: float, end: float, grid: Grid) -> Times:
    """The ends of the cells. Steps and samples are whole numbers: no cell is narrower than one."""
    if grid.x == "time":
        return np.linspace(start, max(end, start + 1e-3), grid.points + 1)
    return np.linspace(start - 1, end, max(1, min(grid.points, int(end - start) + 1)) + 1)


def _cells(points: tuple[Series, Ints] | None, edges: Times) -> dict[str, Column]:
    count = max(len(edges) - 1, 0)
    if points is None or not len(points[0]):
        return {name: [None] * count for name in NAMES}
    series, weights = points
    cell = np.clip(np.searchsorted(edges, series.x, "left") - 1, 0, count - 1)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    in_cells = merged(series, starts, weights)
    return {name: _column(getattr(in_cells, name), cell[starts], count) for name in NAMES}


def _column(values: Floats, at: Ints, count: int) -> Column:
    column: Column = [None] * count
    for cell, value in zip(at.tolist(), values.tolist(), strict=True):
        column[cell] = value
    return column
