"""Several learners in one process, in lockstep: replicas that are averaged, or one model on the mean of k gradients.

The strategies are Trimtab's own, over `threads`; the k gradients of `allreduce` are computed one after the other, as k
devices would, and their mean is applied, which gives the gradient noise scale along. The stream of samples is cut
among the learners as among ranks.

Modelled time is `lockstep`'s: a device takes `OVERHEAD_S` for a step and `SAMPLE_S` for each of *its* samples. Each
learner has a device, all work at once, and communication is free, with either way of keeping them together.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol

import numpy as np
import torch
from lockstep import OVERHEAD_S, SAMPLE_S, Task, cached
from threads import Meeting
from torch import Tensor, nn
from torch.optim import SGD

from trimtab.controller.noise import NoiseEstimator
from trimtab.controller.sync import STRATEGIES
from trimtab.workers.gradients import MicroMonitor
from trimtab.workers.stream import SampleStream, shard
from trimtab.workers.sync.sma import ModelAveraging

Way = Literal["allreduce", "sma, centre", "sma, mean"]

LOOKS = 3  # the target is reached when the median of so many looks in succession is there
HELD = 5_000  # [samples] looked at
WARM_UP = 0.05  # of the horizon: the learning rate rises linearly, then falls to 0 along a cosine
HOPELESS = 0.5  # an error that is not lower after a quarter of the horizon ends a run


@dataclass(frozen=True, slots=True)
class Trial:
    """One run to be made."""

    way: Way
    learners: int
    batch: int  # [samples] of each learner
    lr: float
    seed: int


@dataclass(slots=True)
class Result:
    """What one run showed; the `to` figures are None where the target was not reached."""

    trial: Trial
    best: float | None = None  # lowest median of LOOKS looks; None: none was finite
    samples_to: int | None = None
    epochs_to: float | None = None
    steps_to: int | None = None
    modelled_s_to: float | None = None
    noise_scale: float | None = None  # [samples] at the end; of `allreduce` with two learners or more
    samples: int = 0  # in all
    cpu_s: float = 0.0


class Learners(Protocol):
    def step(self, number: int, inputs: Sequence[Tensor], labels: Sequence[Tensor], lr: float) -> None:
        """Make step `number` with a part of the batch for each learner."""

    def model(self) -> Sequence[Tensor]:
        """The parameters that are evaluated."""


class Gradients:
    """`allreduce`: the mean of the learners' gradients, applied to one model, as all replicas are equal."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        self.noise = NoiseEstimator()
        self._task, self._model = task, model
        self._parameters = list(model.parameters())
        self._optimizer = SGD(self._parameters, lr=1.0, momentum=0.9)
        self._monitor = MicroMonitor(self._parameters)

    def step(self, number: int, inputs: Sequence[Tensor], labels: Sequence[Tensor], lr: float) -> None:  # noqa: ARG002
        learners, batch = len(inputs), len(inputs[0])
        for x, y in zip(inputs, labels, strict=True):
            (self._task.loss(self._model, x, y) / learners).backward()
            self._monitor.collect(1 / learners)
        measured = self._monitor.finish()
        figures = (float(measured.local_sq), batch, float(measured.grad_sq), batch * learners)
        self.noise.update(*(np.array([figure], np.float64) for figure in figures))
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def model(self) -> Sequence[Tensor]:
        return self._parameters


class Replicas:
    """`sma`: learners that train on their own, each with its optimizer, and are averaged at every step."""

    def __init__(self, task: Task, models: Sequence[nn.Module], form: str) -> None:
        self._task, self._models = task, models
        options = {option.name: option.default for option in STRATEGIES["sma"]} | {"sma_form": form}
        self._optimizers = [SGD(model.parameters(), lr=1.0, momentum=0.9) for model in models]
        self._strategies = [
            ModelAveraging(list(model.parameters()), [], ranks, options.__getitem__)
            for model, ranks in zip(models, Meeting(len(models)).ranks(), strict=True)
        ]

    def step(self, number: int, inputs: Sequence[Tensor], labels: Sequence[Tensor], lr: float) -> None:
        for model, optimizer, x, y in zip(self._models, self._optimizers, inputs, labels, strict=True):
            self._task.loss(model, x, y).backward()
            optimizer.param_groups[0]["lr"] = lr
        for strategy in self._strategies:
            strategy.before_update(number)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for strategy in self._strategies:
            strategy.after_update(number)

    def model(self) -> Sequence[Tensor]:
        with ThreadPoolExecutor(len(self._strategies)) as pool:  # it is a collective
            first, *_ = pool.map(lambda strategy: strategy.consensus(), self._strategies)
            return first


def run(task: Task, trial: Trial, limit: float = math.inf) -> Result:
    """Train until the target is reached, at most to the horizon's end or for `limit` [samples]."""
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed)
    first = task.model()
    learners: Learners
    if trial.way == "allreduce":
        learners = gradients = Gradients(task, first)
    else:
        copies = [task.model() for _ in range(trial.learners - 1)]
        for copy in copies:
            copy.load_state_dict(first.state_dict())
        learners, gradients = Replicas(task, [first, *copies], trial.way.removeprefix("sma, ")), None
    begin = time.process_time()
    result = train(task, trial, learners, limit)
    result.cpu_s = time.process_time() - begin
    result.noise_scale = gradients.noise.noise().value if gradients else None
    return result


def train(task: Task, trial: Trial, learners: Learners, limit: float) -> Result:
    inputs, labels, *held = cached(task.data)
    held = [part[:HELD] for part in held]
    stream, shown = SampleStream(len(inputs), trial.seed), task.model()
    result, looks, steps = Result(trial), list[float](), 0
    while result.samples < min(task.samples, limit):
        rows = [
            torch.from_numpy(stream.indices(shard(result.samples, learner, trial.learners, trial.batch)))
            for learner in range(trial.learners)
        ]
        lr = trial.lr * decay(result.samples / task.samples)
        steps += 1
        learners.step(steps, [inputs[part] for part in rows], [labels[part] for part in rows], lr)
        before, result.samples = result.samples, result.samples + trial.batch * trial.learners
        if result.samples // task.every == before // task.every:
            continue
        looks.append(look(task, shown, learners.model(), held))
        error = median(looks[-LOOKS:]) if all(map(math.isfinite, looks)) else math.inf
        if error == math.inf or (error > HOPELESS and result.samples > task.samples / 4):
            break
        if len(looks) < LOOKS:
            continue
        result.best = min(error, result.best or math.inf)
        if error <= task.target:
            result.samples_to, result.steps_to = result.samples, steps
            result.epochs_to = result.samples / len(inputs)
            result.modelled_s_to = steps * (OVERHEAD_S + SAMPLE_S * trial.batch)
            break
    return result


def decay(done: float) -> float:
    """What the learning rate is multiplied by after a share `done` of the horizon."""
    return min(1.0, done / WARM_UP + 0.01) * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def look(task: Task, shown: nn.Module, parameters: Sequence[Tensor], held: Sequence[Tensor]) -> float:
    for parameter, value in zip(shown.parameters(), parameters, strict=True):
        parameter.copy_(value)
    return task.error(shown.eval(), *held)
