"""Reading finished and live runs from disk: what charts, tables and replays ask for, beside the controller.

A plain class; `actor` makes it an actor of its own, so that no page, however slow, takes the controller's time.
"""

import csv
import io
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from trimtab.controller.home import METRICS
from trimtab.controller.metrics import Axis, MetricReader, RankReader, Row, Series
from trimtab.controller.metrics.block import key_of
from trimtab.controller.metrics.grid import Grid, Shared, on_grid
from trimtab.controller.metrics.store import file_of, ranks_of
from trimtab.controller.recorded import replay_recorded
from trimtab.controller.replayed import Replayed, Tried

PAGE = 2000  # rows of a table that travel together
OPEN = 100  # files that are kept open


class Reader:
    """Reads what the controller writes in `home`. It changes nothing, and holds nothing that is not on disk.

    `csv` and `replay`, which may take long, may run in threads beside the other methods.
    """

    def __init__(self, home: Path | str) -> None:
        self._home = Path(home)
        self._open: OrderedDict[str, MetricReader] = OrderedDict()

    def keys(self, run: str) -> list[str]:
        """The names of a run's metrics; none as long as nothing has been written."""
        reader = self._reader(run)
        return list(reader.keys()) if reader else []

    def query(
        self,
        run: str,
        keys: Sequence[str],
        x: Axis,
        start: float | None,
        end: float | None,
        max_points: int,
        rank: int | None = None,
    ) -> dict[str, Series]:
        """Metrics in buckets: of all ranks, or of one, whose own values are kept for the newest steps only."""
        if rank is not None:
            with closing(RankReader(ranks_of(self._path(run)))) as ranks:
                return ranks.query(keys, rank, x, start, end, max_points)
        reader = self._reader(run)
        return reader.query(keys, x, start, end, max_points) if reader else {}

    def compare(self, runs: Sequence[str], keys: Sequence[str], grid: Grid) -> Shared:
        """The metrics of several runs on one grid; a run of which nothing was written is left out."""
        readers = {run: reader for run in runs if (reader := self._reader(run)) is not None}
        return on_grid(readers, keys, grid)

    def csv(self, run: str, keys: Sequence[str], rank: int | None = None, start: float | None = None) -> Iterator[str]:
        """All points as CSV, a row a step, in pages: means over ranks from step `start` on, with the lowest and the
        highest rank where they differ; or the own values of one rank, of the newest steps."""
        if rank is not None:
            with closing(RankReader(ranks_of(self._path(run)))) as ranks:
                yield from _csv(keys, ranks.table(keys, rank))
        elif self._path(run).exists():
            with closing(MetricReader(self._path(run))) as reader:
                columns = reader.columns(keys)
                yield from _csv(map(_title, columns), reader.table(columns, -math.inf if start is None else start))
        else:
            yield from _csv(keys, iter(()))

    def replay(self, run: str, tried: Tried | None) -> Replayed:
        """The recorded run decided again; see `replay_recorded`."""
        return replay_recorded(self._home, run, tried)

    def _path(self, run: str) -> Path:
        return file_of(self._home / METRICS, run)

    def _reader(self, run: str) -> MetricReader | None:
        reader = self._open.pop(run, None)
        if reader is None:
            if not self._path(run).exists():
                return None
            reader = MetricReader(self._path(run))
        reader.refresh()
        self._open[run] = reader  # now the newest
        if len(self._open) > OPEN:
            self._open.popitem(last=False)[1].close()
        return reader


def _title(column: str) -> str:
    key = key_of(column)
    return key if key == column else f"{key} ({column.removeprefix(key)[1:]})"


def _csv(titles: Iterable[str], rows: Iterator[Row]) -> Iterator[str]:
    yield _lines([["step", "samples", "time", *titles]])
    while page := list(islice(rows, PAGE)):
        # As float32, which they are: 0.3, where the same as a float64 is 0.30000001192092896.
        cells = np.array([row.values for row in page], np.float32).astype(str)
        cells[cells == "nan"] = ""
        yield _lines([*row[:3], *values] for row, values in zip(page, cells.tolist(), strict=True))


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
