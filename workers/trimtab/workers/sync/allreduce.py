"""The strategy `allreduce`: gradients are averaged at every step, as DDP does, and replicas stay equal."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from trimtab.controller.sync import ALLREDUCE
from trimtab.workers.sync.strategy import Strategy

__all__ = ["AllReduce"]


class AllReduce(Strategy):
    """Nothing is left to do beside the backward pass; only buffers differ between ranks."""

    name: ClassVar[str] = ALLREDUCE
    reduces: ClassVar[bool] = True

    def before_update(self, step: int) -> None:
        pass

    def after_update(self, step: int) -> None:
        pass

    def consensus(self) -> Sequence[Tensor]:
        buffers = self._tensors[len(self._parameters) :]
        return [*self._parameters, *(self.mean(buffers) if buffers else ())]
