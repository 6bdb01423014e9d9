"""Micro-batches from data that can only be read in order."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

log = logging.getLogger(__name__)


class IterableLoader:
    """An iterable of samples, read in order and, when it ends, again.

    It has no index: resuming, and a cut behind what was read, means reading from the beginning. A cut further on, as
    a change of the micro-batch or of the world size makes it, only reads on. `num_samples` is None, and whether a
    later pass gives another order is the iterable's affair.
    """

    num_samples: int | None = None

    def __init__(self, data: Iterable[Any], collate: Callable[[list[Any]], Any]) -> None:
        self._data = data
        self._collate = collate
        self._samples = _endless(data)
        self._read = 0  # [samples] of the stream
        self._micro, self._rank, self._world_size = 1, 0, 1

    def cut(self, position: int, plan_micro: int, rank: int, world_size: int) -> None:
        if not self.reaches(position):
            raise ValueError(f"cannot go back to sample {position}: the iterator can be read only once")
        if position < self._read:
            self._samples, self._read = _endless(self._data), 0
        skipped = position - self._read
        if skipped:
            log.info("reading past %d samples to sample %d: an iterable has no index", skipped, position)
            next(islice(self._samples, skipped - 1, None))
        self._read = position
        self._micro, self._rank, self._world_size = plan_micro, rank, world_size

    def reaches(self, position: int) -> bool:
        return position >= self._read or not isinstance(self._data, Iterator)

    def next(self, count: int | None = None) -> Any:
        window = self._world_size * (count or self._micro)
        self._read += window
        return self._collate(list(islice(self._samples, self._rank, window, self._world_size)))

    def close(self) -> None:
        self._samples.close()


def _endless(data: Iterable[Any]) -> Generator[Any, None, None]:
    while True:
        empty = True
        for sample in data:
            empty = False
            yield sample
        if empty:
            raise ValueError("the data has ended: it is empty, or an iterator that can be read only once")
