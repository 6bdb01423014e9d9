"""The group of ranks that trains together, from where it is formed to where it is left."""

import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, _broadcast_coalesced
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from trimtab.workers.peers import TIMEOUT_S, GroupLost, Peers, address_towards
from trimtab.workers.rendezvous import Membership

T = TypeVar("T")
FORM_S = 20.0  # for members that have all come to the door to connect to one another
BUCKET = 64 * 2**20  # [bytes] of tensors that travel together
_LOSS = re.compile("gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|aborted", re.IGNORECASE)


def is_loss(error: RuntimeError) -> bool:
    """Does the error say that a rank is gone? Backends raise plain RuntimeErrors too."""
    return isinstance(error, GroupLost | dist.DistError) or bool(_LOSS.search(str(error)))


def guarded(call: Callable[[], T]) -> T:
    """What `call`, a collective operation, returns; GroupLost in place of what a backend raises when a rank is gone."""
    try:
        return call()
    except RuntimeError as error:
        if is_loss(error):
            raise GroupLost(str(error)) from error
        raise


class Work:
    """A collective operation under way."""

    def __init__(self, work: dist.Work | None) -> None:
        self._work = work

    def wait(self) -> None:
        if self._work is not None:
            guarded(self._work.wait)


class Group:
    """One rank's hold of its group. A rank alone has no peers, and nothing is sent.

    Collective operations must be made by all ranks in the same order; they raise GroupLost when one is gone.
    """

    def __init__(self, number: int, rank: int, size: int, peers: Peers | None, host: str = "127.0.0.1") -> None:
        self.number = number
        self.rank = rank
        self.size = size
        self.peers = peers
        self.host = host
        self._left = False

    @classmethod
    def alone(cls, number: int = 0) -> "Group":
        """That of a rank which nobody else belongs to."""
        return cls(number, 0, 1, None)

    def sum(self, tensor: Tensor) -> Work:
        """Begin to add up `tensor` over all ranks, in place."""
        if self.size == 1:
            return Work(None)
        return Work(guarded(lambda: dist.all_reduce(tensor, async_op=True)))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.peers is None:
            return [value]
        peers = self.peers
        return guarded(lambda: peers.gather(value))

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of the rank `source`, on all ranks."""
        if self.peers is None:
            return value
        peers = self.peers
        return guarded(lambda: peers.broadcast(value, source))

    def barrier(self) -> None:
        if self.peers is not None:
            guarded(self.peers.barrier)

    def share(self, state: Any, source: int, device: torch.device) -> Any:
        """The state of the rank `source`, a tree of tensors and plain values, on all ranks; its tensors travel as such.

        They arrive on `device`, those of the host on the host.
        """
        if self.size == 1:
            return state
        told = tree_map(_told, state) if self.rank == source else None
        shapes, structure = tree_flatten(self.broadcast(told, source))
        leaves = shapes if self.rank != source else tree_flatten(state)[0]
        leaves = [leaf.empty(device) if isinstance(leaf, _Shape) else leaf for leaf in leaves]
        tensors = [leaf.detach().contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
        for place in sorted({(t.device.type, str(t.dtype)) for t in tensors}):
            alike = [t for t in tensors if (t.device.type, str(t.dtype)) == place]
            guarded(partial(_broadcast_coalesced, _world(), alike, BUCKET, source))
        arrived = iter(tensors)
        return tree_unflatten([next(arrived) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)

    def leave(self) -> None:
        """Close all lines, so that ranks that wait for this one learn it at once; whatever state the group is in."""
        if self.peers is None or self._left:
            return
        self._left = True
        self.peers.close()
        dist.destroy_process_group()


class _Shape:
    """Stands for a tensor whose values travel apart."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, kind: str) -> None:
        self._shape, self._dtype, self._kind = shape, dtype, kind

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(self._shape, dtype=self._dtype, device=device if self._kind != "cpu" else "cpu")


def _told(leaf: Any) -> Any:
    return _Shape(leaf.shape, leaf.dtype, leaf.device.type) if isinstance(leaf, Tensor) else leaf


def form(of: Membership, store: Store, address: tuple[str, int], backend: str) -> Group:
    """Form the process group with members that have all come to the door. Raises GroupLost if one does not connect."""
    if of.size == 1:
        return Group.alone(of.number)
    host = address_towards(*address)
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore(f"formed/{of.number}", store),
            rank=of.rank,
            world_size=of.size,
            timeout=timedelta(seconds=FORM_S),
        )
        lines = dist.new_group(backend="gloo", timeout=timedelta(seconds=FORM_S))
        peers = Peers(lines, host)
        for group in (_world(), lines):
            _set_pg_timeout(timedelta(seconds=TIMEOUT_S), group)
    except RuntimeError as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        if is_loss(error):
            raise GroupLost(str(error)) from error
        raise
    return Group(of.number, of.rank, of.size, peers, host)


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world
