"""When a learning rate has been cut: for policies of the batch, which would otherwise anneal a second time."""

from trimtab.controller.hyperparameters import LR
from trimtab.controller.observation import Observation

__all__ = ["watch_lr"]

CUT = 0.9  # a learning rate below this share of what it was within a window has been cut


def watch_lr(
    noted: float | None, age: int, batch: int, observation: Observation, window: int
) -> tuple[float | None, int, bool]:
    """The learning rate to measure a cut from, its age in estimates, and whether one has just been made.

    `noted` is what was returned before (None: nothing yet), `age` its age now, `batch` the global batch at the last
    observation.
    """
    lr = observation.values.get(LR)
    if lr is None or isinstance(lr, str):
        return None, 0, False
    if noted is None or lr > noted or observation.plan.batch_size != batch:
        return lr, 0, False  # at a new batch the learning rate follows its coupling
    if lr < CUT * noted:
        return lr, 0, True
    return (lr, 0, False) if age >= window else (noted, age, False)
