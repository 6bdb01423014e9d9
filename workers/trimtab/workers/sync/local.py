"""The strategy `local`: some steps on one's own, then the mean of the replicas, with an outer optimizer if wanted.

Local SGD (Stich 2019, arXiv:1805.09767); the outer Nesterov step is DiLoCo's (Douillard et al. 2023, arXiv:2311.08105).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.workers.sync.strategy import Option, Ranks, Strategy, flatten, unflatten

__all__ = ["LocalSteps"]


class LocalSteps(Strategy):
    """After each step whose number `local_steps` divides the replicas w_j become one model, x:

        g = x - mean(w)        v ← m v + g        x ← x - lr (g + m v)        w_j ← x

    with lr = `outer_lr` and m = `outer_momentum`, as torch.optim.SGD with nesterov=True. lr = 1 and m = 0, the
    default, is x ← mean(w), and done as that. Buffers become their mean.
    """

    name: ClassVar[str] = "local"

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], ranks: Ranks, option: Option) -> None:
        super().__init__(parameters, buffers, ranks, option)
        self._synced = flatten(self._parameters)  # (trained,), x; kept always, as the outer step may be turned on
        self._velocity: Tensor | None = None  # (trained,), v; None: 0

    @property
    def lag(self) -> int:
        return int(self._option("local_steps"))

    def before_update(self, step: int) -> None:
        pass

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        if step % int(self._option("local_steps")):
            return
        model = flatten(self._tensors)
        self._ranks.sum(model).wait()
        model.div_(self._ranks.size)
        self._outer_step(model[: len(self._synced)])
        torch._foreach_copy_(self._tensors, unflatten(model, self._tensors))

    def consensus(self) -> Sequence[Tensor]:
        return self.mean(self._tensors)

    def state(self) -> Mapping[str, Any]:
        velocity = {} if self._velocity is None else {"velocity": self._velocity}
        return {"synced": self._synced, **velocity}

    def load(self, state: Mapping[str, Any]) -> None:
        """The replica stays: it may have made steps since x."""
        self._synced.copy_(state["synced"])
        velocity = state.get("velocity")
        self._velocity = None if velocity is None else velocity.to(self._synced.device, copy=True)

    def _outer_step(self, mean: Tensor) -> None:
        """Turn the mean of the replicas, (trained,), into x in place."""
        lr, momentum = float(self._option("outer_lr")), float(self._option("outer_momentum"))
        if (lr, momentum) == (1, 0):
            self._velocity = None
        else:
            gradient = self._synced - mean
            if self._velocity is None:
                self._velocity = torch.zeros_like(gradient)
            self._velocity.mul_(momentum).add_(gradient)
            mean.copy_(self._synced).sub_(gradient.add_(self._velocity, alpha=momentum), alpha=lr)
        self._synced.copy_(mean)
