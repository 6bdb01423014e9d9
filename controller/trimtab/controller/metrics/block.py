"""What is handed over to be stored: some steps of some metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.controller.records import Floats, Ints, Times

_LATEST_S = 1e11  # the year 5138; a time in milliseconds lies beyond it


@dataclass(frozen=True, slots=True)
class Block:
    """n rows of the same metrics, one row a step, in any order of steps.

    Raises ValueError if a column's type or length is not the declared one, or a number is out of its range. Values may
    be NaN or infinite. The arrays are kept as they are: who hands them over changes them no more.
    """

    steps: Ints  # (n,) from 0
    samples: Ints  # (n,) consumed by all ranks when the step had ended
    times: Times  # (n,) unix seconds
    columns: Mapping[str, Floats]  # each (n,), at least one

    def __post_init__(self) -> None:
        n = len(self.steps)
        if not self.columns:
            raise ValueError("a block needs at least one column, got none")
        _check("steps", self.steps, np.int64, n)
        _check("samples", self.samples, np.int64, n)
        _check("times", self.times, np.float64, n)
        for key, values in self.columns.items():
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
        keep = self.steps <= step
        columns = {key: values[keep] for key, values in self.columns.items()}
        return Block(self.steps[keep], self.samples[keep], self.times[keep], columns)


def concatenate(blocks: Sequence[Block]) -> Block:
    """One block of the rows of all `blocks`, which have the same keys; at least one block."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.samples for block in blocks]),
        np.concatenate([block.times for block in blocks]),
        {key: np.concatenate([block.columns[key] for block in blocks]) for key in blocks[0].columns},
    )


def _check(name: str, values: Ints | Floats | Times, dtype: type[np.generic], n: int) -> None:
    if values.dtype != dtype or values.shape != (n,):
        raise ValueError(f"{name} must be {dtype.__name__} of shape ({n},), got {values.dtype} of {values.shape}")
