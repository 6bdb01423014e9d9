"""What is trained on a rank: the model, its optimizer, and what keeps them together with the other ranks'."""

import gc
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trimtab.controller.trajectory import Scalar
from trimtab.workers.gradients import (
    GradientMonitor,
    LocalMonitor,
    Measured,
    MicroMonitor,
    RankMonitor,
    clip_gradients,
    gradient_norm,
)
from trimtab.workers.group import Group, guarded
from trimtab.workers.replica import Replica
from trimtab.workers.sync import STRATEGIES, Strategy


class Training:
    """One rank's model and optimizer. A formation begins with `form` and ends with `part`."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        device: torch.device,
        values: Mapping[str, Scalar],
        find_unused_parameters: bool = False,
    ) -> None:
        """`values` are those in force, which change as training goes on."""
        self.module = module
        self.optimizer = optimizer
        self.replica = Replica(module, device)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._named: list[tuple[str, Tensor]] = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self._named += [(name, b) for name, b in module.named_buffers() if b.is_floating_point()]
        self.device = device
        self._values = values
        self._find_unused = find_unused_parameters
        self._formed = False
        self._group: Group
        self.strategy: Strategy
        self.monitor: GradientMonitor

    def form(self, group: Group, strategy: str, equal: bool) -> None:
        """Train with `group` from here on. `equal`: the replicas are known to be; else rank 0's becomes everyone's."""
        self._group = group
        kind = STRATEGIES[strategy]
        if group.size > 1 and kind.reduces:
            # buffers are not broadcast: a lost rank would then show in the user's forward pass, not in `step`
            with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # older torch has no other name
                parallel = guarded(
                    lambda: DistributedDataParallel(
                        self.module,
                        init_sync=not equal,
                        broadcast_buffers=False,
                        find_unused_parameters=self._find_unused,
                        gradient_as_bucket_view=True,  # saves a copy of all gradients
                    )
                )
            self.replica.exchange(parallel)
            self.monitor = RankMonitor(parallel, group.wait)
        elif group.size > 1:
            self._equalise(equal)
            self.monitor = LocalMonitor(self.parameters, group.sum, group.size)
        else:
            self.monitor = MicroMonitor(self.parameters)
        buffers = [tensor for _, tensor in self._named[len(self.parameters) :]]
        self.strategy = kind(self.parameters, buffers, group, self._values.__getitem__)
        self.replica.centre = self._centre
        self._formed = True

    def _equalise(self, equal: bool) -> None:
        if not equal:
            self.module.load_state_dict(self._group.share(self.module.state_dict(), 0, self.device))

    def part(self) -> None:
        """The group is about to be left; what it made of gradients in the step under way is void."""
        if not self._formed:
            return
        self._formed = False
        self.strategy.close()
        self.replica.exchange(None)
        del self.monitor
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()  # DDP's hooks on the parameters end with it; a second one beside them would reduce twice

    def switch(self, strategy: str, moments: Scalar | None) -> None:
        """Another strategy, at this step on all ranks; replicas first become equal, and so do optimizers' states.

        `moments` says whether those are averaged, or cleared.
        """
        self.level()
        if not self.strategy.reduces and self._group.size > 1:
            if moments == "clear":
                self.optimizer.state.clear()
            else:
                self._average_moments()
        self.part()
        self.form(self._group, strategy, equal=True)

    @torch.no_grad()
    def level(self) -> None:
        """Make all replicas the one that stands for them: some are about to go, or to be joined. Collective."""
        agreed = self.strategy.consensus()
        for (_, tensor), value in zip(self._named, agreed, strict=True):
            if tensor is not value:
                tensor.copy_(value)

    @torch.no_grad()
    def _average_moments(self) -> None:
        """The mean over the ranks of every floating-point tensor that the optimizer keeps."""
        kept = (value for p in self.parameters for value in self.optimizer.state.get(p, {}).values())
        tensors = [value for value in kept if isinstance(value, Tensor) and value.is_floating_point() and value.dim()]
        if not tensors:
            return
        torch._foreach_copy_(tensors, self.strategy.mean(tensors))

    def anew(self, sync: Mapping[str, Any] | None) -> None:
        """The replica is that of a checkpoint, on all ranks: let the strategy begin from there."""
        if not self.strategy.reduces:
            name = self.strategy.name
            self.part()
            self.form(self._group, name, equal=True)
            self.follow(sync)

    def _centre(self) -> Mapping[str, Tensor] | None:
        centre = self.strategy.centre
        return None if centre is None else {name: c for (name, _), c in zip(self._named, centre, strict=True)}

    def finish(self) -> Measured:
        """All gradients of the step are there."""
        if isinstance(self.monitor, LocalMonitor):
            self.monitor.every = int(self._values.get("noise_every", 0))
        return guarded(self.monitor.finish)

    def update(self, step: int, limit: float) -> None:
        """Make step `step` (from 1) with gradients of a norm of at most `limit`; 0 leaves the optimizer's part out."""
        self.strategy.before_update(step)
        if limit > 0:
            if limit < math.inf:
                clip_gradients(self.parameters, limit, gradient_norm(self.parameters))
            self.optimizer.step()
        self.strategy.after_update(step)
        self.optimizer.zero_grad(set_to_none=True)

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint holds of it: the model that stands for all replicas. Collective."""
        agreed = {id(tensor): value for (_, tensor), value in zip(self._named, self.strategy.consensus(), strict=True)}
        model = self.module.state_dict(keep_vars=True)  # the very tensors, of which one may go by several names
        return {
            "model": {name: _plain(agreed.get(id(value), value)) for name, value in model.items()},
            "optimizer": self.optimizer.state_dict(),
            "sync": self.sync_state(),
        }

    def state(self, sync: Mapping[str, Any] | None) -> dict[str, Any]:
        """This rank's own, for one that is behind or new; nothing is sent. `sync` is what `sync_state` said before the
        group was left, since the strategy ends with it."""
        return {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "sync": sync}

    def sync_state(self) -> dict[str, Any] | None:
        """What the strategy says of itself; None before there was one."""
        return {"strategy": self.strategy.name, **self.strategy.state()} if self._formed else None

    def load(self, state: Mapping[str, Any]) -> None:
        """Model and optimizer as `checkpoint` or `state` gave them; the strategy's part goes to `follow`."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def follow(self, state: Mapping[str, Any] | None) -> None:
        """Let the strategy go on from what it said of itself, if it is still the same."""
        if state and state["strategy"] == self.strategy.name:
            self.strategy.load({key: value for key, value in state.items() if key != "strategy"})


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
