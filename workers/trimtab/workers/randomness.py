"""The states of a rank's global random generators, as a checkpoint keeps them."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """States of torch, of this process's CUDA device if there is one, of numpy and of python: tensors and numbers."""
    numpy: Any = np.random.get_state(legacy=False)
    words = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": {**numpy, "state": {"key": words, "pos": numpy["state"]["pos"]}},
        "python": random.getstate(),
    }


def restore(state: Mapping[str, Any]) -> None:
    """Put back what `capture` took; a CUDA state is left out where there is no such device."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    words = state["numpy"]["state"]
    np.random.set_state(
        {**state["numpy"], "state": {"key": words["key"].numpy().astype(np.uint32), "pos": words["pos"]}}
    )
    random.setstate(state["python"])
