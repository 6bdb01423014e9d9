"""Synchronisation and size as hyper-parameters: their names, the options of each strategy, what a resize changes."""

from collections.abc import Mapping
from dataclasses import replace

from trimtab.controller.hyperparameters import (
    BATCH,
    COUPLED,
    LR,
    HyperParameter,
    Version,
    initial_parameter,
    multiplied,
)
from trimtab.controller.trajectory import Coupling, Progress

SYNC = "sync"  # how replicas are kept together
WORKERS = "workers"  # places, one device each, that the run trains on
LEARNERS = "learners"  # on each of them; the world size is workers x learners
ALLREDUCE = "allreduce"

_MOMENTS = HyperParameter(
    name="sync_moments",
    kind="choice",
    default="average",
    choices=("average", "clear"),
    unit="what a switch of strategy makes of the optimizers' states",
)
_NOISE_EVERY = HyperParameter(
    name="noise_every",
    kind="integer",
    default=0,
    min=0,
    unit="steps between two measurements of the gradient noise, one extra all-reduce each; 0: none",
)
_AVERAGING = (_MOMENTS, _NOISE_EVERY)

STRATEGIES: Mapping[str, tuple[HyperParameter, ...]] = {
    ALLREDUCE: (),
    "sma": (
        HyperParameter(name="sma_every", kind="integer", default=1, min=1, unit="steps between two averagings"),
        HyperParameter(
            name="sma_alpha",
            default=-1.0,
            min=-1.0,
            max=1.0,
            unit="of a correction; below 0: 1 / replicas, or 0.1 in the form mean",
        ),
        HyperParameter(name="sma_momentum", default=0.9, min=0.0, max=0.9999, unit="of the central model"),
        HyperParameter(
            name="sma_form",
            kind="choice",
            default="centre",
            choices=("centre", "mean"),
            unit="a central model (Crossbow), or the mean alone (KungFu)",
        ),
        *_AVERAGING,
    ),
    "pair": (
        HyperParameter(name="pair_staleness", kind="integer", default=4, min=1, unit="steps a peer may be behind"),
        *_AVERAGING,
    ),
    "local": (
        HyperParameter(name="local_steps", kind="integer", default=8, min=1, unit="steps between two averagings"),
        HyperParameter(name="outer_lr", default=1.0, min=0.0, max=2.0, unit="1 with momentum 0: the plain mean"),
        HyperParameter(name="outer_momentum", default=0.0, min=0.0, max=0.9999, unit="Nesterov; DiLoCo's is 0.9"),
        *_AVERAGING,
    ),
}

OPTIONS = {option.name: option for own in STRATEGIES.values() for option in own}

SYNC_PARAMETER = HyperParameter(name=SYNC, kind="choice", default=ALLREDUCE, choices=tuple(STRATEGIES))


def strategy(version: Version, progress: Progress) -> str:
    """The strategy in force."""
    sync = version.parameters.get(SYNC)
    return ALLREDUCE if sync is None else str(sync.at(progress, 0))


def averages(version: Version, progress: Progress) -> bool:
    """Do replicas train apart, each on its own share of the batch, and average their parameters now and then?"""
    return strategy(version, progress) != ALLREDUCE


def with_options(version: Version, progress: Progress) -> Version:
    """The version with the options of its strategy, at their defaults where they are new."""
    for option in STRATEGIES.get(strategy(version, progress), ()):
        if option.name not in version.parameters:
            version = version.with_parameter(initial_parameter(option))
    return version


def measures_noise(version: Version, progress: Progress) -> bool:
    """Is there a gradient noise scale? Replicas that train apart have one mean gradient only where it is asked for."""
    if not averages(version, progress) or version.batching.world_size == 1:
        return True
    every = version.parameters.get(_NOISE_EVERY.name)
    return every is not None and bool(every.at(progress, 0))


def wanted(version: Version, progress: Progress) -> tuple[int, int] | None:
    """The workers, and the learners on each, that are asked for; None where nobody can change the run's size."""
    workers, learners = (version.parameters.get(name) for name in (WORKERS, LEARNERS))
    if workers is None:
        return None
    return int(workers.at(progress, 0)), int(learners.at(progress, 0)) if learners is not None else 1


def counted(workers: int) -> str:
    """How many workers, in words."""
    return f"{workers:,} worker{'' if workers == 1 else 's'}"


def regrouped(version: Version, world_size: int, scale: bool, progress: Progress) -> Version:
    """The same settings for another number of ranks.

    The global batch is held as far as these ranks can take it; with `scale` each rank keeps its share, unless the
    batch is pinned. Where gradients are averaged the learning rate follows the batch by its coupling; replicas that
    train apart see batches of the size that they had, so their rate stays.
    """
    old = version.batching
    if world_size == old.world_size:
        return version
    new = replace(version, batching=old.regrouped(world_size))
    batch = version.parameters[BATCH]
    if not scale or batch.pin is not None:
        return new
    new = new.with_parameter(replace(batch, base=multiplied(batch.base, world_size / old.world_size, progress)))
    lr = version.parameters.get(LR)
    coupling = lr.factors.get(COUPLED) if lr is not None else None
    if lr is None or not isinstance(coupling, Coupling) or not averages(version, progress):
        return new
    sizes = (one.at(progress).plan.batch_size for one in (version, new))
    return new.with_parameter(replace(lr, factors={**lr.factors, COUPLED: coupling.rebased(*sizes)}))
