"""The strategy `sma`: replicas train on their own and are drawn together, towards a central model or their mean.

Synchronous model averaging (Koliousis et al., "Crossbow", VLDB 2019, algorithm 1), and the variant without a central
model of KungFu (Mai et al., OSDI 2020).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.workers.sync.strategy import Option, Pending, Ranks, Strategy, flatten, unflatten

__all__ = ["ModelAveraging"]

MEAN_ALPHA = 0.1  # KungFu's


@dataclass(frozen=True, slots=True)
class _Round:
    """One averaging, between `before_update` and `after_update`."""

    own: Tensor  # centre: c_j, (trained,); mean: w_j before its step, (elements,)
    total: Tensor  # (elements,), what is being added up over the ranks
    alpha: float
    pending: Pending


class ModelAveraging(Strategy):
    """Each `sma_every` steps, with k replicas w_j and, in the form `centre`, a central model z with its momentum Δ:

        centre:  c_j = α (w_j - z)           w_j ← local step(w_j) - c_j     Δ ← Σ_j c_j + μ Δ     z ← z + Δ
        mean:    c_j = α (w_j - mean(w))     w_j ← local step(w_j) - c_j

    w_j in c_j is the replica before its local step, so that the sum over the ranks overlaps with that step. z and Δ
    come from the same sums on every rank and stay equal bit for bit. α is 1/k by default, 0.1 in the form `mean`.

    Buffers are summed along. The central model's are the means over the replicas, which keep their own: BatchNorm's
    statistics are not read in training, and a constant that was averaged over and over could drift. In the form
    `mean`, where the replicas are all there is, they are drawn together as the parameters are.

    A change of `sma_form` is a switch of strategy in small: from `centre` every replica becomes z, to it their mean.
    """

    name: ClassVar[str] = "sma"

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], ranks: Ranks, option: Option) -> None:
        super().__init__(parameters, buffers, ranks, option)
        self._trained = sum(parameter.numel() for parameter in parameters)
        self._model: Tensor | None = None  # (elements,), z and then the mean buffers; None in the form `mean`
        self._velocity: Tensor | None = None  # (trained,), Δ
        self._round: _Round | None = None
        if option("sma_form") == "centre":
            self._begin(flatten(self._tensors))

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        self._take_form()
        if step % int(self._option("sma_every")):
            return
        alpha, total = self._alpha(), flatten(self._tensors)
        own = total
        if self._model is not None:
            own = total[: self._trained]
            own.sub_(self._model[: self._trained]).mul_(alpha)
        self._round = _Round(own.clone(), total, alpha, self._ranks.sum(total))

    @torch.no_grad()
    def after_update(self, step: int) -> None:  # noqa: ARG002
        if self._round is None:
            return
        now, self._round = self._round, None
        now.pending.wait()
        moved, correction = self._tensors, now.own
        if self._model is not None and self._velocity is not None:
            total, buffers = now.total[: self._trained], now.total[self._trained :]
            moved = self._parameters
            self._velocity.mul_(float(self._option("sma_momentum"))).add_(total)
            self._model[: self._trained].add_(self._velocity)
            self._model[self._trained :].copy_(buffers.div_(self._ranks.size))
        else:
            correction.sub_(now.total.div_(self._ranks.size)).mul_(now.alpha)
        if now.alpha:  # 0 leaves every bit, the sign of a zero too
            torch._foreach_sub_(moved, unflatten(correction, moved))

    @property
    def centre(self) -> Sequence[Tensor] | None:
        return None if self._model is None else unflatten(self._model, self._tensors)

    def consensus(self) -> Sequence[Tensor]:
        """The central model needs no communication."""
        centre = self.centre
        return self.mean(self._tensors) if centre is None else centre

    def restart(self) -> None:
        """The old rate's momentum would carry z away from what the new one finds (Crossbow, section 3.2)."""
        if self._model is not None:
            self._become(self._model)
            self._begin(self._model)

    def state(self) -> Mapping[str, Any]:
        """Nothing in the form `mean`."""
        if self._model is None or self._velocity is None:
            return {}
        return {"centre": self._model, "velocity": self._velocity}

    def load(self, state: Mapping[str, Any]) -> None:
        """`sma_form` may be another one than that of `state`: the next step changes it, on all ranks."""
        if "centre" not in state:
            self._model = self._velocity = None
            return
        device = self._tensors[0].device
        self._model = state["centre"].to(device, copy=True)
        self._velocity = state["velocity"].to(device, copy=True)
        self._become(self._model)

    def _alpha(self) -> float:
        alpha = float(self._option("sma_alpha"))
        if alpha >= 0:
            return alpha
        return MEAN_ALPHA if self._model is None else 1 / self._ranks.size

    def _take_form(self) -> None:
        """Collective where the form has become `centre`."""
        centred = self._option("sma_form") == "centre"
        if centred and self._model is None:
            model = flatten(self.mean(self._tensors))
            self._become(model)
            self._begin(model)
        elif not centred and self._model is not None:
            self._become(self._model)
            self._model = self._velocity = None

    def _begin(self, model: Tensor) -> None:
        self._model, self._velocity = model, torch.zeros_like(model[: self._trained])

    @torch.no_grad()
    def _become(self, model: Tensor) -> None:
        torch._foreach_copy_(self._tensors, unflatten(model, self._tensors))
