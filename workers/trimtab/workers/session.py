"""The session: what a train function holds in its hands.

One step, as seen by every rank:

    agree on the version that rules      (sent in the last step, so nothing waits)
    obey it: roll back, stop, hold, checkpoint      (at the same step on all ranks)
    evaluate its values at this progress, write them into the optimizer, plan the batch
    A times: yield a micro-batch, the user's forward pass, backward
    all-reduce with the last backward, clip, optimizer step
    note the record; a thread of its own ships it
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from trimtab.controller.batching import Plan
from trimtab.controller.events import Checkpointed, RollbackFailed
from trimtab.controller.hyperparameters import HyperParameter, Rollback, Version
from trimtab.controller.observation import Horizon
from trimtab.controller.records import COLUMNS, Branch
from trimtab.controller.trajectory import LrRule, Progress, Scalar
from trimtab.workers.agreement import Agreement
from trimtab.workers.apply import OptimizerValues
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoint import CheckpointStore, step_of
from trimtab.workers.gradients import GradientMonitor, MicroMonitor, RankMonitor, clip_gradients, gradient_norm
from trimtab.workers.guard import Guard
from trimtab.workers.link import Call, Link
from trimtab.workers.loader import Loader, LoaderOptions, open_loader
from trimtab.workers.peers import Peers
from trimtab.workers.randomness import restore
from trimtab.workers.replica import Replica
from trimtab.workers.ring import Ring, StepRecord
from trimtab.workers.stream import check_batch, share
from trimtab.workers.system import device_metrics

M = TypeVar("M", bound=Optimizer)
log = logging.getLogger(__name__)

RING = 65_536  # records kept while the controller is away
MAX_NONFINITE = 10  # steps in a row whose gradient is not finite before the run fails
HOLD_S = 0.05  # between two looks while paused
RESCUE_S = 10.0  # that a guarded run waits for a roll back before it fails so


class NonFiniteError(ArithmeticError):
    """The gradient was not finite for too many steps in a row; the parameters are as before the first of them."""


class Values:
    """The hyper-parameters in force, as attributes."""

    def __init__(self, values: dict[str, Scalar]) -> None:
        self.__dict__["_values"] = values

    def __getattr__(self, name: str) -> Any:
        values: dict[str, Scalar] = self.__dict__["_values"]
        if name not in values:
            raise AttributeError(f"no hyper-parameter {name!r}; there are {', '.join(values)}")
        return values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is set by policies and pins; register a knob of your own with session.knob")


class Session:
    """One rank's side of a run."""

    def __init__(self, assignment: Assignment, call: Call, peers: Peers | None) -> None:
        self.rank = assignment.rank
        self.world_size = assignment.world_size
        self.run = assignment.run
        self.device = torch.device(assignment.device)
        self.arguments = list(assignment.arguments)
        self.progress = assignment.progress
        self._assignment = assignment
        self._call = call
        self._peers = peers
        self._version = assignment.version
        self._values: dict[str, Scalar] = dict(self._version.at(self.progress).values)
        self.hp = Values(self._values)
        self._knobs: list[HyperParameter] = []
        self._ring = Ring(RING, assignment.run, assignment.rank, assignment.formation)
        self._link = Link(call, assignment.run, assignment.formation, self._ring, self._note_system)
        self._agreement = Agreement(peers)
        self._checkpoints = CheckpointStore(assignment.checkpoints, assignment.keep_checkpoints)
        self._saved = assignment.progress.steps if assignment.checkpoint else -1
        self._restored, self._random = self._load()
        begun = self._restored or {}
        self._formation = assignment.formation
        self._rolled_back: int = begun.get("rolled_back", 0)  # number of the newest roll back that was made
        self._skipped: int = begun.get("skipped", 0)  # [samples] of the stream that roll backs have left out so far
        self._guard = Guard()
        self._guard.restore(begun.get("guard"))
        self._model: Replica | None = None
        self._began = False
        self._nonfinite = 0
        self._asked = 0  # checkpoints asked for by versions
        self._between = False  # a step has just ended and the next has not begun
        self._before = self.progress  # before the step that has just ended
        self._unstepped: tuple[float, bool] | None = None  # the batch in the user's hands: its part, is it the last
        self._loss: Tensor | float | None = None
        self._seeds: dict[tuple[float, torch.dtype, torch.Size], Tensor] = {}
        self._settled: tuple[Version, Plan] | None = None  # in force until another version: no ramp moves

    # ---- what a train function calls ------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, optimizer: M, find_unused_parameters: bool = False) -> tuple[nn.Module, M]:
        """The model made parallel, and the optimizer, both with the state of the checkpoint that the run begins from.

        From here on the optimizer's hyper-parameters are live; parameter groups keep their ratios.
        """
        model.to(self.device)
        if self._restored is not None:
            model.load_state_dict(self._restored["model"])
            optimizer.load_state_dict(self._restored["optimizer"])
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        parallel = None
        self._monitor: GradientMonitor = MicroMonitor(self._parameters)
        if self.world_size > 1:
            # buffers are not broadcast: a lost rank would then show in the user's forward pass, not in `step`
            parallel = DistributedDataParallel(
                model,
                broadcast_buffers=False,
                find_unused_parameters=find_unused_parameters,
                gradient_as_bucket_view=True,  # saves a copy of all gradients
            )
            self._monitor = RankMonitor(parallel)
        self._model = Replica(model, parallel, self.device)
        self._optimizer = optimizer
        self._live = OptimizerValues(optimizer)
        return self._model, optimizer

    def knob(
        self,
        name: str,
        value: Scalar,
        min: float | None = None,
        max: float | None = None,
        choices: Sequence[str] = (),
    ) -> None:
        """Declare a hyper-parameter of the script's own, read as `session.hp.NAME`; all ranks must declare it alike."""
        kind: Any = "choice" if isinstance(value, str) else "integer" if isinstance(value, int) else "real"
        spec = HyperParameter(name=name, kind=kind, default=value, min=min, max=max, choices=tuple(choices))
        self._values.setdefault(name, value)
        self._knobs.append(spec)
        if self._began and self.rank == 0:
            self._call("register_knob", self.run, spec)

    def batches(
        self,
        data: Any,
        *,
        shuffle: bool = True,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Iterator[Any]:
        """Micro-batches of the live batch size until the run ends; call `step` once for each.

        `data` is tensors (alone or in a tuple), a map-style data set, or an iterable of samples.
        """
        if self._model is None:
            raise RuntimeError("call session.prepare(model, optimizer) before session.batches(data)")
        options = LoaderOptions(num_workers=num_workers, pin_memory=pin_memory)
        if collate is not None:
            options = LoaderOptions(num_workers=num_workers, pin_memory=pin_memory, collate=collate)
        self._loader = open_loader(data, self._assignment.spec.seed, shuffle, options)
        try:
            yield from self._steps(self._loader)
        finally:
            self._loader.close()

    def step(self, loss: Tensor) -> None:
        """Backward; with the step's last micro-batch also all-reduce, clipping and the optimizer's step."""
        if self._unstepped is None:
            raise RuntimeError("call session.step(loss) once for each batch of session.batches")
        part, last = self._unstepped
        self._unstepped = None
        if last:  # it arrives during the backward pass; sent before the forward pass it would miss what comes meanwhile
            self._agreement.step(self._link.held)
        loss.backward(self._seed(part * self._monitor.loss_scale, loss))
        self._monitor.collect(part)
        value = loss.detach() if loss.device.type != "cpu" else loss.item()
        value = value * part if part != 1 else value
        self._loss = value if self._loss is None else self._loss + value
        if last:
            self._update()

    def log(self, **metrics: float | Tensor) -> None:
        """Note metrics of the step that has just ended; policies and charts see their mean over the ranks."""
        for name, value in metrics.items():
            if name in _TAKEN:
                raise ValueError(f"{name} is noted by Trimtab itself; log yours under another name")
            self._ring.log(self.progress.steps, name, value)

    def every(self, *, steps: int | None = None, samples: int | None = None) -> bool:
        """True once at each multiple of `steps`, or once each time a multiple of `samples` is passed."""
        if not self._between:
            return False
        if steps is not None:
            return self.progress.steps % steps == 0
        if samples is None:
            raise ValueError("every() needs steps= or samples=")
        return self.progress.samples // samples > self._before.samples // samples

    def checkpoint(self) -> None:
        """Keep a checkpoint of the present step; to be called by all ranks at the same step."""
        if self._model is None or not self._between:
            raise RuntimeError("a checkpoint can be made after a step has ended, not within it")
        self._save()

    def _seed(self, scale: float, loss: Tensor) -> Tensor:
        """What the backward pass begins with: the loss's scale, kept rather than multiplied at every step."""
        key = (scale, loss.dtype, loss.shape)
        if key not in self._seeds:
            self._seeds[key] = torch.full_like(loss, scale)
        return self._seeds[key]

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _steps(self, loader: Loader) -> Iterator[Any]:
        horizon = self._begin(loader.num_samples)
        self._clock = time.perf_counter()
        self._cut: tuple[int, int] | None = None  # micro-batch, world size
        while (plan := self._start_step(horizon)) is not None:
            count = self._size(plan, horizon)
            if self._cut != (plan.micro_batch, plan.world_size):
                self._cut = (plan.micro_batch, plan.world_size)
                loader.cut(self.progress.samples + self._skipped, plan.micro_batch, self.rank, plan.world_size)
            yield from self._micro_batches(loader, plan, count)
        if self._assignment.checkpoint_steps is not None and self.progress.steps != self._saved:
            self._save()

    def _micro_batches(self, loader: Loader, plan: Plan, count: int) -> Iterator[Any]:
        """One step's micro-batches: `count` samples over all ranks, fewer than planned only in a run's last step."""
        own = share(count, self.rank, plan.world_size)
        self._monitor.weight = own * plan.world_size / count
        self._batch, self._own, self._loss, self._data_s = count, own, None, 0.0
        self._local_batch = own if self.world_size > 1 else plan.micro_batch
        self._measurable = count == plan.batch_size
        taken = 0
        while not self._between:
            size = min(plan.micro_batch, max(own - taken, 1))
            last = taken + size >= own
            start = time.perf_counter()
            batch = loader.next(None if size == plan.micro_batch else size)
            if self.device.type != "cpu":
                batch = tree_map(self._to_device, batch)
            self._data_s += time.perf_counter() - start
            taken += size
            assert self._model is not None
            if self._model.parallel is not None:  # DDP reads it in the forward pass, so before the batch is handed out
                self._model.parallel.require_backward_grad_sync = last
            self._unstepped = (size / own if own > size else 1.0, last)
            yield batch
            if self._unstepped is not None:
                raise RuntimeError("a batch was not followed by session.step(loss); every rank must step on each")

    def _to_device(self, value: Any) -> Any:
        return value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value

    def _begin(self, num_samples: int | None) -> Horizon | None:
        """Register what only this script knows; every rank then starts with the version that rank 0 is answered."""
        specs = [*self._live.discover(), *_COMMON, *self._knobs]
        version = self._assignment.version
        if self.rank == 0:
            rule: LrRule = self._live.lr_rule
            version = self._call("register", self.run, self._assignment.formation, specs, rule, num_samples)
        if self._peers is not None:
            version = self._peers.broadcast(version)
        self._version = version
        self._asked = version.checkpoints
        self._agreement.start(version.number)
        self._link.start(version)
        self._link.began(version.number, self.progress.steps + 1)
        self._began = True
        if num_samples is not None:
            check_batch(num_samples, version.at(self.progress).plan.batch_size)
        self._draw_from(self._random)
        if self.rank == 0 and self._assignment.checkpoint is not None:
            self._report_checkpoints(step_of(self._assignment.checkpoint))
        return self._assignment.horizon(num_samples)

    def _start_step(self, horizon: Horizon | None) -> Plan | None:
        """Obey the version that rules from here on; None if the run ends."""
        self._adopt(self._agreement.result())
        if self._nonfinite >= MAX_NONFINITE:
            self._await_rescue()
        while self._version.paused and not self._version.stopped:
            self._hold()
        due = self._assignment.checkpoint_steps
        if self._version.checkpoints > self._asked or (due and self.progress.steps % due == 0 < self.progress.steps):
            self._asked = self._version.checkpoints
            if self.progress.steps != self._saved:
                self._save()
        if self._version.stopped or (horizon is not None and horizon.fraction(self.progress) >= 1):
            return None
        if self._settled is None or self._settled[0] is not self._version:
            self._settled = (self._version, self._apply()) if self._version.still(self.progress) else None
        self._between = False
        return self._settled[1] if self._settled else self._apply()

    def _apply(self) -> Plan:
        """Put the values of this point of progress into force."""
        settings = self._version.at(self.progress)
        self._values.update(settings.values)
        self._live.apply(settings.values)
        assert self._model is not None
        self._model.precision = str(self._values.get("precision", "fp32"))
        return settings.plan

    def _adopt(self, number: int) -> None:
        taken = number > self._version.number
        if taken:
            self._version = self._link.take(number)
        wish = self._version.rollback
        if wish is not None and wish.number > self._rolled_back:
            self._roll_back(wish)
            taken = True
        if taken:
            self._link.began(self._version.number, self.progress.steps + 1)

    def _hold(self) -> None:
        """Look once more, a little later, what all ranks have heard."""
        time.sleep(HOLD_S)
        self._adopt(self._agreement.settle(self._link.held))

    def _await_rescue(self) -> None:
        """Fail, unless a policy that looks after spikes brings the run back in time; all ranks wait alike."""
        guarded = float(self._values.get("skip_sigma", 0.0)) > 0
        for _ in range(round(RESCUE_S / HOLD_S) if guarded else 0):
            if self._nonfinite < MAX_NONFINITE or self._version.stopped:
                return
            self._hold()
        raise NonFiniteError(
            f"the gradient was not finite for {self._nonfinite} steps up to step {self.progress.steps} (loss "
            f"{float(self._loss or 0):g}); the parameters were left as they were before. Lower lr, set grad_clip, "
            "or look at the data"
        )

    def _size(self, plan: Plan, horizon: Horizon | None) -> int:
        if horizon is None or horizon.unit != "samples":
            return plan.batch_size
        return min(plan.batch_size, horizon.amount - self.progress.samples)

    def _update(self) -> None:
        """All gradients are there: clip, step, note."""
        measured = self._monitor.finish()
        norm = math.sqrt(float(measured.grad_sq))
        self._nonfinite = 0 if math.isfinite(norm) else self._nonfinite + 1
        if self._nonfinite:
            self._skip("its gradient is not finite")
        elif (limit := self._limit(norm)) > 0:
            if limit < math.inf:
                clip_gradients(self._parameters, limit, gradient_norm(self._parameters))
            self._optimizer.step()
        else:
            self._skip(f"its gradient's norm {norm:.4g} is a spike")
        self._optimizer.zero_grad(set_to_none=True)
        self._before = self.progress
        self.progress = Progress(self.progress.steps + 1, self.progress.samples + self._batch)
        self._between = True
        now = time.perf_counter()
        record: dict[str, Any] = {
            "loss": self._loss,
            "grad_norm": norm,
            "local_sq": measured.local_sq if self._measurable else math.nan,
            "local_batch": self._local_batch,
            "batch_size": self._batch,
            "step_time": now - self._clock,
            "data_time": self._data_s,
            "reduce_time": measured.reduce_time,
        }
        if self.rank == 0:
            record |= {f"hp/{name}": value for name, value in self._values.items() if not isinstance(value, str)}
        self._clock = now
        self._ring.append(StepRecord(self.progress.steps, self.progress.samples, time.time(), record))

    def _limit(self, norm: float) -> float:
        """What the gradient is clipped to: 0 to leave the step out, inf to leave the gradient as it is."""
        values = self._values
        clip = float(values.get("grad_clip", 0.0)) or math.inf
        sigma, zclip = float(values.get("skip_sigma", 0.0)), float(values.get("zclip", 0.0))
        return min(clip, self._guard.limit(norm, self._batch, sigma, zclip))

    def _skip(self, why: str) -> None:
        step = self.progress.steps + 1
        self._ring.log(step, "skipped_step", 1.0)
        log.warning("run %s rank %d: step %d skipped: %s", self.run, self.rank, step, why)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def _load(self) -> tuple[dict[str, Any] | None, Any]:
        if self._assignment.checkpoint is None:
            return None, None
        shared, own = self._checkpoints.load(self._assignment.checkpoint, self.rank, self.device)
        return shared | self._checkpoints.branch(self._assignment.checkpoint), own

    def _draw_from(self, states: Any) -> None:
        """Go on with the random states of a checkpoint; a rank that it does not know begins its own."""
        if states is not None:
            restore(states)
        elif self.world_size > 1:
            torch.manual_seed(self._assignment.spec.seed * 1_000_003 + self.rank + 1)

    def _save(self) -> None:
        assert self._model is not None
        shared = None
        if self.rank == 0:
            shared = {
                "model": self._model.module.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "progress": [self.progress.steps, self.progress.samples],
                "version": self._version.number,
                "rolled_back": self._rolled_back,
                "skipped": self._skipped,
                "guard": self._guard.state(),
            }
        path = self._checkpoints.save(
            self.progress.steps, shared, self.rank, self.world_size, self._barrier, self._wanted
        )
        self._saved = self.progress.steps
        if self.rank == 0:
            self._report_checkpoints(self.progress.steps)
            log.info("run %s: checkpoint %s", self.run, path)

    def _wanted(self) -> tuple[int, ...]:
        """The step of a checkpoint that the run is about to go back to: none may take it away."""
        wish = self._link.newest.rollback
        return (wish.step,) if wish is not None and wish.number > self._rolled_back else ()

    def _report_checkpoints(self, step: int) -> None:
        kept = tuple(step_of(path) for path in self._checkpoints.all())
        self._link.report(Checkpointed(step, self.progress.samples, self._version.number, kept))

    # ---- roll back ------------------------------------------------------------------------------------------------

    def _roll_back(self, wish: Rollback) -> None:
        """Go back to a checkpoint in place, on all ranks between the same two steps.

        Model, optimizer, random states and the guard's norms are loaded; progress, and with it every trajectory,
        returns. The data goes on at the checkpoint's place in the stream, or (`skip_data`) behind what was read last:
        `_skipped` is the difference from then on, so a horizon in samples still counts those that the model has
        learnt from. What the train function itself holds does not return.

        Where the checkpoint is gone, or the data cannot be read again, all ranks go on and rank 0 tells.
        """
        self._rolled_back = wish.number
        obstacle = self._obstacle(wish) if self.rank == 0 else None
        if self._peers is not None:
            obstacle = self._peers.broadcast(obstacle)
        if obstacle is not None:
            log.error("run %s rank %d: not rolled back to step %d: %s", self.run, self.rank, wish.step, obstacle)
            if self.rank == 0:
                self._link.report(RollbackFailed(wish.number, self.progress, obstacle))
            return
        left, read = self.progress, self.progress.samples + self._skipped
        path = self._checkpoints.find(wish.step)
        assert path is not None
        assert self._model is not None
        shared, own = self._checkpoints.load(path, self.rank, self.device)
        self._model.module.load_state_dict(shared["model"])
        self._optimizer.load_state_dict(shared["optimizer"])
        self._guard.restore(shared.get("guard"))
        self.progress = self._before = Progress(*shared["progress"])
        self._skipped = self._skip_to(wish, path, read) if wish.skip_data else shared.get("skipped", 0)
        self._saved = self.progress.steps
        self._nonfinite = 0
        self._settled = self._cut = None
        if self.rank == 0:
            self._checkpoints.go_back(wish.step, wish.number, self._skipped)
            log.info("run %s: rolled back from step %d to step %d", self.run, left.steps, wish.step)
        self._formation += 1
        branch = Branch(wish.number, left, self.progress)
        self._ring = Ring(RING, self.run, self.rank, self._formation, branch)
        self._link.branch(self._ring)
        self._draw_from(own)
        self._clock = time.perf_counter()

    def _obstacle(self, wish: Rollback) -> str | None:
        path = self._checkpoints.find(wish.step)
        if path is None:
            return f"the checkpoint of step {wish.step:,} is no longer in {self._checkpoints.directory}"
        if wish.skip_data or self._loader.reaches(0):
            return None
        shared, _ = self._checkpoints.load(path, self.rank)
        if not self._loader.reaches(shared["progress"][1] + shared.get("skipped", 0)):
            return "the data is an iterator, which can be read only once: roll back with skip_data"
        return None

    def _skip_to(self, wish: Rollback, path: Path, read: int) -> int:
        """How far the stream is ahead of progress when it goes on where `read` samples have been read."""
        noted = self._checkpoints.branch(path)
        if noted.get("rolled_back") == wish.number:  # it was made before, and the group lost before it was known
            return max(noted["skipped"], read - self.progress.samples)
        return read - self.progress.samples

    def _barrier(self) -> None:
        if self._peers is not None:
            self._peers.barrier()

    def _note_system(self) -> None:
        for name, value in device_metrics(self.device).items():
            self._ring.log(self.progress.steps, name, value)

    def close(self) -> None:
        """Ship what is left. The worker calls it when the train function has returned or raised."""
        if self._began:
            self._link.close()


_TAKEN = frozenset({*COLUMNS, "step_time_max", "noise_scale", "noise_scale_low", "noise_scale_high"})
_COMMON = (
    HyperParameter(name="grad_clip", default=0.0, min=0.0, unit="2-norm; 0 is off"),
    HyperParameter(name="skip_sigma", default=0.0, min=0.0, unit="deviations of the gradient's norm; 0 is off"),
    HyperParameter(name="zclip", default=0.0, min=0.0, unit="deviations of the gradient's norm; 0 is off"),
    HyperParameter(name="precision", kind="choice", default="fp32", choices=("fp32", "bf16")),
)
__all__ = ["NonFiniteError", "Session"]
