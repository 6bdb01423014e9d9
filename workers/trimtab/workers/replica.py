"""The model as the user's loop sees it: a stable wrapper whose inside may be exchanged."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map


class Replica(nn.Module):
    """This rank's copy of the model.

    Trains through DistributedDataParallel where there are several ranks and evaluates without it, so that one rank
    may evaluate alone; then it is the strategy's central model, where it has one. In bf16 the forward pass runs under
    autocast and its outputs are given back in float32.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.precision = "fp32"
        self._device = device.type
        self.centre: Callable[[], Mapping[str, Tensor] | None] = lambda: None  # by the names of the module's own
        self.exchange(None)

    @property
    def parallel(self) -> DistributedDataParallel | None:
        found: DistributedDataParallel | None = self.__dict__["_parallel"]
        return found

    def exchange(self, parallel: DistributedDataParallel | None) -> None:
        """Train through another from here on: that of a new group."""
        self.__dict__["_parallel"] = parallel  # not a submodule: the parameters would be listed twice

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.precision == "fp32":
            return self._forward(*args, **kwargs)
        with torch.autocast(self._device, torch.bfloat16):
            outputs = self._forward(*args, **kwargs)
        return tree_map(_full_precision, outputs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            inside = self.module if self.parallel is None else self.parallel
            return inside(*args, **kwargs)
        centre = self.centre()
        return (
            self.module(*args, **kwargs) if centre is None else functional_call(self.module, dict(centre), args, kwargs)
        )


def _full_precision(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
