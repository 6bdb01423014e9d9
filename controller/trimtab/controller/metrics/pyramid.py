"""Summaries of many rows: the pyramid that a chart of a long run is drawn from."""

import numpy as np

from trimtab.controller.metrics.block import HIGH, LAST, LOW, Block, distinct, part
from trimtab.controller.metrics.series import Series, merged
from trimtab.controller.records import Floats

STRIDES = (10, 100, 1000)  # rows that one row of each level stands for
SEGMENT_ROWS = 1000  # are summarised together, or some more


def summaries(block: Block) -> list[Block]:
    """A block for each of `STRIDES`: of every metric the mean and, where they are not the same, last, min and max.

    The rows are those at the end of each bucket; the last bucket may be of fewer rows.
    """
    block = block.rows(np.argsort(block.steps, kind="stable"))
    return [_summary(block, stride) for stride in STRIDES]


def _summary(block: Block, stride: int) -> Block:
    n = len(block)
    starts = np.arange(0, n, stride)
    ends = np.append(starts[1:], n) - 1
    columns: dict[str, Floats] = {}
    for key, values in block.columns.items():
        found = merged(Series(block.steps, values, *block.ends(key), values), starts)
        parts = {part(key, LAST): found.last, part(key, LOW): found.min, part(key, HIGH): found.max}
        columns |= {key: found.mean, **parts}
    return Block(block.steps[ends], block.samples[ends], block.times[ends], distinct(columns))
