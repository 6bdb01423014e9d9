"""Synchronisation and size as hyper-parameters: their names, and the options of each strategy."""

from collections.abc import Mapping

from trimtab.controller.hyperparameters import HyperParameter

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
        HyperParameter(name="sma_alpha", default=0.0, min=0.0, max=1.0, unit="of a correction; 0: 1 / replicas"),
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

SYNC_PARAMETER = HyperParameter(name=SYNC, kind="choice", default=ALLREDUCE, choices=tuple(STRATEGIES))
