"""What ranks tell one another now and then, through a store that outlives each: objects, or that they are there.

Unlike a collective of gloo's it ends as soon as a rank has left, wherever the others wait for it.
"""

import pickle
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from torch._C._distributed_c10d import Store

T = TypeVar("T")

LOOK_S = 0.002  # between two looks at the store


class GroupLost(RuntimeError):
    """A rank of the formation is gone, or has been silent for too long."""


class Meeting:
    """One rank's side; every rank must make the same calls in the same order. Raises GroupLost."""

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float) -> None:
        self.lost: Callable[[], bool] = lambda: False  # has a rank left?
        self._store = store
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._calls = 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        self._calls += 1
        own = f"{self._calls}/{self._rank}"
        self._store.set(own, _packed(value))
        keys = [f"{self._calls}/{rank}" for rank in range(self._size)]
        self._await(keys)
        return [pickle.loads(self._store.get(key)) for key in keys]

    def broadcast(self, value: T, source: int) -> T:
        """The value of the rank `source`, on all ranks."""
        self._calls += 1
        key = f"{self._calls}/{source}"
        if self._rank == source:
            self._store.set(key, _packed(value))
            return value
        self._await([key])
        told: T = pickle.loads(self._store.get(key))
        return told

    def barrier(self) -> None:
        """Wait until every rank has come."""
        self.gather(None)

    def _await(self, keys: Sequence[str]) -> None:
        until = time.monotonic() + self._timeout_s
        while not self._store.check(list(keys)):
            if self.lost() and not self._store.check(list(keys)):  # it may have come, and gone on
                raise GroupLost("a rank has left while others waited for it")
            if time.monotonic() > until:
                raise GroupLost(f"a rank has been silent for {self._timeout_s:.0f} s")
            time.sleep(LOOK_S)


def _packed(value: object) -> str:
    return cast(str, pickle.dumps(value))  # the store takes bytes, of which its types know nothing
