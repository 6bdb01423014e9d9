"""The ranks of one process, in threads or in lockstep: there all begin a collective before one waits for it."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from trimtab.workers.peers import GroupLost

T = TypeVar("T")


class Meeting:
    """Where ranks meet: the n-th collective of one is the n-th of all.

    A sum is formed in the order of the ranks and is the same, bit for bit, on all of them.
    """

    def __init__(self, size: int, timeout_s: float = 30.0) -> None:
        self.size = size
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._there: dict[int, dict[int, Any]] = {}  # by number of the collective: by rank
        self._ended: dict[int, list[Any]] = {}
        self._lost = False

    def ranks(self) -> "list[ThreadRanks]":
        return [ThreadRanks(self, rank) for rank in range(self.size)]

    def come(self, number: int, rank: int, value: Any) -> None:
        with self._changed:
            there = self._there.setdefault(number, {})
            there[rank] = value
            if len(there) == self.size:
                values = [there[one] for one in range(self.size)]
                if isinstance(values[0], Tensor):
                    add_up(values)
                self._ended[number] = values
                self._changed.notify_all()

    def wait(self, number: int) -> list[Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._lost or number in self._ended, self._timeout_s)
            if number not in self._ended:
                raise GroupLost(f"collective {number}: {sorted(self._there.get(number, {}))} of {self.size} came")
            return self._ended[number]

    def lose(self) -> None:
        """A rank is gone: what has not ended never will."""
        with self._changed:
            self._lost = True
            self._changed.notify_all()


class ThreadRanks:
    """One rank's `trimtab.workers.sync.Ranks`."""

    host = "127.0.0.1"

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank, self.size = rank, meeting.size
        self._meeting = meeting
        self.collectives = 0  # begun

    def sum(self, tensor: Tensor) -> "Joined":
        return Joined(self._meeting, self._come(tensor))

    def gather(self, value: T) -> list[T]:
        return self._meeting.wait(self._come(value))

    def _come(self, value: Any) -> int:
        self.collectives += 1
        self._meeting.come(self.collectives, self.rank, value)
        return self.collectives


class Joined:
    """A collective that this rank has begun."""

    def __init__(self, meeting: Meeting, number: int) -> None:
        self._meeting, self._number = meeting, number

    def wait(self) -> None:
        self._meeting.wait(self._number)


@torch.no_grad()
def add_up(tensors: list[Tensor]) -> None:
    """Each becomes the sum of all."""
    first, *others = tensors
    for other in others:
        first.add_(other)
    for other in others:
        other.copy_(first)


def in_threads(size: int, train: Callable[[ThreadRanks], T]) -> list[T]:
    """What `train` returns, by rank, each in a thread of its own. Raises what the first rank that failed raised."""
    meeting = Meeting(size)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(ranks: ThreadRanks) -> None:
        try:
            results[ranks.rank] = train(ranks)
        except BaseException as error:
            errors.append(error)
            meeting.lose()

    threads = [threading.Thread(target=run, args=(ranks,)) for ranks in meeting.ranks()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
