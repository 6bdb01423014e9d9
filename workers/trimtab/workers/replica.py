"""The model as the user's loop sees it: a stable wrapper whose inside may be exchanged."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map


class Replica(nn.Module):
    """This rank's copy of the model.

    Trains through DistributedDataParallel where there are several ranks and evaluates without it, so that one rank
    may evaluate alone. In bf16 the forward pass runs under autocast and its outputs are given back in float32.
    """

    def __init__(self, module: nn.Module, parallel: DistributedDataParallel | None, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.precision = "fp32"
        self._device = device.type
        self.__dict__["_parallel"] = parallel  # not a submodule: the parameters would be listed twice

    @property
    def parallel(self) -> DistributedDataParallel | None:
        found: DistributedDataParallel | None = self.__dict__["_parallel"]
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inside = self.parallel if self.parallel is not None and torch.is_grad_enabled() else self.module
        if self.precision == "fp32":
            return inside(*args, **kwargs)
        with torch.autocast(self._device, torch.bfloat16):
            outputs = inside(*args, **kwargs)
        return tree_map(_full_precision, outputs)


def _full_precision(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
