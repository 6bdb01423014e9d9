from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.workers.loader import open_loader
from trimtab.workers.stream import SampleStream, blocks, check_batch, shard, share


@given(num_samples=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**30))
@settings(deadline=None, max_examples=60)
def test_every_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    assert sorted(SampleStream(num_samples, seed).indices(positions)) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    epochs = SampleStream(500, 1).indices(np.arange(1000)).reshape(2, 500)
    other = SampleStream(500, 2).indices(np.arange(500))
    assert (epochs[0] == epochs[1]).mean() < 0.05
    assert (epochs[0] == other).mean() < 0.05


def test_permutations_are_near_uniform() -> None:
    epochs, n = 5000, 12
    indices = SampleStream(n, 3).indices(np.arange(epochs * n)).reshape(epochs, n)
    counts = np.stack([np.bincount(indices[:, place], minlength=n) for place in range(n)])
    chi_squared = ((counts - epochs / n) ** 2 / (epochs / n)).sum() / (n - 1) ** 2
    assert 0.6 < chi_squared < 1.6


def test_unshuffled_stream_is_in_order() -> None:
    assert SampleStream(5, 0, shuffle=False).indices(np.arange(12)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_indices_of_a_huge_data_set_need_no_memory_for_it() -> None:
    indices = SampleStream(10**15, 9).indices(np.arange(10**15 - 64, 10**15 + 64))
    assert len(set(indices.tolist())) == 128
    assert indices.max() < 10**15


@given(count=st.integers(0, 200), start=st.integers(0, 10**9), world_size=st.integers(1, 9))
def test_ranks_share_a_short_step_without_gap(count: int, start: int, world_size: int) -> None:
    parts = [shard(start, r, world_size, share(count, r, world_size)) for r in range(world_size)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(start, start + count))


def test_blocks_continue_one_another() -> None:
    rows = blocks(7, 1, 3, 500)
    both = np.concatenate([next(rows), next(rows)])
    assert both.ravel().tolist() == shard(7, 1, 3, both.size).tolist()


phase = st.fixed_dictionaries(
    {
        "world_size": st.integers(1, 4),
        "micro": st.integers(1, 8),
        "accumulations": st.lists(st.integers(1, 4), min_size=1, max_size=4),  # a step each
        "failed": st.booleans(),  # whether a step was lost, so that the phase begins by giving its data again
    }
)


def steps(num_samples: int, seed: int, phases: list[dict[str, object]]) -> Iterator[tuple[int, list[int]]]:
    """(position, samples seen by all ranks) of each step; every phase cuts anew, from fresh loaders on odd ones."""
    data, position = torch.arange(num_samples), 0
    loaders = [open_loader((data,), seed) for _ in range(4)]
    for number, each in enumerate(phases):
        if number % 2:
            loaders = [open_loader((data,), seed) for _ in range(4)]
        ranks, micro = int(str(each["world_size"])), int(str(each["micro"]))
        for attempt in range(2 if each["failed"] else 1):
            for rank, loader in enumerate(loaders[:ranks]):
                loader.cut(position, micro, rank, ranks)
            if attempt == 0 and each["failed"]:
                loaders[0].next()
        accumulations = each["accumulations"]
        assert isinstance(accumulations, list)
        for accumulation in accumulations:
            batches = [loader.next()[0] for loader in loaders[:ranks] for _ in range(accumulation)]
            yield position, torch.cat(batches).tolist()
            position += ranks * accumulation * micro


@given(num_samples=st.integers(32, 150), seed=st.integers(0, 99), phases=st.lists(phase, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_a_step_is_the_next_samples_and_an_epoch_has_each_once(
    num_samples: int, seed: int, phases: list[dict[str, object]]
) -> None:
    stream = SampleStream(num_samples, seed)
    seen: list[int] = []
    for position, samples in steps(num_samples, seed, phases):
        assert position == len(seen)
        assert sorted(samples) == sorted(stream.indices(np.arange(position, position + len(samples))))
        seen += stream.indices(np.arange(position, position + len(samples))).tolist()
    for epoch in range(len(seen) // num_samples):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


def test_a_data_set_below_one_batch_is_refused_with_advice() -> None:
    check_batch(64, 64)
    with pytest.raises(ValueError, match="set batch_size to at most 63"):
        check_batch(63, 64)
    with pytest.raises(ValueError, match="at least one sample"):
        SampleStream(0, 1)
