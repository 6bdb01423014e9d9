"""What a rank ships to the controller: records of its steps, as columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.controller.events import Checkpointed, RollbackFailed
from trimtab.controller.trajectory import Progress

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Times = NDArray[np.float64]

# Columns that every rank ships for every step. `local_sq` is the mean of |g_k|^2 over the gradients that this rank
# measured in the step and `local_batch` the samples in each (NaN: not measured); `grad_norm` is that of the applied
# gradient before clipping.
COLUMNS = ("loss", "grad_norm", "local_sq", "local_batch", "batch_size", "step_time", "data_time", "reduce_time")


MEAN_SQ = "mean_grad_sq"  # a column of steps at which ranks that apply each its own measured |mean gradient|^2

Report = Checkpointed | RollbackFailed  # what rank 0 alone tells; it goes into the journal as it is


@dataclass(frozen=True, slots=True)
class Branch:
    """How a formation began that was made in place, by a roll back."""

    number: int  # of the roll back
    left: Progress  # where the ranks were
    progress: Progress  # where they are back to


@dataclass(frozen=True, slots=True)
class Regrouped:
    """How a formation began that was made in place, because workers came, left or were lost."""

    cause: Literal["resize", "loss"]
    world_size: int
    progress: Progress  # of the most advanced rank, where it goes on
    pause_s: float  # from the end of the last step to where training goes on
    lost: int = 0  # ranks


@dataclass(frozen=True, slots=True)
class Records:
    """One message of one rank: n consecutive steps (fewer where records were dropped)."""

    run: str
    rank: int
    formation: int
    steps: Ints  # (n,) number of the step, from 1
    samples: Ints  # (n,) consumed by all ranks when the step had ended
    times: Times  # (n,) unix seconds at the end of the step
    columns: Mapping[str, Floats]  # each (n,); rank 0 adds `hp/NAME`
    logged: Mapping[str, tuple[Ints, Floats]] = field(default_factory=dict)  # by `session.log`: steps and values
    applied: tuple[tuple[int, int], ...] = ()  # (version, first step that ran with it)
    held: int = 0  # highest version received
    produced: int = 0  # steps and logged values noted since the formation began, dropped ones included
    dropped: int = 0
    training_s: float = 0.0  # of this rank's steps since the formation began, added up
    control_s: float = 0.0  # of these, that the training thread spent in Trimtab's own work
    branch: Branch | Regrouped | None = None  # in every message of its formation: the first to arrive begins it
    reports: tuple[Report, ...] = ()
