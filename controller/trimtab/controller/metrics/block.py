"""What is handed over to be stored: some steps of some metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trimtab.controller.records import Floats, Ints, Times

LAST, LOW, HIGH = "last", "min", "max"  # parts of a metric that are columns of their own
_PART = "\x1f"  # the unit separator stands between a metric's name and a part's
_LATEST_S = 1e11  # the year 5138; a time in milliseconds lies beyond it


def part(key: str, name: str | int) -> str:
    """The column of a metric's part: `LAST`, `LOW`, `HIGH`, or the number of a rank."""
    return f"{key}{_PART}{name}"


def key_of(column: str) -> str:
    """The metric that a column belongs to."""
    return column.partition(_PART)[0]


@dataclass(frozen=True, slots=True)
class Block:
    """n rows of the same metrics, one row a step, in any order of steps.

    Raises ValueError if a column's type or length is not the declared one, or a number is out of its range. Values may
    be NaN or infinite. The arrays are kept as they are: who hands them over changes them no more.
    """

    steps: Ints  # (n,) from 0
    samples: Ints  # (n,) consumed by all ranks when the step had ended
    times: Times  # (n,) unix seconds
    columns: Mapping[str, Floats]  # each (n,), at least one; of several ranks their mean
    spread: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)  # lowest and highest rank, (n,) each

    def __post_init__(self) -> None:
        n = len(self.steps)
        if not self.columns:
            raise ValueError("a block needs at least one column, got none")
        _check("steps", self.steps, np.int64, n)
        _check("samples", self.samples, np.int64, n)
        _check("times", self.times, np.float64, n)
        for key, values in self.columns.items():
            _check(key, values, np.float32, n)
        for key, ends in self.spread.items():
            for values in ends:
                _check(key, values, np.float32, n)
        if not n:
            return
        if self.steps.min() < 0 or self.samples.min() < 0:
            raise ValueError(f"steps and samples start at 0, got {self.steps.min()} and {self.samples.min()}")
        if not (self.times.min() >= 0 and self.times.max() <= _LATEST_S):  # false for NaN too
            raise ValueError(f"times are unix seconds, got {self.times.min()} to {self.times.max()}")

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self.columns))

    def until(self, step: int) -> "Block":
        """The rows at steps <= `step`."""
        return self.rows(np.flatnonzero(self.steps <= step))

    def rows(self, rows: Ints) -> "Block":
        """These rows, in this order."""
        columns = {key: values[rows] for key, values in self.columns.items()}
        spread = {key: (low[rows], high[rows]) for key, (low, high) in self.spread.items()}
        return Block(self.steps[rows], self.samples[rows], self.times[rows], columns, spread)

    def along(self, axis: Literal["step", "samples", "time"]) -> Ints | Times:
        return self.times if axis == "time" else self.samples if axis == "samples" else self.steps

    def ends(self, key: str) -> tuple[Floats, Floats]:
        """The lowest and the highest rank's values of a metric."""
        column = self.columns[key]
        return self.spread.get(key, (column, column))

    def flat(self) -> "Block":
        """The same with every part a column."""
        low = {part(key, LOW): ends[0] for key, ends in self.spread.items()}
        high = {part(key, HIGH): ends[1] for key, ends in self.spread.items()}
        return Block(self.steps, self.samples, self.times, distinct({**self.columns, **low, **high}))


def distinct(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    """Without the parts that equal their metric throughout: ranks agree on most metrics, and one rank on all."""
    return {
        name: values
        for name, values in columns.items()
        if (key := key_of(name)) == name or key not in columns or not _same(values, columns[key])
    }


def concatenate(blocks: Sequence[Block]) -> Block:
    """One block of the rows of all `blocks`, which have the same keys; at least one block."""
    if len(blocks) == 1:
        return blocks[0]
    differing = {key for block in blocks for key in block.spread}
    spread = {key: _joined([block.ends(key) for block in blocks]) for key in differing}
    return Block(
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.samples for block in blocks]),
        np.concatenate([block.times for block in blocks]),
        {key: np.concatenate([block.columns[key] for block in blocks]) for key in blocks[0].columns},
        spread,
    )


def together(blocks: Iterable[Block]) -> list[Block]:
    """Blocks of different metrics, those at the same steps made one: steps and times are then stored once."""
    found: dict[bytes, Block] = {}
    for block in blocks:
        other = found.get(at := block.steps.tobytes())
        if other is not None:
            columns, spread = {**other.columns, **block.columns}, {**other.spread, **block.spread}
            block = Block(block.steps, block.samples, block.times, columns, spread)
        found[at] = block
    return list(found.values())


def _same(one: Floats, other: Floats) -> bool:
    """To the bit, which is quicker than to compare numbers that may be NaN."""
    return one is other or one.tobytes() == other.tobytes()


def _joined(ends: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    low, high = zip(*ends, strict=True)
    return np.concatenate(low), np.concatenate(high)


def _check(name: str, values: Ints | Floats | Times, dtype: type[np.generic], n: int) -> None:
    if values.dtype != dtype or values.shape != (n,):
        raise ValueError(f"{name} must be {dtype.__name__} of shape ({n},), got {values.dtype} of {values.shape}")
