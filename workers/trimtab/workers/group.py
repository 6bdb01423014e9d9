"""The group of ranks that trains together, from where it is formed to where it is left."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _abort_process_group, _set_pg_timeout
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from trimtab.workers.peers import TIMEOUT_S, GroupLost, Peers, address_towards
from trimtab.workers.rendezvous import Membership
from trimtab.workers.sync.strategy import flatten, unflatten

T = TypeVar("T")
BUCKET = 64 * 2**20  # [bytes] of tensors that travel together
FORM_S = 20.0  # for members that have all come to the door to connect to one another
LOOK = timedelta(seconds=0.25)  # between two looks whether a rank has left, where an operation takes so long
UNFINISHED = "Operation timed out"  # what gloo says of one that is still under way then
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
    """A collective operation of a group under way."""

    def __init__(self, group: "Group", work: dist.Work | None) -> None:
        self._group = group
        self._work = work

    def wait(self) -> None:
        if self._work is not None:
            self._group.wait(self._work)


class Group:
    """One rank's hold of its group. A rank alone has no peers, and nothing is sent.

    Collective operations must be made by all ranks in the same order; they raise GroupLost when one is gone.
    """

    def __init__(
        self, number: int, rank: int, size: int, peers: Peers | None, host: str = "127.0.0.1", looks: bool = True
    ) -> None:
        """`looks`: may an operation be waited for with a time-out? NCCL's block the host then."""
        self.number = number
        self.rank = rank
        self.size = size
        self.peers = peers
        self.host = host
        self._looks = looks
        self._left = False

    @classmethod
    def alone(cls, number: int = 0) -> "Group":
        """That of a rank which nobody else belongs to."""
        return cls(number, 0, 1, None)

    def sum(self, tensor: Tensor) -> Work:
        """Begin to add up `tensor` over all ranks, in place."""
        if self.size == 1:
            return Work(self, None)
        return Work(self, guarded(lambda: dist.all_reduce(tensor, async_op=True)))

    def wait(self, work: dist.Work) -> None:
        """Wait for a collective operation, but not for a rank that has left the group.

        Ranks that leave close their lines; gloo's connections stay open as long as anything refers to them, and a rank
        that is no neighbour of a dead one would learn nothing.
        """
        left = False
        while True:
            try:
                if self._looks:
                    work.wait(LOOK)
                else:
                    work.wait()  # on a device this only enqueues, and with a time-out it would not
                return
            except RuntimeError as error:
                if self._looks and UNFINISHED in str(error):
                    if left:
                        raise GroupLost("a rank has left in the middle of a step") from error
                    left = self.peers is not None and self.peers.lost()  # it may have done its part: one look more
                    continue
                if is_loss(error):
                    raise GroupLost(str(error)) from error
                raise

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
        for bucket in _buckets([leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]):
            flat = flatten(bucket)
            self.wait(guarded(partial(_world().broadcast, flat, source)))
            if self.rank != source:
                torch._foreach_copy_(bucket, unflatten(flat, bucket))
        return tree_unflatten(leaves, structure)

    def abort(self) -> None:
        """End what this rank waits for: NCCL's operations never do when a rank is dead. From another thread."""
        if not self._left:
            _abort_process_group()

    def leave(self) -> None:
        """Close all lines, so that ranks that wait for this one learn it at once; whatever state the group is in."""
        if self.peers is None or self._left:
            return
        self._left = True
        self.peers.close()
        _destroy()


class _Shape:
    """Stands for a tensor whose values travel apart."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, kind: str) -> None:
        self._shape, self._dtype, self._kind = shape, dtype, kind

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(self._shape, dtype=self._dtype, device=device if self._kind != "cpu" else "cpu")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device, at most `BUCKET` together unless one alone has more."""
    for place in sorted({(t.device.type, str(t.dtype)) for t in tensors}):
        bucket: list[Tensor] = []
        for tensor in (t for t in tensors if (t.device.type, str(t.dtype)) == place):
            if bucket and sum(t.nbytes for t in bucket) + tensor.nbytes > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


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
        _set_pg_timeout(timedelta(seconds=TIMEOUT_S), _world())
        peers = Peers(PrefixStore(f"peers/{of.number}", store), of.rank, of.size, host)
    except RuntimeError as error:
        _destroy()
        if is_loss(error):
            raise GroupLost(str(error)) from error
        raise
    return Group(of.number, of.rank, of.size, peers, host, looks=backend == "gloo")


def _destroy() -> None:
    """Let go of the process group, if there is one, without waiting for anything."""
    if not dist.is_initialized():
        return
    kept = [_world()]
    dist.destroy_process_group()
    # the last to let go of a gloo group waits for what is under way in it, up to its time-out
    threading.Thread(target=kept.clear, name="trimtab-leave", daemon=True).start()


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world
