"""How a global batch is cut into micro-batches: one rule for the controller, which rounds, and the workers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

TOLERANCE = 0.05  # share of the target that a batch may be off without a smaller micro-batch being tried
FINEST = 3  # halvings of the micro-batch that are tried for a batch nearer to its target


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's batch: `batch_size == world_size * accumulation * micro_batch` [samples]."""

    world_size: int
    micro_batch: int
    accumulation: int

    @property
    def batch_size(self) -> int:
        return self.world_size * self.accumulation * self.micro_batch

    def nearest(self, target: float) -> int:
        """The batch nearest to `target` that these ranks can take, with a micro-batch no larger than now [samples]."""
        grain = self.world_size * self.micro_batch
        if target >= grain:
            return round(target / grain) * grain
        return Batching(self.world_size, self.micro_batch, self.micro_batch).plan(target).batch_size


def min_accumulation(world_size: int) -> int:
    """A rank alone cuts its batch in two: one gradient a step shows no noise."""
    return 2 if world_size == 1 else 1


@dataclass(frozen=True, slots=True)
class Batching:
    """What a group of ranks can do with a target batch.

    The micro-batch moves by powers of two of `micro_batch`, up to `max_micro_batch`, before accumulation grows: a
    larger micro-batch is faster, but each change of it cuts the stream anew. `min_accumulation` is 2 where one rank
    alone measures the gradient noise, which needs two gradients a step. `fixed`: the micro-batch is what somebody
    else's loader gives, so that only accumulation moves.
    """

    world_size: int
    micro_batch: int
    max_micro_batch: int
    min_accumulation: int = 1
    fixed: bool = False

    def __post_init__(self) -> None:
        if min(self.world_size, self.micro_batch, self.min_accumulation) < 1:
            raise ValueError(f"world size, micro-batch and accumulation must be at least 1, got {self}")
        if self.max_micro_batch < self.micro_batch:
            raise ValueError(
                f"max_micro_batch {self.max_micro_batch} is below micro_batch {self.micro_batch}: raise it"
            )

    def regrouped(self, world_size: int) -> "Batching":
        """The same for another number of ranks."""
        least = self.min_accumulation if self.fixed else min_accumulation(world_size)
        return replace(self, world_size=world_size, min_accumulation=least)

    @property
    def smallest(self) -> int:
        """The smallest global batch that these ranks can take [samples]."""
        return self.world_size * self.min_accumulation * (self.micro_batch if self.fixed else 1)

    def plan(self, target: float, least: float = 0, most: float = math.inf) -> Plan:
        """The plan with the largest micro-batch that comes within `TOLERANCE` of `target`, else the nearest one.

        Batches outside [least, most] are taken only where these ranks have none within.
        """
        plans = list(self._candidates(target))
        plans = [plan for plan in plans if least <= plan.batch_size <= most] or plans
        near = (plan for plan in plans if abs(plan.batch_size - target) <= TOLERANCE * target)
        return next(near, None) or min(plans, key=lambda plan: abs(plan.batch_size - target))

    def _candidates(self, target: float) -> Iterator[Plan]:
        """The batches just below and above `target`, the nearer one first, from the largest micro-batch down."""
        share = max(target / self.world_size, self.min_accumulation)  # [samples] a rank
        for micro in (self.micro_batch,) if self.fixed else self._ladder(share):
            below = max(self.min_accumulation, int(share / micro))
            plans = [Plan(self.world_size, micro, accumulation) for accumulation in (below, below + 1)]
            yield from sorted(plans, key=lambda plan: abs(plan.batch_size - target))

    def _ladder(self, share: float) -> Iterable[int]:
        largest = self._largest(share)
        return dict.fromkeys(max(1, largest >> halvings) for halvings in range(FINEST + 1))

    def _largest(self, share: float) -> int:
        """The largest micro-batch of the ladder that `share` samples a rank fill `min_accumulation` times."""
        limit = min(self.max_micro_batch, share / self.min_accumulation)
        micro = self.micro_batch
        while micro * 2 <= limit:
            micro *= 2
        while micro > limit:
            micro //= 2
        return micro
