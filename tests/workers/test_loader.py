import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from trimtab.workers.keyed import Keyed
from trimtab.workers.loader import Loader, LoaderOptions, open_loader

N = 100
X, Y = torch.randn(N, 3), torch.arange(N)


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


class Broken(Pairs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 7:
            raise OSError("bad sector")
        return super().__getitem__(index)


class Noisy(Pairs):
    def __getitem__(self, index: int) -> Any:
        return index, torch.rand(()), random.random(), np.random.rand()


class Ordered(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(Y)


def taken(loader: Loader, count: int) -> list[Any]:
    return [loader.next() for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_map_style_data_set_gives_what_tensors_give(num_workers: int) -> None:
    loaders = [open_loader((X, Y), 5), open_loader(Pairs(), 5, options=LoaderOptions(num_workers=num_workers))]
    for position, micro, rank, world_size in [(0, 8, 0, 2), (64, 4, 1, 3), (64, 4, 1, 3), (1000, 8, 0, 1)]:
        for loader in loaders:
            loader.cut(position, micro, rank, world_size)
        for _ in range(6):
            ours, theirs = (loader.next() for loader in loaders)
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
    last = [loader.next(3) for loader in loaders]
    assert torch.equal(last[0][1], last[1][1])
    assert len(last[0][1]) == 3
    for loader in loaders:
        loader.close()


def test_the_short_batch_is_the_beginning_of_the_next() -> None:
    loader = open_loader((Y,), 1)
    loader.cut(40, 8, 1, 2)
    loader.next()
    short = loader.next(5)[0]
    loader.cut(56, 8, 1, 2)
    assert loader.next()[0][:5].tolist() == short.tolist()


def test_kinds_of_tensors_are_read_alike() -> None:
    alone, dataset = open_loader(Y, 1), open_loader(TensorDataset(X, Y), 1)
    for loader in (alone, dataset):
        loader.cut(0, 16, 0, 1)
    assert alone.num_samples == dataset.num_samples == N
    assert torch.equal(alone.next()[0], dataset.next()[1])


def test_a_list_of_samples_is_a_data_set() -> None:
    loader = open_loader(list(range(10)), 1, shuffle=False)
    loader.cut(8, 4, 0, 1)
    assert loader.next().tolist() == [8, 9, 0, 1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_data_set_reach_the_caller(num_workers: int) -> None:
    loader = open_loader(Broken(), 1, shuffle=False, options=LoaderOptions(num_workers=num_workers))
    loader.cut(0, 4, 0, 1)
    assert loader.next()[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(OSError, match="bad sector"):
        loader.next()
    loader.close()


def test_a_cut_leaves_the_training_s_random_state_alone() -> None:
    loader, before = open_loader(Keyed(Noisy()), 1), torch.get_rng_state()
    loader.cut(0, 4, 0, 1)
    loader.next()
    assert torch.equal(before, torch.get_rng_state())


def test_keyed_augmentation_depends_on_the_place_in_the_stream_only() -> None:
    def augmented(position: int, micro: int, num_workers: int) -> Any:
        loader = open_loader(Keyed(Noisy()), 3, options=LoaderOptions(num_workers=num_workers))
        loader.cut(position, micro, 0, 1)
        batches = taken(loader, 2)
        loader.close()
        return [torch.cat([batch[i] for batch in batches]).tolist() for i in range(4)]

    here, workers, later = augmented(0, 8, 0), augmented(0, 8, 2), augmented(8, 4, 0)
    assert here == workers
    assert [column[8:] for column in here] == later
    assert not set(here[1]) & set(augmented(N, 8, 0)[1])


def test_an_iterable_is_read_in_order_by_all_ranks_together() -> None:
    loaders = [open_loader(Ordered(), 1) for _ in range(2)]
    for rank, loader in enumerate(loaders):
        loader.cut(0, 3, rank, 2)
    for start in range(0, 108, 6):
        step = torch.cat([loader.next() for loader in loaders])
        assert sorted(step.tolist()) == sorted(i % N for i in range(start, start + 6))
    assert loaders[0].num_samples is None


def test_an_iterable_s_cut_reads_on_or_begins_again_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    loader = open_loader(Ordered(), 1)
    loader.cut(0, 4, 0, 2)
    assert loader.next().tolist() == [0, 2, 4, 6]
    loader.cut(8, 2, 0, 1)
    assert not caplog.records
    assert loader.next().tolist() == [8, 9]
    with caplog.at_level(logging.INFO):
        loader.cut(4, 2, 1, 2)
    assert "reading past 4 samples" in caplog.text
    assert loader.next(1).tolist() == [5]


def test_an_iterator_that_cannot_be_read_again_says_so() -> None:
    loader = open_loader(iter([1, 2, 3, 4]), 1)
    loader.cut(0, 4, 0, 1)
    assert loader.next().tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="read only once"):
        loader.cut(2, 2, 0, 1)
    with pytest.raises(ValueError, match="has ended"):
        loader.next()


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(TypeError, match="not a DataLoader"):
        open_loader(DataLoader(Pairs(), batch_size=4), 1)
    with pytest.raises(TypeError, match="got int"):
        open_loader(3, 1)
    with pytest.raises(ValueError, match="one length"):
        open_loader((X, Y[:5]), 1)
    with pytest.raises(ValueError, match="batch_size=None"):
        open_loader(Ordered(), 1, options=LoaderOptions(num_workers=2))
    with pytest.raises(ValueError, match="fewer than one global batch"):
        open_loader((X, Y), 1).cut(0, 51, 0, 2)
