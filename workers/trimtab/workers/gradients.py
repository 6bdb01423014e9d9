"""Squared norms of the gradients that make up a step, and of their mean, which is applied.

From both the gradient noise scale is estimated (McCandlish et al. 2018, arXiv:1812.06162, appendix A). No function
here waits for a device: results are detached 0-dim tensors, read later by whoever ships them, or plain numbers where
the gradients lie on the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trimtab.workers.sync.strategy import flatten

Seconds = float | Callable[[], float]  # a callable waits for the device, so call it off the training thread


@dataclass(frozen=True, slots=True)
class Measured:
    """What one step showed on this rank."""

    local_sq: Tensor | float  # (), mean of |g_k|^2 over this rank's gradients, before any reduction
    grad_sq: Tensor | float  # (), |g|^2 of the gradient to be applied
    gradients: int  # how many they were, each over the same number of samples
    reduce_time: Seconds  # from the first bucket's start to the last one's end; 0 without a reduction
    mean_sq: float | None = None  # |mean gradient|^2 over ranks that apply each its own, where it was measured
    cost_s: float = 0.0  # what measuring took on the host


class Waits(Protocol):
    def wait(self) -> object: ...


class GradientMonitor(Protocol):
    """Measures each step: `collect` after every backward, `finish` after the last, which leaves the sum in `.grad`."""

    weight: float  # of this rank's gradient in the mean: b_k * R / B in a short last step, else 1
    loss_scale: float  # what to multiply each loss by before backward

    def collect(self, share: float) -> None:
        """Note a micro-batch whose loss was multiplied by `share` (its part of the samples of this rank's step)."""

    def finish(self) -> Measured:
        """What the step showed; begins the next."""


class RankMonitor:
    """One gradient a rank, measured in DDP's communication hook between backward and all-reduce.

    The result of a step is bit-identical to DDP's own, which multiplies by 1/R too. Where R is a power of two the loss
    is multiplied instead, which rounds nothing and saves a pass over all gradients (1 to 2 % of a 20 ms step).
    Micro-batches before the last run under `no_sync`, so that what the hook sees is the mean over the rank's samples.
    """

    def __init__(self, model: DistributedDataParallel, wait: Callable[[dist.Work], object] = dist.Work.wait) -> None:
        """`wait` waits for a sum. Raises ValueError unless gradients are views of DDP's buckets, where sums appear."""
        if not model.gradient_as_bucket_view:
            raise ValueError("DistributedDataParallel needs gradient_as_bucket_view=True to be measured")
        self.weight = 1.0
        self._wait = wait
        self._group = model.process_group
        ranks = self._group.size()
        self.loss_scale = 1 / ranks if ranks.bit_count() == 1 else 1.0
        self._rest = 1 / (ranks * self.loss_scale)
        device = next(p.device for p in model.parameters() if p.requires_grad)
        self._devices: list[int | str | torch.device] = [] if device.type == "cpu" else [device]
        self._clock: _HostClock | _DeviceClock = _DeviceClock() if self._devices else _HostClock()
        self._cost_s = 0.0
        self._buckets: list[tuple[Tensor, Tensor | float, dist.Work]] = []  # gradient, |gradient|^2 before the sum, it
        self._failed: RuntimeError | None = None  # kept for `finish`: raised in the hook it would end the process
        model.register_comm_hook(None, self._reduce)

    def collect(self, share: float) -> None:
        pass

    def finish(self) -> Measured:
        local_sq: Tensor | float = 0.0
        grad_sq: Tensor | float = 0.0
        if self._failed is not None:
            raise self._failed
        for gradient, before, work in self._buckets:  # in DDP's order, so that all ranks round alike
            self._wait(work)  # on a device this only enqueues
            local_sq, grad_sq = local_sq + before, grad_sq + self._squared(gradient)
        self._clock.stop()
        cost_s, self._cost_s = self._cost_s, 0.0
        return Measured(local_sq / self.loss_scale**2, grad_sq, 1, self._clock.elapsed(), cost_s=cost_s)

    def _reduce(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Begin the sum, for which `finish` waits, and tell DDP that it has ended: it lies in the very same buffer.

        Given gloo's own future DDP would wait for a call back into Python on gloo's thread, 1 % of a 20 ms step.
        """
        gradient = bucket.buffer()
        if bucket.index() == 0:
            self._clock.start()
            self._buckets.clear()
        before = self._squared(gradient)
        if (factor := self.weight * self._rest) != 1:
            gradient.mul_(factor)  # div_ rounds otherwise than DDP at 3 ranks
        try:
            self._buckets.append((gradient, before, self._group.allreduce([gradient])))
        except RuntimeError as error:
            self._failed = error
        ended: torch.futures.Future[Tensor] = torch.futures.Future(devices=self._devices)
        ended.set_result(gradient)
        return ended

    def _squared(self, gradient: Tensor) -> Tensor | float:
        """A number where it is free: small tensor operations cost 20 to 50 µs each on the host."""
        start = perf_counter()
        square = squared(gradient)
        answer = square if self._devices else square.item()
        self._cost_s += perf_counter() - start
        return answer


class LocalMonitor:
    """One gradient a rank, which applies its own: where replicas train apart and average their parameters.

    There is no mean gradient then. Every `every` steps (0: never) the ranks add theirs up once more, which is what the
    noise scale needs; at other steps it is not measured.
    """

    def __init__(self, parameters: Sequence[Tensor], add: Callable[[Tensor], Waits], ranks: int) -> None:
        """`add` begins to add up a tensor over the ranks."""
        self.weight = self.loss_scale = 1.0
        self.every = 0
        self._parameters = list(parameters)
        self._add = add
        self._ranks = ranks
        self._steps = 0

    def collect(self, share: float) -> None:
        pass

    @torch.no_grad()
    def finish(self) -> Measured:
        start = perf_counter()
        own = gradient_norm(self._parameters).square()
        self._steps += 1
        mean_sq = None
        if self.every and self._steps % self.every == 0:
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
            mean = flatten(gradients).mul_(self.weight / self._ranks)
            self._add(mean).wait()
            mean_sq = float(squared(mean))
        if self.weight == 0:  # no sample of a short last step is this rank's
            torch._foreach_zero_([p.grad for p in self._parameters if p.grad is not None])
        return Measured(own, own, 1, 0.0, mean_sq, perf_counter() - start)


class MicroMonitor:
    """One gradient a micro-batch, for a rank alone: keeps the sum itself so that each backward leaves a fresh gradient.

    Adds in autograd's order, so that a step is bit-identical to plain accumulation.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.weight = self.loss_scale = 1.0  # a rank alone has all the samples of a short step
        self._parameters = list(parameters)
        self._sums: dict[int, Tensor] = {}  # by the parameter's place
        self._squares: list[Tensor] = []
        self._cost_s = 0.0

    @torch.no_grad()
    def collect(self, share: float) -> None:
        start = perf_counter()
        fresh = {i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None}
        self._squares.append((get_total_norm(list(fresh.values())) / share).square())
        both = [i for i in fresh if i in self._sums]
        if both:
            torch._foreach_add_([self._sums[i] for i in both], [fresh[i] for i in both])
        self._sums = fresh | self._sums
        for parameter in self._parameters:
            parameter.grad = None
        self._cost_s += perf_counter() - start

    def finish(self) -> Measured:
        start = perf_counter()
        for i, gradient in self._sums.items():
            self._parameters[i].grad = gradient
        squares, self._squares, self._sums = self._squares, [], {}
        local_sq, grad_sq = torch.stack(squares).mean(), gradient_norm(self._parameters).square()
        cost_s, self._cost_s = self._cost_s + perf_counter() - start, 0.0
        return Measured(local_sq, grad_sq, len(squares), 0.0, cost_s=cost_s)


@torch.no_grad()
def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """The 2-norm, (), of all gradients together: one fused pass."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len({(g.device, g.dtype) for g in gradients}) != 1:
        return get_total_norm(gradients)
    norms = torch.stack(torch._foreach_norm(gradients))
    return cast(Tensor, torch.linalg.vector_norm(norms))  # as get_total_norm, bit for bit, but without its sorting


def clip_gradients(parameters: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients so that `norm`, as `gradient_norm` gave it, becomes at most `max_norm`."""
    clip_grads_with_norm_(parameters, max_norm, norm)


def squared(gradient: Tensor) -> Tensor:
    """|gradient|^2, (), in float32 or wider: a half's squares would overflow."""
    gradient = gradient.detach()
    if gradient.dtype in (torch.float16, torch.bfloat16):
        return cast(Tensor, torch.linalg.vector_norm(gradient, dtype=torch.float32).square())
    return gradient.dot(gradient)


class _HostClock:
    def __init__(self) -> None:
        self._begin = self._end = 0.0

    def start(self) -> None:
        self._begin = self._end = perf_counter()

    def stop(self) -> None:
        self._end = perf_counter()

    def elapsed(self) -> Seconds:
        return self._end - self._begin


class _DeviceClock:
    """CUDA events, since a collective has only been enqueued when its future is done."""

    def __init__(self) -> None:
        self._begin = self._end = _event()

    def start(self) -> None:
        self._begin = _event()
        self._begin.record()

    def stop(self) -> None:
        self._end = _event()
        self._end.record()

    def elapsed(self) -> Seconds:
        begin, end = self._begin, self._end

        def seconds() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        return seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
