"""The endless sample stream: the epochs' permutations end to end, so that a run's data state is one number.

Each epoch's permutation is computed, not stored: a Feistel network keyed by (seed, epoch) permutes a power-of-four
domain just above N, and cycle walking (Black & Rogaway 2002) brings the outliers back into [0, N).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 6  # fewer leave visible structure in small data sets
BLOCK = 1024  # [samples] of a rank whose indices are computed at once: 16 would cost as much
_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class SampleStream:
    """Maps positions in the stream to indices of a data set of `num_samples`; O(1) memory."""

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise ValueError(f"a data set needs at least one sample, got {num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self._shuffle = shuffle

    def indices(self, positions: Ints) -> Ints:
        """Indices, (n,), of the samples at `positions`, (n,): position // N is the epoch."""
        epochs, offsets = np.divmod(positions, self.num_samples)
        if not self._shuffle or not len(positions):
            return offsets
        first = int(epochs.min())
        keys = _round_keys(self.seed, np.arange(first, int(epochs.max()) + 1))[:, epochs - first]
        return _permute(offsets.astype(np.uint64), self.num_samples, keys).astype(np.int64)


def shard(start: int, rank: int, world_size: int, count: int) -> Ints:
    """Positions, (count,), of this rank's next samples: sample i after a cut belongs to rank i mod world_size."""
    return start + rank + world_size * np.arange(count, dtype=np.int64)


def share(count: int, rank: int, world_size: int) -> int:
    """How many of the next `count` samples of the stream belong to this rank: uneven in a run's last step."""
    return (count - rank + world_size - 1) // world_size


def blocks(start: int, rank: int, world_size: int, micro: int) -> Iterator[Ints]:
    """This rank's positions from a cut on, without end: blocks (k, micro) of k micro-batches."""
    rows = max(1, BLOCK // micro)
    while True:
        yield shard(start, rank, world_size, rows * micro).reshape(rows, micro)
        start += rows * micro * world_size


def check_batch(num_samples: int, batch_size: int) -> None:
    """Raise ValueError if a data set is smaller than one global batch, which would see a sample twice in a step."""
    if num_samples < batch_size:
        raise ValueError(
            f"the data set has {num_samples} samples, fewer than one global batch of {batch_size}: "
            f"set batch_size to at most {num_samples}, use fewer workers, or give more data"
        )


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele et al. 2014), elementwise."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _round_keys(seed: int, epochs: Ints) -> Words:
    """Keys, (ROUNDS, epochs)."""
    root = _mix(np.array([seed & _MASK], np.uint64))
    keys = _mix(root + _GOLDEN * epochs.astype(np.uint64))
    return _mix(keys + _GOLDEN * np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None])


def _permute(values: Words, size: int, keys: Words) -> Words:
    """Permute `values`, (n,), within [0, size), each with its own round keys, (ROUNDS, n)."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))  # [bits]
    values = _feistel(values, half, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _feistel(values[outside], half, keys[:, outside])
        outside = outside[values[outside] >= size]
    return values


def _feistel(values: Words, half: np.uint64, keys: Words) -> Words:
    left, right = values >> half, values & ((np.uint64(1) << half) - np.uint64(1))
    for key in keys:
        word = (right ^ key) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(32))) * _GOLDEN
        left, right = right, left ^ (word >> (np.uint64(64) - half))
    return (left << half) | right
