"""The session: what a train function holds in its hands.

One step, as seen by every rank:

    agree on the version that rules      (sent in the last step, so nothing waits)
    obey it: form another group, roll back, switch strategy, stop, hold, checkpoint      (at the same step on all ranks)
    evaluate its values at this progress, write them into the optimizer, plan the batch
    A times: yield a micro-batch, the user's forward pass, backward
    all-reduce with the last backward, clip, optimizer step      (or as another strategy does; see `sync`)
    note the record; a thread of its own ships it

A rank that is lost on the way shows as GroupLost in whatever the others do together next: the step under way is void,
those who are left form the next group (`reunion`), and the same samples are given out again.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from trimtab.controller.batching import Plan
from trimtab.controller.hyperparameters import LR, HyperParameter, Rollback, Version
from trimtab.controller.observation import Horizon
from trimtab.controller.records import MEAN_SQ, Branch, Regrouped
from trimtab.controller.sync import ALLREDUCE, LEARNERS, SYNC, WORKERS, regrouped
from trimtab.controller.trajectory import LrRule, Progress, Scalar
from trimtab.workers.agreement import Agreement
from trimtab.workers.apply import OptimizerValues
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoint import step_of
from trimtab.workers.course import Course
from trimtab.workers.group import Group, is_loss
from trimtab.workers.keeping import Keeping
from trimtab.workers.link import Call, Link
from trimtab.workers.loader import Loader, LoaderOptions, open_loader
from trimtab.workers.peers import GroupLost
from trimtab.workers.randomness import restore
from trimtab.workers.reunion import Cause, Note, Reunion, Standing
from trimtab.workers.ring import Ring, StepRecord
from trimtab.workers.stream import check_batch, share
from trimtab.workers.system import device_metrics
from trimtab.workers.training import Training
from trimtab.workers.values import COMMON, TAKEN, Values

M = TypeVar("M", bound=Optimizer)
log = logging.getLogger(__name__)

RING = 65_536  # records kept while the controller is away
MAX_NONFINITE = 10  # steps in a row whose gradient is not finite before the run fails
HOLD_S = 0.05  # between two looks while paused
RESCUE_S = 10.0  # that a guarded run waits for a roll back before it fails so


class NonFiniteError(ArithmeticError):
    """The gradient was not finite for too many steps in a row; the parameters are as before the first of them."""


class Session:
    """One rank's side of a run."""

    def __init__(
        self,
        assignment: Assignment,
        call: Call,
        group: Group | None,
        reunion: Reunion | None = None,
    ) -> None:
        """`group`: that it trains with from the start; None for a newcomer, which waits in `batches` to be called into
        one. Without a `reunion` a lost rank is an error."""
        self.run = assignment.run
        self.device = torch.device(assignment.device)
        self.arguments = list(assignment.arguments)
        self._assignment = assignment
        self._call = call
        self._group = group
        self._reunion = reunion
        self._version = assignment.version
        self._values: dict[str, Scalar] = dict(self._version.at(assignment.progress).values)
        self.hp = Values(self._values)
        self._knobs: list[HyperParameter] = []
        self._ring = Ring(RING, assignment.run, assignment.rank, assignment.formation)
        self._link = Link(call, assignment.run, self._ring, self._note_system)
        self._agreement = Agreement(group.peers if group is not None else None)
        self._keeping = Keeping(assignment)
        self._restored, self._random = self._keeping.load(assignment, self.device)
        self._course = Course(assignment.progress, assignment.formation)
        if self._restored is not None:
            self._course.take(self._restored)
            self._course.saved = assignment.progress.steps
        self._training: Training | None = None
        self._loader: Loader
        self._began = False
        self._between = False  # a step has just ended and the next has not begun
        self._before = self.progress  # before the step that has just ended
        self._unstepped: tuple[float, bool] | None = None  # the batch in the user's hands: its part, is it the last
        self._lost: GroupLost | None = None  # what has made the step under way void
        self._stepped = False  # since the group was formed
        self._loss: Tensor | float | None = None
        self._learners = 1.0  # on each place, as the group was formed
        self._seeds: dict[tuple[float, torch.dtype, torch.Size], Tensor] = {}
        self._settled: tuple[Version, Plan] | None = None  # in force until another version: no ramp moves
        self._cut: tuple[int, int] | None = None  # micro-batch, world size

    # ---- what a train function calls ------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return self._group.rank if self._group is not None else self._assignment.rank

    @property
    def world_size(self) -> int:
        return self._group.size if self._group is not None else self._assignment.world_size

    @property
    def version(self) -> int:
        """The number of the version in force."""
        return self._version.number

    @property
    def progress(self) -> Progress:
        return self._course.progress

    def prepare(self, model: nn.Module, optimizer: M, find_unused_parameters: bool = False) -> tuple[nn.Module, M]:
        """The model made parallel, and the optimizer, both with the state of the checkpoint that the run begins from.

        From here on the optimizer's hyper-parameters are live; parameter groups keep their ratios. With gradients off
        the model is the strategy's central one, where it has one.
        """
        model.to(self.device)
        training = self._training = Training(model, optimizer, self.device, self._values, find_unused_parameters)
        if self._restored is not None:
            training.load(self._restored)
        self._live = OptimizerValues(optimizer)
        if self._group is not None:
            training.form(self._group, str(self._values.get(SYNC, ALLREDUCE)), equal=False)
            training.follow(self._restored.get("sync") if self._restored is not None else None)
        return training.replica, optimizer

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

        `data` is tensors (alone or in a tuple), a map-style data set, or an iterable of samples. A worker that is no
        longer needed leaves its train function here.
        """
        if self._training is None:
            raise RuntimeError("call session.prepare(model, optimizer) before session.batches(data)")
        options = LoaderOptions(num_workers=num_workers, pin_memory=pin_memory)
        if collate is not None:
            options = LoaderOptions(num_workers=num_workers, pin_memory=pin_memory, collate=collate)
        self._loader = open_loader(data, self._assignment.spec.seed, shuffle, options)
        try:
            yield from self._steps(self._training)
        finally:
            self._loader.close()

    def step(self, loss: Tensor, *, share: float = 1.0, data_s: float = 0.0) -> bool:
        """Backward; with the step's last micro-batch also all-reduce, clipping and the optimizer's step.

        True if that has ended a step; False within one, and where a rank was lost: its samples then come once more.
        Where somebody else reads the data, `share` is what it gave of a micro-batch's samples, and `data_s` how long
        it took.
        """
        if self._unstepped is None or self._training is None:
            raise RuntimeError("call session.step(loss) once for each batch of session.batches")
        part, last = self._unstepped
        self._unstepped = None
        self._data_s += data_s
        if share != 1:
            self._measurable = False
        try:
            self._backward(loss, part, last, share)
            if last:
                self._update(self._training)
        except RuntimeError as error:
            if self._reunion is None or not is_loss(error):
                raise
            self._lost = error if isinstance(error, GroupLost) else GroupLost(str(error))
        return self._between

    def log(self, **metrics: float | Tensor) -> None:
        """Note metrics of the step that has just ended; policies and charts see their mean over the ranks."""
        for name, value in metrics.items():
            if name in TAKEN:
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
        if self._training is None or not self._between:
            raise RuntimeError("a checkpoint can be made after a step has ended, not within it")
        try:
            self._save(self._training)
        except GroupLost as lost:
            if self._reunion is None:
                raise
            self._lost = lost  # what follows finds out; the checkpoint is made by whoever makes the next

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _steps(self, training: Training) -> Iterator[Any]:
        horizon = self._begin(training)
        self._clock = time.perf_counter()
        while True:
            try:
                if self._lost is not None:
                    self._recover(training, self._lost)
                plan = self._start_step(training, horizon)
                if plan is None:
                    self._end(training)
                    return
            except GroupLost as lost:
                if self._reunion is None:
                    raise
                self._lost = lost
                continue
            count = self._size(plan, horizon)
            if self._cut != (plan.micro_batch, plan.world_size):
                self._cut = (plan.micro_batch, plan.world_size)
                self._loader.cut(self._course.read, plan.micro_batch, self.rank, plan.world_size)
            yield from self._micro_batches(training, plan, count)

    def _micro_batches(self, training: Training, plan: Plan, count: int) -> Iterator[Any]:
        """One step's micro-batches: `count` samples over all ranks, fewer than planned only in a run's last step."""
        own = share(count, self.rank, plan.world_size)
        training.monitor.weight = own * plan.world_size / count
        self._batch, self._own, self._loss, self._data_s = count, own, None, 0.0
        self._local_batch = own if self.world_size > 1 else plan.micro_batch
        self._measurable = count == plan.batch_size
        taken = 0
        while not self._between and self._lost is None:
            size = min(plan.micro_batch, max(own - taken, 1))
            last = taken + size >= own
            start = time.perf_counter()
            batch = self._loader.next(None if size == plan.micro_batch else size)
            if self.device.type != "cpu":
                batch = tree_map(self._to_device, batch)
            self._data_s += time.perf_counter() - start
            taken += size
            parallel = training.replica.parallel
            if parallel is not None:  # DDP reads it in the forward pass, so before the batch is handed out
                parallel.require_backward_grad_sync = last
            self._unstepped = (size / own if own > size else 1.0, last)
            yield batch
            if self._unstepped is not None:
                raise RuntimeError("a batch was not followed by session.step(loss); every rank must step on each")

    def _to_device(self, value: Any) -> Any:
        return value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value

    def _begin(self, training: Training) -> Horizon | None:
        """Register what only this script knows; every rank then starts with the version that rank 0 is answered."""
        num_samples = self._loader.num_samples
        if self._group is None:
            assert self._reunion is not None
            self._reunion.park()
            self._reunite(training, "resize")
        else:
            specs = [*self._live.discover(), *COMMON, *self._knobs]
            version = self._assignment.version
            if self.rank == 0:
                rule: LrRule = self._live.lr_rule
                version = self._call("register", self.run, self._assignment.formation, specs, rule, num_samples)
            self._rule(self._group.broadcast(version))
            self._learners = self._wanted_learners()
            self._course.asked = self._version.checkpoints
            self._agreement.start(self._version.number)
            self._link.start(self._version)
            self._link.began(self._version.number, self.progress.steps + 1)
            self._draw_from(self._random)
            if self.rank == 0 and self._assignment.checkpoint is not None:
                self._course.saved = step_of(self._assignment.checkpoint)
                self._keeping.report(self._course, self._version.number, self._link)
        self._began = True
        if num_samples is not None:
            check_batch(num_samples, self._version.at(self.progress).plan.batch_size)
        return self._assignment.horizon(num_samples)

    def _start_step(self, training: Training, horizon: Horizon | None) -> Plan | None:
        """Obey the version that rules from here on; None if the run ends."""
        start = time.perf_counter()
        agreed = self._agreement.result()
        self._ring.control_s += time.perf_counter() - start
        self._adopt(training, agreed)
        if self._course.nonfinite >= MAX_NONFINITE:
            self._await_rescue(training)
        while self._version.paused and not self._version.stopped:
            self._hold(training)
        course, due = self._course, self._assignment.checkpoint_steps
        if self._version.checkpoints > course.asked or (due and self.progress.steps % due == 0 < self.progress.steps):
            course.asked = self._version.checkpoints
            if self.progress.steps != course.saved:
                self._save(training)
        if self._version.stopped or (horizon is not None and horizon.fraction(self.progress) >= 1):
            return None
        start = time.perf_counter()
        if self._settled is None or self._settled[0] is not self._version:
            plan = self._apply(training)
            self._settled = (self._version, plan) if self._version.still(self.progress) else None
        self._between = False
        plan = self._settled[1] if self._settled else self._apply(training)
        self._ring.control_s += time.perf_counter() - start
        return plan

    def _end(self, training: Training) -> None:
        if self._assignment.checkpoint_steps is not None and self.progress.steps != self._course.saved:
            self._save(training)

    def _apply(self, training: Training) -> Plan:
        """Put the values of this point of progress into force."""
        settings = self._version.at(self.progress)
        self._values.update(settings.values)
        self._live.apply(settings.values)
        training.replica.precision = str(self._values.get("precision", "fp32"))
        sync = str(self._values.get(SYNC, ALLREDUCE))
        if sync != training.strategy.name:
            training.switch(sync, self._values.get("sync_moments"))
        if self._agreement.lag != training.strategy.lag:
            self._agreement.drain()
            self._agreement.lag = training.strategy.lag
        return settings.plan

    def _adopt(self, training: Training, number: int) -> None:
        taken = number > self._version.number
        if taken:
            before = self._version.parameters.get(LR)
            self._rule(self._link.take(number))
            if self._reunion is not None and self._version.group > self._reunion.number:
                training.level()
                self._reunite(training, "resize")
            if self._version.parameters.get(LR) != before:
                training.strategy.restart()
        wish = self._version.rollback
        if wish is not None and wish.number > self._course.rolled_back:
            self._roll_back(training, wish)
            taken = True
        if taken:
            self._link.began(self._version.number, self.progress.steps + 1)

    def _rule(self, version: Version) -> None:
        """The version in force, as it is for the ranks that are there: the controller may have heard of others."""
        scale = self._assignment.spec.on_resize == "scale"
        self._version = regrouped(version, self.world_size, scale, self.progress)

    def _hold(self, training: Training) -> None:
        """Look once more, a little later, what all ranks have heard."""
        time.sleep(HOLD_S)
        self._clock = time.perf_counter()  # so that the wait is no step's time
        self._adopt(training, self._agreement.settle(self._link.held))

    def _await_rescue(self, training: Training) -> None:
        """Fail, unless a policy that looks after spikes brings the run back in time; all ranks wait alike.

        Where replicas train apart one may fail and not the others, so nobody waits.
        """
        guarded = float(self._values.get("skip_sigma", 0.0)) > 0 and training.strategy.reduces
        for _ in range(round(RESCUE_S / HOLD_S) if guarded else 0):
            if self._course.nonfinite < MAX_NONFINITE or self._version.stopped:
                return
            self._hold(training)
        raise NonFiniteError(
            f"the gradient was not finite for {self._course.nonfinite} steps up to step {self.progress.steps} (loss "
            f"{float(self._loss or 0):g}); the parameters were left as they were before. Lower lr, set grad_clip, "
            "or look at the data"
        )

    def _size(self, plan: Plan, horizon: Horizon | None) -> int:
        if horizon is None or horizon.unit != "samples" or self._assignment.spec.host:
            return plan.batch_size  # a host's loader gives whole batches
        return min(plan.batch_size, horizon.amount - self.progress.samples)

    # ---- one step -------------------------------------------------------------------------------------------------

    def _backward(self, loss: Tensor, part: float, last: bool, share: float) -> None:
        assert self._training is not None
        monitor = self._training.monitor
        if last:  # it arrives during the backward pass; sent before the forward pass it would miss what comes meanwhile
            start = time.perf_counter()
            self._agreement.step(self._link.held)
            self._ring.control_s += time.perf_counter() - start
        loss.backward(self._seed(part * share * monitor.loss_scale, loss))
        monitor.collect(part * share)
        value = loss.detach() if loss.device.type != "cpu" else loss.item()
        value = value * part if part != 1 else value
        self._loss = value if self._loss is None else self._loss + value

    def _seed(self, scale: float, loss: Tensor) -> Tensor:
        """What the backward pass begins with: the loss's scale, kept rather than multiplied at every step."""
        key = (scale, loss.dtype, loss.shape)
        if key not in self._seeds:
            self._seeds[key] = torch.full_like(loss, scale)
        return self._seeds[key]

    def _update(self, training: Training) -> None:
        """All gradients are there: clip, step, note."""
        course, step = self._course, self.progress.steps + 1
        measured = training.finish()
        norm = math.sqrt(float(measured.grad_sq))
        course.nonfinite = 0 if math.isfinite(norm) else course.nonfinite + 1
        limit = 0.0 if course.nonfinite else self._limit(norm)
        training.update(step, limit)
        if limit == 0:
            self._skip(
                "its gradient is not finite" if course.nonfinite else f"its gradient's norm {norm:.4g} is a spike"
            )
        self._before = self.progress
        course.progress = Progress(step, self.progress.samples + self._batch)
        self._between = True
        now = time.perf_counter()
        apart = not training.strategy.reduces and self.world_size > 1
        measurable = self._measurable and (measured.mean_sq is not None or not apart)
        record: dict[str, Any] = {
            "loss": self._loss,
            "grad_norm": norm,
            "local_sq": measured.local_sq if measurable else math.nan,
            "local_batch": self._local_batch,
            "batch_size": self._batch,
            "step_time": now - self._clock,
            "data_time": self._data_s,
            "reduce_time": measured.reduce_time,
        }
        if measured.mean_sq is not None:
            record[MEAN_SQ] = measured.mean_sq
        if self.rank == 0:
            values = self._values | self._size_there()
            record |= {f"hp/{name}": value for name, value in values.items() if not isinstance(value, str)}
        self._ring.training_s += now - self._clock
        self._clock = now
        self._ring.append(StepRecord(self.progress.steps, self.progress.samples, time.time(), record))
        for name, metric in training.strategy.measured().items():
            self._ring.log(step, name, metric)
        if not self._stepped and self._reunion is not None:
            self._stepped = True
            self._reunion.stepped()
        self._ring.control_s += measured.cost_s + time.perf_counter() - now

    def _size_there(self) -> dict[str, Scalar]:
        """The size that trains, where it is a hyper-parameter: what the version has is wanted, and may not be there."""
        if WORKERS not in self._values:
            return {}
        return {WORKERS: self.world_size / self._learners, LEARNERS: self._learners}

    def _wanted_learners(self) -> float:
        return float(self._version.at(self.progress).values.get(LEARNERS, 1))

    def _limit(self, norm: float) -> float:
        """What the gradient is clipped to: 0 to leave the step out, inf to leave the gradient as it is."""
        values = self._values
        clip = float(values.get("grad_clip", 0.0)) or math.inf
        sigma, zclip = float(values.get("skip_sigma", 0.0)), float(values.get("zclip", 0.0))
        return min(clip, self._course.guard.limit(norm, self._batch, sigma, zclip))

    def _skip(self, why: str) -> None:
        step = self.progress.steps + 1
        self._ring.log(step, "skipped_step", 1.0)
        log.warning("run %s rank %d: step %d skipped: %s", self.run, self.rank, step, why)

    # ---- checkpoints and roll back --------------------------------------------------------------------------------

    def _draw_from(self, states: Any) -> None:
        """Go on with the random states of a checkpoint; a rank that it does not know begins its own."""
        if states is not None:
            restore(states)
        elif self.world_size > 1 and not self._assignment.spec.host:
            spread = self.rank + 1 + (self._course.formation << 32 if self._assignment.joins else 0)
            torch.manual_seed(self._assignment.spec.seed * 1_000_003 + spread)

    def _save(self, training: Training) -> None:
        assert self._group is not None
        self._keeping.save(training, self._course, self._version.number, self._group, self._link)

    def _roll_back(self, training: Training, wish: Rollback) -> None:
        assert self._group is not None
        made = self._keeping.roll_back(wish, training, self._course, self._group, self._link, self._loader)
        if made is None:
            return
        branch, states = made
        self._branch(branch)
        self._draw_from(states)

    def _branch(self, branch: Branch | Regrouped) -> None:
        """A formation begins in place."""
        self._before = self.progress
        self._settled = self._cut = None
        self._ring = Ring(RING, self.run, self.rank, self._course.formation, branch)
        self._link.branch(self._ring, void=isinstance(branch, Branch))
        self._clock = time.perf_counter()

    # ---- other groups ---------------------------------------------------------------------------------------------

    def _recover(self, training: Training, lost: GroupLost) -> None:
        assert self._reunion is not None
        log.warning("run %s rank %d: a rank is gone after step %d: %s", self.run, self.rank, self.progress.steps, lost)
        self._reunion.complain()
        self._reunite(training, "loss")

    def _reunite(self, training: Training, cause: Cause) -> None:
        """Leave the group and form the next with whoever is called into it; again until that has come about."""
        kept = training.sync_state()
        while True:
            training.part()
            if self._group is not None:
                self._group.leave()
            try:
                return self._meet(training, cause, kept)
            except GroupLost as lost:
                log.warning("run %s: the next group is lost too: %s", self.run, lost)
                cause = "loss"

    def _meet(self, training: Training, cause: Cause, kept: Mapping[str, Any] | None) -> None:
        assert self._reunion is not None
        newcomer = self._group is None
        standing = Standing()
        if not newcomer:
            strategy = training.strategy.name
            standing = Standing(self.progress.steps, self._version.number, self._course.formation, strategy)

        def note(lost: int) -> Note:
            sync = str(self._version.at(self.progress).values.get(SYNC, ALLREDUCE))
            return Note(self._course.told(), self._version, sync, cause, lost, time.perf_counter() - self._clock)

        met = self._reunion.next(standing, note, lambda: training.state(kept), self.device)
        before, self._group = self._version.number, met.group
        if met.state is not None:
            training.load(met.state)
            kept = met.state["sync"]
        self._course.take(met.note.course)
        self._course.formation = met.formation
        self._rule(met.note.version)
        self._values.update(self._version.at(self.progress).values)
        if newcomer or met.note.cause == "resize":
            self._learners = self._wanted_learners()
        training.form(met.group, met.note.strategy, equal=True)
        training.follow(kept)
        self._agreement = Agreement(met.group.peers, training.strategy.lag)
        self._agreement.start(self._version.number)
        self._lost, self._unstepped, self._stepped = None, None, False
        pause_s = met.note.pause_s if newcomer else time.perf_counter() - self._clock
        self._branch(Regrouped(met.note.cause, met.group.size, self.progress, pause_s, met.note.lost))
        if newcomer:
            self._link.start(self._version)
            self._draw_from(None)
        if met.note.cause == "resize" if newcomer else self._version.number > before:
            self._link.began(self._version.number, self.progress.steps + 1)

    def _note_system(self) -> None:
        for name, value in device_metrics(self.device).items():
            self._ring.log(self.progress.steps, name, value)

    def leave(self) -> None:
        """Close the lines to the other ranks. The worker calls it when the train function has ended, however it did."""
        if self._group is not None:
            self._group.leave()

    def close(self) -> None:
        """Ship what is left; to be called last."""
        if self._began:
            self._link.close()

    def hang_up(self) -> None:
        """After `close`, where the process may exit when the run's end has been told."""
        if self._began:
            self._link.hang_up()


__all__ = ["NonFiniteError", "Session"]
