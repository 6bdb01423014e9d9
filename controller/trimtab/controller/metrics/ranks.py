"""Each rank's own values of the newest steps: two files, of which the older one goes when the newer one is full."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from trimtab.controller.metrics.block import Block, concatenate, part
from trimtab.controller.metrics.reader import MetricReader, Row
from trimtab.controller.metrics.series import Axis, Series, bucketed, series
from trimtab.controller.metrics.writer import MetricWriter

FULL_STEPS = 5_000  # so that the newest 5,000 to 10,000 are there
FULL_BYTES = 64 * 2**20  # or fewer, where there are very many ranks and metrics


class RankWriter:
    """Appends to files in `folder`, named 1, 2, 3, ...; a block's columns are `part(KEY, RANK)`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = max(numbers(folder), default=1)
        self._writer: MetricWriter | None = None
        self._begun: int | None = None  # the first step since the present file was opened

    def append(self, block: Block) -> None:
        """Take some steps. Raises OSError if they cannot be written."""
        if self._writer is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._writer = self._open()
        first = int(block.steps[0])
        begun = self._begun = first if self._begun is None else min(self._begun, first)
        if first - begun >= FULL_STEPS or self._path().stat().st_size > FULL_BYTES:
            self._writer = self._next(self._writer)
            self._begun = first
        self._writer.append(block)

    def rewind(self, step: int) -> None:
        """What was appended before at later steps is void."""
        for number in numbers(self._folder):
            if self._writer is not None and number == self._number:
                self._writer.rewind(step)
            else:
                older = MetricWriter(self._folder / str(number), summarise=False)
                older.rewind(step)
                older.close()

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close; closing twice does no harm."""
        if self._writer is not None:
            self._writer.close()

    def _next(self, full: MetricWriter) -> MetricWriter:
        full.close()
        for number in numbers(self._folder):
            if number < self._number:
                (self._folder / str(number)).unlink()
        self._number += 1
        return self._open()

    def _open(self) -> MetricWriter:
        return MetricWriter(self._path(), summarise=False)

    def _path(self) -> Path:
        return self._folder / str(self._number)


class RankReader:
    """The values of single ranks, as they now stand in `folder`; for one question."""

    def __init__(self, folder: Path) -> None:
        self._readers = []
        for number in sorted(numbers(folder)):
            with suppress(FileNotFoundError):  # it has just gone
                self._readers.append(MetricReader(folder / str(number)))

    def query(
        self, keys: Sequence[str], rank: int, x: Axis, start: float | None, end: float | None, max_points: int
    ) -> dict[str, Series]:
        """Like `MetricReader.query`, of one rank."""
        found = {}
        for key in keys:
            block = self._block(part(key, rank))
            if block is not None:
                along = block.along(x)
                kept = np.ones(len(along), bool) if start is None else along >= start
                kept &= True if end is None else along <= end
                order = np.flatnonzero(kept)[np.argsort(along[kept], kind="stable")]
                found[key] = bucketed(series(along[order], block.columns[part(key, rank)][order]), max_points)
        return found

    def table(self, keys: Sequence[str], rank: int) -> Iterator[Row]:
        """Every step at which the rank has one of `keys`."""
        for reader in self._readers:
            yield from reader.table([part(key, rank) for key in keys])

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def _block(self, column: str) -> Block | None:
        blocks = [block for reader in self._readers if (block := reader.block(column)) is not None]
        return concatenate(blocks) if blocks else None


def numbers(folder: Path) -> list[int]:
    """The files that there are."""
    return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
