"""Augmentation that survives resumes and changes of the batch: random numbers keyed by the place in the stream."""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset


class Keyed(Dataset[Any]):
    """Wrap a map-style data set that draws random numbers (crops, flips, noise).

    Before each sample torch's, numpy's and python's global generators are seeded from (seed, position in the stream),
    and put back afterwards: a sample is augmented anew in each epoch, yet alike whoever loads it, whenever. Costs
    about 60 µs a sample, in the DataLoader's workers where there are any; an unwrapped data set costs nothing.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self._dataset))

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        """The sample for (index, seed, position)."""
        index, seed, position = key
        with _seeded(hash((seed, position)) % (1 << 64)):
            return self._dataset[index]


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    saved = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(key)  # torch.manual_seed would seed the accelerators too
    random.seed(key)
    np.random.seed(key % (1 << 32))
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        random.setstate(saved[1])
        np.random.set_state(saved[2])
