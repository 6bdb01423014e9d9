"""What a synchronisation strategy is: one way to keep the ranks' replicas together.

A step, whatever the strategy:

    forward and backward pass      (`reduces`: the gradients are averaged over the ranks meanwhile, as DDP does)
    before_update(step)            the gradients are there, the replica is as it was
    the optimizer's step           on this rank's replica
    after_update(step)

A strategy lives for one formation of the group; `state` and `load` take it over into the next.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from trimtab.controller.trajectory import Scalar

T = TypeVar("T")
Option = Callable[[str], Scalar]  # the value in force of one of the strategy's options


class Pending(Protocol):
    """A collective operation under way."""

    def wait(self) -> object:
        """Return when the result is there. Raises GroupLost when a rank is gone."""


class Ranks(Protocol):
    """The ranks of a formation, as a strategy needs them. Every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def host(self) -> str:
        """This machine's address for the other ranks."""

    def sum(self, tensor: Tensor) -> Pending:
        """Begin to add up `tensor`, contiguous, over all ranks, in place."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""


class Strategy(ABC):
    """Keeps one rank's replica together with the others'. Collective operations raise GroupLost when a rank is gone."""

    name: ClassVar[str]
    reduces: ClassVar[bool] = False  # are gradients averaged in the backward pass?

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], ranks: Ranks, option: Option) -> None:
        """`parameters`: all that are trained; `buffers`: the model's floating-point buffers, as BatchNorm's statistics.

        Every rank must make its own at the same step, with replicas that are equal unless `load` follows.
        """
        self._tensors = [*parameters, *buffers]
        self._parameters = list(parameters)
        self._ranks = ranks
        self._option = option

    @property
    def lag(self) -> int:
        """How many steps ranks may drift apart: after so many, what they said of the versions they hold is read."""
        return 1

    @abstractmethod
    def before_update(self, step: int) -> None:
        """The gradients of step `step` (from 1) are there, the optimizer has not used them yet."""

    @abstractmethod
    def after_update(self, step: int) -> None:
        """The optimizer has made step `step`; a step that was skipped comes here too."""

    @property
    def centre(self) -> Sequence[Tensor] | None:
        """What is evaluated in the replica's place: parameters, then buffers; None: the replica itself."""
        return None

    @abstractmethod
    def consensus(self) -> Sequence[Tensor]:
        """The one model that stands for all replicas: parameters, then buffers. Collective; the replicas stay."""

    def restart(self) -> None:  # noqa: B027
        """A decision has changed the learning rate, at one step on all ranks."""

    def state(self) -> Mapping[str, Any]:
        """What the next formation, or a checkpoint, needs beside the replica: tensors and numbers."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from `state` of another rank or an earlier formation; the replica begins where that says."""

    def measured(self) -> Mapping[str, float]:
        """Metrics of the step that has just ended, if there is anything to tell."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Let go of threads and sockets."""

    @torch.no_grad()
    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the ranks of each tensor, as new tensors; collective."""
        flat = flatten(tensors)
        self._ranks.sum(flat).wait()
        return unflatten(flat.div_(self._ranks.size), tensors)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One new tensor, (elements,), with copies of all; they must be of one type and on one device."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `flat` in the shapes of `like`."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
