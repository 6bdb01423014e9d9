"""Metrics that a replay needs and the journal does not hold, as the run's metric file has them.

The file no longer has what a formation has voided: of a branch that was left, it gives what came in its place.
"""

from typing import Protocol

import numpy as np

from trimtab.controller.align import MEAN
from trimtab.controller.live import reduced
from trimtab.controller.metrics import Block
from trimtab.controller.observation import Reading

DENSE = frozenset({*MEAN, "step_time_max"})  # metrics of every step, besides `hp/NAME`


class Stored(Protocol):
    """The run's metric file."""

    def block(self, key: str) -> Block | None:
        """All points of a metric by step; None if there are none."""


class Nothing:
    """No metric file."""

    def block(self, key: str) -> Block | None:  # noqa: ARG002
        return None


NOTHING = Nothing()


class Readings:
    """What each observation would have held of a metric, had a policy read it."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._blocks: dict[str, Block | None] = {}
        self._dense = 0  # the step up to which metrics of every step have been read
        self._logged = 0  # the first step whose logged metrics have not

    def of(self, name: str, step: int) -> tuple[tuple[Reading, ...], int]:
        """The new readings at `step`, and the number of values that are none because they are not finite."""
        if name not in self._blocks:
            self._blocks[name] = self._stored.block(name)
        block = self._blocks[name]
        if block is None:
            return (), 0
        if name in DENSE or name.startswith("hp/"):
            dense = _cut(block, self._dense + 1, step + 1)
            return reduced([dense] if len(dense) else [], [], name)
        return reduced([], [(name, _cut(block, self._logged, step))], name)  # what is logged is final one step later

    def passed(self, step: int) -> None:
        """An observation at `step` has had its readings."""
        self._dense = self._logged = step

    def rewind(self, step: int) -> None:
        """A formation begins at `step`."""
        self._dense, self._logged = step, step + 1


def _cut(block: Block, start: int, end: int) -> Block:
    """The rows at start <= step < end."""
    low, high = np.searchsorted(block.steps, (start, end))
    columns = {name: column[low:high] for name, column in block.columns.items()}
    return Block(block.steps[low:high], block.samples[low:high], block.times[low:high], columns)
