"""How all ranks come to switch to a new version at the same step, without a barrier and without waiting."""

import torch
import torch.distributed as dist

PERIOD_S = 0.03  # between two all-reduces: each costs gloo's threads about 0.5 ms, 3 % of a step of 17 ms


class Agreement:
    """The version that rules each step: the lowest that every rank held when they last compared.

    Each rank launches an all-reduce of the number of the version it holds before its backward pass and reads the
    result at the start of the next step. Some milliseconds must lie between: gloo's threads have to be given a core
    several times, and whoever waits for them waits that long (launched at the end of a step it cost 6 % of it). All
    ranks receive the same minimum, so they agree however late, doubled or out of order versions reach them. Where
    steps are shorter than `PERIOD_S` they compare once in so many steps as fill it, by the slowest rank's step time,
    which travels along: all ranks skip alike.

    `group` is a gloo group of its own (a tensor on the host, never behind the gradients), or None for a rank alone,
    which agrees at once. Raises RuntimeError from `result` and `settle` when a rank of the group is lost.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.agreed = 0
        self._group = group
        self._lowest = dist.AllreduceOptions()  # made once: dist.all_reduce makes them at every call
        self._lowest.reduceOp = dist.ReduceOp(dist.ReduceOp.MIN)
        self._slots = torch.zeros(2, dtype=torch.int64)  # the version held, minus the step time [µs]
        self._pending: dist.Work | None = None
        self._skips = 0  # steps until the next comparison

    def start(self, agreed: int) -> None:
        """Begin at the version that rules already: newcomers inherit it. Every rank must give the same."""
        self.agreed = agreed
        self._pending = None
        self._skips = 0

    def step(self, held: int, step_s: float) -> None:
        """Say what this rank holds, and how long its last step took; to be called by every rank once a step."""
        if self._group is None:
            self.agreed = max(self.agreed, held)
        elif self._skips > 0:
            self._skips -= 1
        else:
            self._launch(held, step_s)

    def result(self) -> int:
        """The version that rules the step that begins; to be called by every rank at each."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            held, step_us = self._slots.tolist()
            self.agreed = max(self.agreed, held)
            self._skips = max(0, round(PERIOD_S * 1e6 / max(1, -step_us)) - 1)
        return self.agreed

    def settle(self, held: int) -> int:
        """The lowest version that every rank holds now; waits for all of them, as a paused run may."""
        if self._group is None:
            self.agreed = max(self.agreed, held)
            return self.agreed
        self.result()
        self._launch(held, PERIOD_S)
        return self.result()

    def _launch(self, held: int, step_s: float) -> None:
        assert self._group is not None
        self._slots[0], self._slots[1] = held, -int(step_s * 1e6)
        self._pending = self._group.allreduce([self._slots], self._lowest)
