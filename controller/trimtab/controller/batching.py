"""How a global batch is cut into micro-batches: one rule for the controller, which rounds, and the workers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's batch: `batch_size == world_size * accumulation * micro_batch` [samples]."""

    world_size: int
    micro_batch: int
    accumulation: int

    @property
    def batch_size(self) -> int:
        return self.world_size * self.accumulation * self.micro_batch


@dataclass(frozen=True, slots=True)
class Batching:
    """What a group of ranks can do with a target batch.

    The micro-batch moves by powers of two of `micro_batch`, up to `max_micro_batch`, before accumulation grows: a
    larger micro-batch is faster, but each change of it cuts the stream anew. `min_accumulation` is 2 where one rank
    alone measures the gradient noise, which needs two gradients a step.
    """

    world_size: int
    micro_batch: int
    max_micro_batch: int
    min_accumulation: int = 1

    def __post_init__(self) -> None:
        if min(self.world_size, self.micro_batch, self.min_accumulation) < 1:
            raise ValueError(f"world size, micro-batch and accumulation must be at least 1, got {self}")
        if self.max_micro_batch < self.micro_batch:
            raise ValueError(
                f"max_micro_batch {self.max_micro_batch} is below micro_batch {self.micro_batch}: raise it"
            )

    @property
    def smallest(self) -> int:
        """The smallest global batch that these ranks can take [samples]."""
        return self.world_size * self.min_accumulation

    def plan(self, target: float) -> Plan:
        """The plan for `target`, rounded to a multiple of world_size x micro_batch, never below `smallest`."""
        share = max(target / self.world_size, self.min_accumulation)  # [samples] a rank
        limit = min(self.max_micro_batch, share / self.min_accumulation)
        micro = self.micro_batch
        while micro * 2 <= limit:
            micro *= 2
        while micro > limit and micro % 2 == 0:
            micro //= 2
        if micro > limit:
            micro = int(limit)
        return Plan(self.world_size, micro, max(self.min_accumulation, round(share / micro)))
