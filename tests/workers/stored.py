"""What tests of both kinds of checkpoint stores put into one, and look for."""

from typing import Any

import torch

from trimtab.workers.checkpoint import step_of
from trimtab.workers.checkpoints import Checkpoints


def alone() -> None:
    """The barrier of one rank."""


def save(store: Checkpoints, step: int) -> Any:
    return store.save(step, {"step": step, "weights": torch.full((1000,), float(step))}, 0, 1, alone)


def check(store: Checkpoints) -> int:
    """The latest checkpoint's step, after a look into it; 0 if there is none."""
    latest = store.latest()
    if latest is None:
        return 0
    shared, own = store.load(latest, 0)
    assert own is not None
    assert shared["step"] == step_of(latest)
    assert (shared["weights"] == step_of(latest)).all()
    return step_of(latest)
