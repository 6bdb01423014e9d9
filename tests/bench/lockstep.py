"""Training and control in one process, in lockstep: the same seed gives the same run, decision for decision.

The controller, its policies, the gradient monitor, the spike guard and the optimizer's live values are Trimtab's own;
only the workers' threads and Ray are left out, which make the step at which a decision arrives a matter of the
machine's load. The controller is asked after every `TICK_S` of *modelled* time; what it decides rules from the next
step on.

The model of time is that of a device which is not filled by small batches: a step takes `OVERHEAD_S`, and `SAMPLE_S`
for each sample. Processor time is measured beside it: that of the training steps and their measuring, not that of the
controller, which is a process of its own in a real run, nor that of looking at what is held out.

There is one rank, so every step is cut into two micro-batches at least, which the noise scale needs; fixed batches pay
for that too. Checkpoints are not kept: a policy that would go back cannot.
"""

import asyncio
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kungfu import KungFu
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trimtab.controller.controller import TICK_S, Controller, PolicySpec
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import HyperParameter, Version
from trimtab.controller.journal.memory import MemoryJournal
from trimtab.controller.observation import Horizon
from trimtab.controller.policies import Policy, kinds
from trimtab.controller.records import COLUMNS, Records
from trimtab.controller.trajectory import Progress
from trimtab.workers.apply import OptimizerValues
from trimtab.workers.gradients import MicroMonitor, clip_gradients
from trimtab.workers.guard import Guard
from trimtab.workers.stream import SampleStream

OVERHEAD_S = 0.005
SAMPLE_S = 2e-5  # 50,000 samples/s with large batches; half of it at 250 samples a step
LARGEST = 1024  # [samples] batch that a policy may choose
RUN = "bench"
GUARDS = ("grad_clip", "skip_sigma", "zclip")
SHIPPED = (*COLUMNS, "hp/batch_size", "hp/lr")

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and labels, then those held out

# Built in, for this process: a policy in a process of its own answers when it can, which no second run would repeat.
cast(dict[str, type[Policy]], kinds()).setdefault(KungFu.kind, KungFu)


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, how far, and what counts as reached."""

    name: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    error: Callable[[nn.Module, Tensor, Tensor], float]  # on what is held out; a policy sees it as val_loss
    target: float  # reached at this error or less
    adam: bool  # else SGD with momentum 0.9
    samples: int  # the horizon
    every: int  # [samples] between two looks at what is held out


@dataclass(frozen=True, slots=True)
class Trial:
    """One run to be made."""

    task: str
    label: str
    batch: int  # [samples], at the start
    lr: float  # at the start
    seed: int
    policies: tuple[tuple[str, Mapping[str, Any]], ...] = ()  # kind and parameters of each


@dataclass(slots=True)
class Result:
    """What one run showed; the `to` figures are None where the target was not reached."""

    trial: Trial
    best: float | None = None  # lowest error seen; None: none was finite
    samples_to: int | None = None
    steps_to: int | None = None
    cpu_s_to: float | None = None  # of processor time
    modelled_s_to: float | None = None
    steps: int = 0  # in all
    samples: int = 0
    cpu_s: float = 0.0
    batches: list[tuple[int, int]] = field(default_factory=list)  # (samples, batch from there on)


def run(task: Task, trial: Trial, limit_s: float = math.inf) -> Result:
    """Train until the target is reached, the horizon's end, an error that is not finite, or `limit_s` modelled."""
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed)
    model = task.model()
    parameters = model.parameters()
    optimizer: Optimizer = (
        AdamW(parameters, lr=trial.lr, weight_decay=0.01) if task.adam else SGD(parameters, lr=trial.lr, momentum=0.9)
    )
    with tempfile.TemporaryDirectory() as folder:
        lockstep = _Lockstep(task, trial, model, optimizer, Path(folder))
        lockstep.train(limit_s)
        return lockstep.result


class _Lockstep:
    def __init__(self, task: Task, trial: Trial, model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
        self.result = Result(trial)
        self._task, self._model, self._optimizer = task, model, optimizer
        self._data = cached(task.data)
        self._stream = SampleStream(len(self._data[0]), trial.seed)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._monitor = MicroMonitor(self._parameters)
        self._live = OptimizerValues(optimizer)
        self._guard = Guard()
        self._progress = Progress()
        self._now = self._ticked = 0.0  # modelled [s]
        self._controller = Controller(MemoryJournal(), folder, clock=lambda: self._now)
        self._version = self._begin(trial)
        self._rows: list[list[float]] = []  # (steps, columns), as the others since the last tick
        self._marks: list[tuple[int, int, float]] = []  # steps, samples, time
        self._logged: dict[str, list[tuple[int, float]]] = {}

    def _begin(self, trial: Trial) -> Version:
        batch = HyperParameter(name="batch_size", kind="integer", default=trial.batch, min=2, max=LARGEST)
        spec = RunSpec(
            name=RUN,
            world_size=1,
            parameters=(batch,),
            micro_batch=max(1, trial.batch // 2),
            max_micro_batch=LARGEST // 2,
            horizon=Horizon(self._task.samples),
            seed=trial.seed,
        )
        policies = [PolicySpec(name=kind, kind=kind, params=params) for kind, params in trial.policies]
        self._controller.create_run(RUN, spec, policies)
        self._formation = self._controller.start_formation(RUN, 1, Progress()).number
        declared = [*self._live.discover(), *(HyperParameter(name=name, default=0.0, min=0.0) for name in GUARDS)]
        return self._controller.register(RUN, self._formation, declared, self._live.lr_rule, len(self._data[0]))

    def train(self, limit_s: float) -> None:
        result, task, looks = self.result, self._task, 0
        while self._progress.samples < task.samples and self._now < limit_s and not self._version.stopped:
            begin = time.process_time()
            self._step()
            result.cpu_s += time.process_time() - begin
            samples = self._progress.samples
            if samples // task.every > looks or samples >= task.samples:
                looks = samples // task.every
                error = self._look()
                if error <= task.target:
                    result.samples_to, result.steps_to = samples, self._progress.steps
                    result.cpu_s_to, result.modelled_s_to = result.cpu_s, self._now
                if error <= task.target or not math.isfinite(error):
                    break
            if self._now - self._ticked >= TICK_S:
                self._tell()
        result.steps, result.samples = self._progress.steps, self._progress.samples

    def _step(self) -> None:
        settings = self._version.at(self._progress)
        plan, values = settings.plan, settings.values
        self._live.apply(values)
        batch, share = plan.batch_size, 1 / plan.accumulation
        if not self.result.batches or batch != self.result.batches[-1][1]:
            self.result.batches.append((self._progress.samples, batch))
        rows = torch.from_numpy(self._stream.indices(np.arange(batch) + self._progress.samples))
        loss_sum = 0.0
        for part in rows.split(plan.micro_batch):
            loss = self._task.loss(self._model, self._data[0][part], self._data[1][part])
            (loss * share).backward()
            self._monitor.collect(share)
            loss_sum += loss.item() * share
        measured = self._monitor.finish()
        norm = math.sqrt(float(measured.grad_sq))
        self._update(norm, values, batch)
        took = OVERHEAD_S + SAMPLE_S * batch
        self._now += took
        self._progress = Progress(self._progress.steps + 1, self._progress.samples + batch)
        sizes = (float(plan.micro_batch), float(batch))
        lr = float(values["lr"])
        self._rows.append([loss_sum, norm, float(measured.local_sq), *sizes, took, 0.0, 0.0, float(batch), lr])
        self._marks.append((self._progress.steps, self._progress.samples, self._now))

    def _update(self, norm: float, values: Mapping[str, Any], batch: int) -> None:
        """As a session does: a step that is not finite or a spike is left out."""
        limit = 0.0
        if math.isfinite(norm):
            clip, sigma, zclip = (float(values[name]) for name in GUARDS)
            limit = min(clip or math.inf, self._guard.limit(norm, batch, sigma, zclip))
        if limit == 0:
            self._log("skipped_step", 1.0, self._progress.steps + 1)
        else:
            if limit < math.inf:
                clip_gradients(self._parameters, limit, torch.tensor(norm))
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _look(self) -> float:
        self._model.eval()
        error = self._task.error(self._model, *self._data[2:])
        self._model.train()
        self._log("val_loss", error, self._progress.steps)
        if math.isfinite(error):
            self.result.best = error if self.result.best is None else min(self.result.best, error)
        return error

    def _log(self, name: str, value: float, step: int) -> None:
        self._logged.setdefault(name, []).append((step, value))

    def _tell(self) -> None:
        """Ship what has been noted, as one message, and take the newest version."""
        steps, samples, times = zip(*self._marks, strict=True)
        table = np.array(self._rows, np.float32).T
        logged = {
            name: (np.array([step for step, _ in noted]), np.array([value for _, value in noted], np.float32))
            for name, noted in self._logged.items()
        }
        records = Records(
            RUN,
            0,
            self._formation,
            np.array(steps),
            np.array(samples),
            np.array(times),
            dict(zip(SHIPPED, table, strict=True)),
            logged,
            produced=steps[-1],
            applied=((self._version.number, steps[0]),),
            held=self._version.number,
        )
        self._controller.ingest(records)
        self._rows, self._marks, self._logged = [], [], {}
        self._ticked = self._now
        versions = asyncio.run(self._controller.next_versions(RUN, self._version.number, 0.0))
        self._version = versions[-1] if versions else self._version


@cache
def cached(data: Callable[[], Data]) -> Data:
    return data()
