"""The critical batch, measured: branches of a run from one checkpoint at larger batches, and what became of their loss.

Branched training after Merrill et al. 2025 (arXiv 2505.23971): from a checkpoint the run goes on at batch kappa*B, its
learning rate coupled, for the same number of samples with each kappa. The critical batch is the largest whose loss ends
within a tolerance of the one with kappa = 1, as long as all smaller ones do too. It asks training itself, where the
gradient noise scale infers.

All branches see the same samples in the same order, so their losses are compared window by window over the same
samples: what one window happens to be harder than another drops out of the difference. Pure: no clock, no I/O.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile

import numpy as np

from trimtab.controller import engine, rollback
from trimtab.controller.errors import Refused
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import BATCH, LR
from trimtab.controller.noise import Noise, NoiseEstimator
from trimtab.controller.observation import Horizon
from trimtab.controller.records import Floats, Ints, Times
from trimtab.controller.run import Checkpoint, Run, fold
from trimtab.controller.trajectory import Progress

FACTORS = (1, 2, 4, 8)
TOLERANCE = 0.01  # in the loss's own unit
UPDATES = 200  # of the largest batch, unless somebody says how many samples
FEWEST = 8  # the same, if somebody does
TAIL = 4  # the loss is compared over the last quarter of the samples
SURE = 2.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One branch that is to be trained: a run of its own, whose hyper-parameters stay as they are."""

    factor: int
    batch_size: int  # [samples] as these workers can cut it
    lr: float | None  # None: the run has none
    spec: RunSpec  # whoever trains it says where its checkpoints are


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is to be tried, and from where."""

    run: str
    checkpoints: str  # the folder in which the run keeps them
    begin: Progress  # the checkpoint's
    samples: int  # that each branch trains with
    trials: tuple[Trial, ...]  # by factor; the first is 1
    noise: Noise | None  # as estimated at the checkpoint


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of each step of a branch, (n,), and the samples at the step's end, which count from the run's start."""

    samples: Ints | Times
    loss: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a branch ended. The standard error is that of this difference; another seed would differ by more."""

    factor: int
    batch_size: int
    lr: float | None
    loss: float | None  # mean of the last quarter; None: it diverged
    difference: float | None  # from the loss with factor 1
    std_error: float | None  # of the difference
    recovered: bool
    sure: bool  # is the difference clear of the tolerance?

    @property
    def diverged(self) -> bool:
        return self.loss is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a probe found. In words: `str`."""

    tolerance: float
    endings: tuple[Ending, ...]  # by factor
    noise: Noise | None

    @property
    def critical(self) -> Ending | None:
        """The largest batch that recovers, as do all smaller ones; None if not even the batch as it was."""
        recovered = list(takewhile(lambda ending: ending.recovered, self.endings))
        return recovered[-1] if recovered else None

    @property
    def first_lost(self) -> Ending | None:
        return next((ending for ending in self.endings if not ending.recovered), None)

    def __str__(self) -> str:
        noise = f"The noise scale said {self.noise}." if self.noise else "The noise scale was not known."
        return f"{self._found()}{self._doubt()} {noise}"

    def _found(self) -> str:
        critical, lost = self.critical, self.first_lost
        if critical is None:
            return f"Not even batch {self.endings[0].batch_size:,}, as it was, keeps a finite loss."
        still = f"Batch {critical.batch_size:,} (×{critical.factor}) still recovers"
        if lost is None:
            return f"{still}, the largest that was tried."
        if lost.difference is None:
            return f"{still}; ×{lost.factor} diverges."
        return f"{still}; ×{lost.factor} does not (loss {lost.difference:+.3g} ± {lost.std_error:.2g})."

    def _doubt(self) -> str:
        last = self.first_lost or self.endings[-1]
        close = [f"×{ending.factor}" for ending in self.endings if ending.factor <= last.factor and not ending.sure]
        if not close:
            return ""
        return (
            f" {' and '.join(close)} came too close to the tolerance {self.tolerance:g} to be sure: take more samples."
        )


def plan(run: Run, step: int | None, factors: Sequence[int], samples: int | None, workers: int | None) -> Probe:
    """Branches from the checkpoint of `step` (None: the newest), each of `workers` (None: as many as the run has).

    Each trains with `samples` (None: 200 updates of the largest batch), rounded up to whole steps of the largest.
    Raises Refused where there is no such checkpoint, or a batch that the run could not take.
    """
    if not factors or min(factors) < 1:
        raise Refused("invalid-parameters", f"factors must be whole numbers from 1 up, got {list(factors)}")
    to = rollback.kept(run, step)
    begin = Progress(to.step, to.samples)
    noise = NoiseEstimator.restore(to.estimator).noise() if to.estimator else None
    noise = noise if noise and noise.estimates else None
    there = _returned(run, to, noise, workers or run.version.batching.world_size)
    trials = [_trial(there, factor) for factor in sorted({1, *factors})]
    largest = max(trial.batch_size for trial in trials)
    window = UPDATES * largest if samples is None else math.ceil(samples / largest) * largest
    if window < FEWEST * largest:
        message = f"at least {FEWEST} updates of the largest batch {largest:,} are needed: {FEWEST * largest:,} samples"
        raise Refused("invalid-parameters", f"{message}, not {samples:,}", {"samples": message})
    horizon = Horizon(to.samples + window)
    return Probe(
        run=run.id,
        checkpoints=run.spec.checkpoints,
        begin=begin,
        samples=window,
        trials=tuple(replace(trial, spec=replace(trial.spec, horizon=horizon)) for trial in trials),
        noise=noise,
    )


def _returned(run: Run, to: Checkpoint, noise: Noise | None, workers: int) -> Run:
    """The run as it was at the checkpoint, in the hands of `workers`."""
    observation = replace(run.observation, noise=noise) if run.observation else None
    begin = Progress(to.step, to.samples)
    there = replace(run, version=to.version, progress=begin, observation=observation)
    events = engine.form(there, to.version.term, workers, begin)
    return reduce(lambda run, event: fold(run, event, run.updated), events, there)


def _trial(there: Run, factor: int) -> Trial:
    """What the run would train with, were its batch now pinned at `factor` times itself; all of it held constant."""
    batch = there.version.at(there.progress).plan.batch_size * factor
    if there.dataset_size is not None and batch > there.dataset_size:
        message = f"batch {batch:,} (×{factor}) is more than the {there.dataset_size:,} samples of the data set"
        raise Refused("out-of-bounds", f"{message}: give smaller factors", {"factors": message})
    try:
        events = engine.pin(there, there.version.term, BATCH, batch, "probe", "")
    except Refused as refusal:
        message = f"×{factor}: {refusal.message}"
        raise Refused(refusal.code, f"{message}: give smaller factors", {"factors": message}) from None
    version = reduce(lambda run, event: fold(run, event, run.updated), events, there).version
    values = version.at(there.progress).values
    spec = replace(
        there.spec,
        name=f"{there.id}-probe-x{factor}",
        world_size=version.batching.world_size,
        parameters=tuple(replace(one.spec, default=values[name]) for name, one in version.parameters.items()),
        epochs=None,
        horizon=None,
        lr_rule=there.lr_rule,
        checkpoints="",
    )
    lr = values.get(LR)
    return Trial(factor=factor, batch_size=int(values[BATCH]), lr=None if lr is None else float(lr), spec=spec)


def judge(probe: Probe, losses: Sequence[Losses], tolerance: float = TOLERANCE) -> Verdict:
    """What the losses of the trials, in their order, say."""
    width = max(trial.batch_size for trial in probe.trials)
    tails = [_tail(one, probe.begin.samples, probe.samples // width, width) for one in losses]
    endings = [_ending(trial, tail, tails[0], tolerance) for trial, tail in zip(probe.trials, tails, strict=True)]
    return Verdict(tolerance=tolerance, endings=tuple(endings), noise=probe.noise)


def _tail(of: Losses, begin: int, windows: int, width: int) -> Times:
    """The mean loss of each of the last windows of `width` samples, (windows / TAIL,); NaN where steps are missing."""
    samples = of.samples.astype(np.int64)
    within = (samples > begin) & (samples <= begin + windows * width)
    samples, loss = samples[within], of.loss[within].astype(np.float64)
    sizes = np.diff(samples, prepend=begin)
    index = (samples - begin - 1) // width
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = np.bincount(index, loss * sizes, windows) / np.bincount(index, sizes, windows)
    return np.asarray(means[-max(windows // TAIL, 2) :])


def _ending(trial: Trial, tail: Times, reference: Times, tolerance: float) -> Ending:
    finite = bool(np.isfinite(tail).all())
    comparable = finite and bool(np.isfinite(reference).all())
    differences = tail - reference if comparable else None
    difference = None if differences is None else float(differences.mean())
    error = None if differences is None else float(differences.std(ddof=1) / math.sqrt(len(differences)))
    return Ending(
        factor=trial.factor,
        batch_size=trial.batch_size,
        lr=trial.lr,
        loss=float(tail.mean()) if finite else None,
        difference=difference,
        std_error=error,
        recovered=difference is not None and difference <= tolerance,
        sure=difference is None or error is None or abs(difference - tolerance) >= SURE * error,
    )
