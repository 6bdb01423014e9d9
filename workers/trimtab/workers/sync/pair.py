"""The strategy `pair`: at every step the mean with one peer's last model, whoever that is and whenever it was made.

Asynchronous decentralised SGD (Lian et al. 2018, "AD-PSGD", arXiv:1710.06952), with a bound on the staleness.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trimtab.workers.sync.published import Puller, Server, Shelf
from trimtab.workers.sync.strategy import Option, Ranks, Strategy, unflatten

__all__ = ["PairAveraging", "draw"]


class PairAveraging(Strategy):
    """A step: pull the model w_p that a peer, drawn uniformly, has published last; w ← (w + w_p) / 2; the local
    gradient, which was computed before, is applied; publish. Parameters and buffers alike.

    The pull is begun a step ahead and overlaps with the forward and backward pass. A peer may be `pair_staleness`
    updates behind this rank when its model is pulled; one further behind is waited for, otherwise nobody is. The
    updates are counted from the beginning of the formation, which is at one step on all ranks.

    The first pull waits for the peer to come to its first step: until then `load` may change the replica.
    """

    name: ClassVar[str] = "pair"

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], ranks: Ranks, option: Option) -> None:
        """Collective."""
        super().__init__(parameters, buffers, ranks, option)
        self._updates = 0
        self._staleness: int | None = None  # [updates] of the model pulled last
        self._asked = False
        if ranks.size > 1:
            self._shelf = Shelf()
            self._server = Server(ranks.host, self._shelf)
            self._puller = Puller(ranks.gather(self._server.place), self._tensors)

    @property
    def lag(self) -> int:
        return int(self._option("pair_staleness"))

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        if self._ranks.size == 1:
            return
        if not self._updates:
            self._shelf.publish(self._tensors, 0)
        if not self._asked:
            self._ask(step)
        updates, model = self._puller.take()
        self._asked = False
        self._staleness = max(0, self._updates - updates)
        torch._foreach_add_(self._tensors, unflatten(model, self._tensors))
        torch._foreach_mul_(self._tensors, 0.5)

    def after_update(self, step: int) -> None:
        if self._ranks.size == 1:
            return
        self._updates += 1
        self._shelf.publish(self._tensors, self._updates)
        self._ask(step + 1)

    def consensus(self) -> Sequence[Tensor]:
        return self.mean(self._tensors)

    def measured(self) -> Mapping[str, float]:
        """`staleness`: by how many updates the model pulled last was behind this rank; 0 also if it was ahead."""
        return {} if self._staleness is None else {"staleness": float(self._staleness)}

    def close(self) -> None:
        """Peers that pull from here afterwards lose the group: close when all have made the last step."""
        if self._ranks.size > 1:
            self._puller.close()
            self._server.close()

    def _ask(self, step: int) -> None:
        peer = draw(self._ranks.rank, self._ranks.size, step)
        self._puller.ask(peer, self._updates - int(self._option("pair_staleness")))
        self._asked = True


def draw(rank: int, size: int, step: int) -> int:
    """The peer of `rank` in step `step`, uniform over all others."""
    other = int(np.random.default_rng((rank, step)).integers(size - 1))
    return other + (other >= rank)
