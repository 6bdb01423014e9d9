"""How all ranks come to switch to a new version at the same step, without a barrier and without waiting."""

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """The version that rules each step: the lowest that every rank held, `lag` steps ago.

    At the start of a step each rank launches an all-reduce of the number of the version it holds and awaits the one
    launched `lag` steps earlier, which has had a step's time to end. All ranks receive the same minimum, so they
    agree however late, doubled or out of order versions reach them. `group` is a gloo group of its own (a tensor on
    the host, never behind the gradients), or None for a rank alone, which agrees at once. Raises RuntimeError from
    `step` and `settle` when a rank of the group is lost.
    """

    def __init__(self, group: dist.ProcessGroup | None, lag: int = 1) -> None:
        if lag < 1:
            raise ValueError(f"lag must be at least one step, got {lag}")
        self.agreed = 0
        self._group = group
        self._lag = lag
        self._lowest = dist.AllreduceOptions()  # made once: dist.all_reduce makes them at every call
        self._lowest.reduceOp = dist.ReduceOp(dist.ReduceOp.MIN)
        self._slots = deque(torch.zeros(1, dtype=torch.int64) for _ in range(lag + 1))
        self._pending: deque[tuple[dist.Work, Tensor]] = deque()

    def start(self, agreed: int) -> None:
        """Begin at the version that rules already: newcomers inherit it. Every rank must give the same."""
        self.agreed = agreed
        self._pending.clear()

    def step(self, held: int) -> int:
        """The version that rules this step; to be called by every rank at the start of each."""
        self._launch(held)
        return self._settle(self._lag)

    def settle(self, held: int) -> int:
        """The lowest version that every rank holds now; waits for all of them, as a paused run may."""
        self._launch(held)
        return self._settle(0)

    def _launch(self, held: int) -> None:
        if self._group is None:
            self.agreed = max(self.agreed, held)
            return
        slot = self._slots[0]
        self._slots.rotate()
        slot.fill_(held)
        self._pending.append((self._group.allreduce([slot], self._lowest), slot))

    def _settle(self, ahead: int) -> int:
        while len(self._pending) > ahead:
            work, slot = self._pending.popleft()
            work.wait()
            self.agreed = max(self.agreed, int(slot.item()))
        return self.agreed
