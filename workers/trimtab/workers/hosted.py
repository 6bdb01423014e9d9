"""The session in a loop that somebody else owns: the host reads the data, and its forward passes keep time.

    forward pass of a step's first micro-batch:  the version that rules is obeyed, its values are written
    session.step(loss):                          backward; with the step's last: all-reduce, clip, optimizer, record

So what the session does between two steps happens in `ended` or in the next forward pass, whichever comes first; a
paused run waits there.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from trimtab.controller.errors import ControllerUnreachable, Refused
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress, Scalar
from trimtab.workers.assignment import Assignment
from trimtab.workers.group import Group, is_loss
from trimtab.workers.link import Call
from trimtab.workers.loader import HostLoader
from trimtab.workers.session import Session
from trimtab.workers.values import Values

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
LAST_WORD_S = 2.0  # that rank 0, which only sees that another is gone, leaves that one to say why
OUTSIDE = (
    "the loss must come from session.model: it reduces the gradients and tells when a step begins. Take it in place of "
    "the model that was given to attach"
)


class HostedModel(nn.Module):
    """The model as the host's loop sees it; `module` is the bare one, for the host's checkpoints."""

    def __init__(self, module: nn.Module, before: Callable[[tuple[Any, ...], Mapping[str, Any]], bool]) -> None:
        """`before` is called with the arguments of each forward pass that trains; is the run still going on?"""
        super().__init__()
        self.module = module
        self.__dict__["_before"] = before
        self.enter(module)

    def enter(self, inside: nn.Module) -> None:
        """Train, and evaluate, through `inside` from here on."""
        self.__dict__["_inside"] = inside  # not a submodule: the parameters would be listed twice

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not self.__dict__["_before"](args, kwargs):
            return self.module(*args, **kwargs)
        return self.__dict__["_inside"](*args, **kwargs)


class HostedSession:
    """One rank's side of a run in somebody else's loop; `attach` makes it, all ranks of the host together.

    `ended` says when to leave the loop. As a context manager it tells how the run ended.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        run: str,
        group: Group,
        call: Call,
        start: Callable[[int], Assignment],
        given: Mapping[str, Scalar],
        dataset_size: int | None,
        find_unused_parameters: bool,
    ) -> None:
        """`start` begins the run with a micro-batch of so many samples, on all ranks together; `given` are the values
        to show until then."""
        self.run = run
        self.model = HostedModel(model, self._forward_begins)
        self.optimizer = optimizer
        self.rank = group.rank
        self.world_size = group.size
        self._group = group
        self._call = call
        self._start = start
        self._given = dict(given)
        self._num_samples = dataset_size
        self._find_unused = find_unused_parameters
        self._knobs: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
        self._inner: Session | None = None
        self._steps: Iterator[Any] = iter(())
        self._micro = 0
        self._asked = False  # a micro-batch is due
        self._over = False
        self._part = 0  # [micro-batches] of the step under way
        self._said: set[str] = set()  # warnings that are given once
        self._forwards = 0  # since the last step
        self._seen = 0  # [samples] of the last forward pass; 0: not known
        self._first = True
        self._data_s, self._clock = 0.0, time.perf_counter()
        self._span: tuple[Progress, Progress] | None = None  # of the step that has just ended
        self._closed = threading.Event()

    # ---- what the host's loop calls -------------------------------------------------------------------------------

    @property
    def hp(self) -> Values:
        """The hyper-parameters in force; before the first batch those that were given."""
        return self._inner.hp if self._inner is not None else Values(self._given)

    @property
    def progress(self) -> Progress:
        return self._inner.progress if self._inner is not None else Progress()

    @property
    def ended(self) -> bool:
        """Is the run over: stopped by a policy or a person, or at its horizon? All ranks hear it at the same step."""
        return self._inner is not None and not self._due(self._inner)

    def step(self, loss: Tensor, samples: int | None = None) -> bool:
        """Backward; every A micro-batches also all-reduce, clipping and the optimizer's step. True if that was done.

        `loss` is the mean over the batch that `session.model` was called with. Each of its samples weighs 1 / B, so a
        batch shorter or longer than the micro-batch counts by its share; so does not the progress: a step counts as
        R x A x micro-batch samples. `samples` is the batch's size where that is not the length of the first tensor
        among the model's arguments. Once the run has ended nothing is done.
        """
        if self._over:
            return self._idle()
        if self._inner is None or not self._forwards:
            raise RuntimeError(OUTSIDE)
        share = self._share(samples)
        before = self._inner.progress
        stepped = self._inner.step(loss, share=share, data_s=self._data_s)
        self._asked, self._forwards, self._seen, self._data_s = False, 0, 0, 0.0
        self._part = 0 if stepped else self._part + 1
        self._span = (before, self._inner.progress) if stepped else None
        self._clock = time.perf_counter()
        return stepped

    def every(self, *, steps: int | None = None, samples: int | None = None) -> bool:
        """True once at each multiple of `steps`, or once each time a multiple of `samples` is passed."""
        if (steps is None) == (samples is None):
            raise ValueError("every() needs either steps= or samples=")
        if self._span is None:
            return False
        before, after = self._span
        if steps is not None:
            return after.steps % steps == 0
        assert samples is not None
        return after.samples // samples > before.samples // samples

    def log(self, **metrics: float | Tensor) -> None:
        """Note metrics of the step that has just ended; policies and charts see their mean over the ranks."""
        if self._inner is None:
            raise RuntimeError("metrics belong to a step: log after the first session.step(loss)")
        self._inner.log(**metrics)

    def knob(
        self,
        name: str,
        value: Scalar,
        min: float | None = None,
        max: float | None = None,
        choices: Sequence[str] = (),
    ) -> None:
        """Declare a hyper-parameter of the script's own, read as `session.hp.NAME`; all ranks must declare it alike."""
        if self._inner is not None:
            return self._inner.knob(name, value, min, max, choices)
        self._given.setdefault(name, value)
        self._knobs.append(((name, value, min, max), {"choices": choices}))
        return None

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint of the host's, from which `attach(..., state=...)` goes on."""
        return {"run": self.run, "steps": self.progress.steps, "samples": self.progress.samples}

    def close(self, error: BaseException | None = None) -> None:
        """Ship what is left and tell how the run ended: with `error`, if there is one. All ranks must close."""
        if self._closed.is_set():
            return
        if self._inner is not None:
            self._close(self._inner, error)
            self._closed.set()
            self._inner.hang_up()
        self._closed.set()
        if self._group.peers is not None:
            self._group.peers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.close(error)

    # ---- in time with the host ------------------------------------------------------------------------------------

    def begin(self, micro_batch: int) -> None:
        """Begin the run; to be called by all ranks."""
        assignment = self._start(micro_batch)
        inner = Session(assignment, self._call, self._group)
        self._micro = assignment.spec.micro_batch
        replica, _ = inner.prepare(self.model.module, self.optimizer, self._find_unused)
        for args, kwargs in self._knobs:
            inner.knob(*args, **kwargs)
        self.model.enter(replica)
        self._steps = inner.batches(HostLoader(self._num_samples))
        self._inner = inner
        if self.rank == 0:
            threading.Thread(target=self._beat, name="trimtab-beat", daemon=True).start()

    def _forward_begins(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if self._over:
            return False
        if not self._forwards:
            self._data_s = time.perf_counter() - self._clock
        self._seen = self._seen or _batch(args, kwargs)
        if self._inner is None:
            self.begin(self._first_batch())
        assert self._inner is not None
        self._forwards += self._due(self._inner)
        return self._asked

    def _due(self, inner: Session) -> bool:
        """Is there a micro-batch to be taken? Between two steps this is where versions are obeyed."""
        if not self._asked and not self._over:
            start = time.perf_counter()
            self._asked = next(self._steps, self) is not self
            self._clock += time.perf_counter() - start  # a pause, say, is no time in which data are read
            self._over = not self._asked
            if self._over:
                log.info("run %s: ended at step %d", self.run, inner.progress.steps)
        return self._asked

    def _first_batch(self) -> int:
        sizes = self._group.gather(self._seen)
        if 0 in sizes or len(set(sizes)) > 1:
            raise ValueError(f"the ranks' first batches have {sizes} samples: say attach(..., micro_batch=...)")
        return sizes[0]

    def _share(self, samples: int | None) -> float:
        """The batch's samples over those of a micro-batch. Raises ValueError."""
        count = self._seen if samples is None else samples
        if count < 1:
            raise ValueError(f"how many samples has the batch? Say session.step(loss, samples=...), got {count}")
        if self._first and samples is None and count != self._micro:
            raise ValueError(
                f"the first batch has {count} samples and the run's micro-batch is {self._micro}: give the loader "
                f"batch_size={self._micro}, or begin a run with micro_batch={count}; where the first tensor that the "
                "model is given is not (samples, ...), say session.step(loss, samples=...)"
            )
        if count != self._micro:
            self._warn(f"batches of other than {self._micro} samples, the first of {count}, count by their share")
        self._first = False
        return count / self._micro

    def _idle(self) -> bool:
        self._span = None
        self._warn("it has ended and nothing is trained any more; leave the loop when session.ended")
        return False

    def _warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning("run %s: %s", self.run, message)

    # ---- the run's state ------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                self._call("heartbeat", self.run)
            except Exception as error:  # the controller returns by itself
                log.warning("run %s: no heartbeat: %s", self.run, error)

    def _close(self, inner: Session, error: BaseException | None) -> None:
        self._over = True
        if self._part and error is None:
            self._warn(f"the last {self._part} micro-batches were no whole step and are lost")
        inner.close()
        try:
            if error is None:
                self._group.barrier()  # what the others ship after the end is not taken in
            self._tell(error)
        except (ControllerUnreachable, Refused) as trouble:
            log.error("run %s: how it ended could not be told: %s", self.run, trouble)
        except RuntimeError as lost:
            if not is_loss(lost):
                raise
            self._tell(None)

    def _tell(self, error: BaseException | None) -> None:
        if error is None:
            if self.rank == 0:
                stopped = self._call("run", self.run).state is RunState.STOPPING
                self._call("set_state", self.run, RunState.STOPPED if stopped else RunState.FINISHED, "")
            return
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)  # as by torchrun, where another rank failed
        gone = isinstance(error, RuntimeError) and is_loss(error)
        if (gone and self.rank > 0) or self._told(LAST_WORD_S if gone else 0):
            return
        if interrupted:
            self._call("set_state", self.run, RunState.STOPPED, "the program was interrupted")
        else:
            self._call("set_state", self.run, RunState.FAILED, f"rank {self.rank}: {type(error).__name__}: {error}")

    def _told(self, patience_s: float) -> bool:
        """Has another rank said why the run has ended?"""
        until = time.monotonic() + patience_s
        while not self._call("run", self.run).state.ended:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True


def _batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of the first tensor with a dimension [samples]; 0 if there is none."""
    tensors = (leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.dim())
    return next((len(tensor) for tensor in tensors), 0)
