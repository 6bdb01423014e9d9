"""Per-rank micro-batches from the stream, whatever the data is: tensors, a map-style data set, or an iterable.

After a cut at a position, sample i of the stream belongs to rank i mod world_size, for every kind of data. So a step
of world_size x accumulation x micro samples is the next samples of the stream, and a change of accumulation alone
needs no cut: what is prefetched stays valid.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from trimtab.workers.iterable import IterableLoader
from trimtab.workers.keyed import Keyed
from trimtab.workers.stream import Ints, SampleStream, blocks, check_batch

Batch = Any  # what the user's loop unpacks: tensors, or what `collate` makes of samples


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How a map-style data set is read; `collate` serves iterables too. The others are torch's DataLoader's."""

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int = 2  # [micro-batches] a worker
    collate: Callable[[list[Any]], Batch] = default_collate
    start_method: str | None = None  # of worker processes: fork, forkserver or spawn; None: the platform's


class Loader(Protocol):
    """One rank's micro-batches. Errors of the data set surface in `next`."""

    num_samples: int | None  # in an epoch; None for an iterable

    def cut(self, position: int, plan_micro: int, rank: int, world_size: int) -> None:
        """Drop what was prefetched and begin anew at `position`. Raises ValueError if no step fits into the data."""

    def reaches(self, position: int) -> bool:
        """Whether a cut at `position` is possible."""

    def next(self, count: int | None = None) -> Batch:
        """The next micro-batch; `count` >= 1 samples of it in the last, short step of a run.

        A rank whose share of that step is nothing takes one sample and weights its gradient by 0.
        """

    def close(self) -> None:
        """Stop worker processes."""


class HostLoader:
    """Stands for data that somebody else's loop reads: gives nothing, and keeps step with it."""

    def __init__(self, num_samples: int | None) -> None:
        self.num_samples = num_samples

    def cut(self, position: int, plan_micro: int, rank: int, world_size: int) -> None:
        pass

    def reaches(self, position: int) -> bool:  # noqa: ARG002
        return False

    def next(self, count: int | None = None) -> Batch:  # noqa: ARG002
        return None

    def close(self) -> None:
        pass


def open_loader(data: Any, seed: int, shuffle: bool = True, options: LoaderOptions | None = None) -> Loader:
    """A loader for tensors (alone or in a tuple, or a TensorDataset), a map-style data set, or an iterable of samples.

    Raises TypeError for a DataLoader that makes batches itself and for what cannot be read at all, ValueError for
    empty data and for worker processes that an iterable cannot be given.
    """
    options = options or LoaderOptions()
    if isinstance(data, HostLoader):
        return data
    if isinstance(data, DataLoader) and data.batch_size is not None:
        raise TypeError("give the data set itself, not a DataLoader: micro-batches are cut by the session")
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, tuple) and all(isinstance(t, Tensor) for t in data):
        return TensorLoader(data, seed, shuffle)
    if not isinstance(data, IterableDataset | DataLoader) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return MapLoader(data, seed, shuffle, options)
    if isinstance(data, Iterable):
        if options.num_workers:
            raise ValueError(
                "an iterable brings its own worker processes: pass DataLoader(dataset, batch_size=None, "
                f"num_workers={options.num_workers}) as the data and leave num_workers at 0"
            )
        return IterableLoader(data, options.collate)
    raise TypeError(f"data must be tensors, a data set or an iterable of samples, got {type(data).__name__}")


class TensorLoader:
    """Rows of tensors in memory, gathered by index on the device where they are."""

    def __init__(self, tensors: tuple[Tensor, ...], seed: int, shuffle: bool) -> None:
        if len({len(t) for t in tensors}) != 1:
            raise ValueError(f"tensors must be of one length, got {[len(t) for t in tensors]}")
        self.num_samples: int | None = len(tensors[0])
        self._tensors = tensors
        self._stream = SampleStream(len(tensors[0]), seed, shuffle)
        self._rows: Iterator[Tensor] = iter(())

    def cut(self, position: int, plan_micro: int, rank: int, world_size: int) -> None:
        check_batch(self._stream.num_samples, plan_micro * world_size)
        self._rows = self._indices(position, plan_micro, rank, world_size)

    def reaches(self, position: int) -> bool:  # noqa: ARG002
        return True

    def next(self, count: int | None = None) -> Batch:
        rows = next(self._rows)[:count]
        return tuple(t.index_select(0, rows) for t in self._tensors)

    def close(self) -> None:
        pass

    def _indices(self, position: int, micro: int, rank: int, world_size: int) -> Iterator[Tensor]:
        for block in blocks(position, rank, world_size, micro):
            indices = self._stream.indices(block.ravel()).reshape(block.shape)
            yield from torch.from_numpy(indices).to(self._tensors[0].device)


class _Sampler:
    """The DataLoader's `batch_sampler`: asked for a fresh iterator, it starts at the latest cut."""

    def __init__(self, stream: SampleStream, keyed: bool) -> None:
        self._stream = stream
        self._keyed = keyed
        self.cut = (0, 0, 1, 1)  # position, rank, world size, micro-batch

    def __iter__(self) -> Iterator[list[Any]]:
        for block in blocks(*self.cut):
            indices = self._stream.indices(block.ravel()).reshape(block.shape)
            for row, positions in zip(indices, block, strict=True):
                yield self._keys(row, positions) if self._keyed else row.tolist()

    def _keys(self, indices: Ints, positions: Ints) -> list[Any]:
        return [(i, self._stream.seed, p) for i, p in zip(indices.tolist(), positions.tolist(), strict=True)]


class MapLoader:
    """A map-style data set through torch's DataLoader, whose worker processes live on from cut to cut."""

    def __init__(self, dataset: Dataset[Any], seed: int, shuffle: bool, options: LoaderOptions) -> None:
        self.num_samples: int | None = len(cast("list[Any]", dataset))
        self._stream = SampleStream(len(cast("list[Any]", dataset)), seed, shuffle)
        self._sampler = _Sampler(self._stream, isinstance(dataset, Keyed))
        self._taken = 0  # [micro-batches] since the cut
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=cast("Any", self._sampler),
            num_workers=options.num_workers,
            prefetch_factor=options.prefetch_factor if options.num_workers else None,
            persistent_workers=options.num_workers > 0,
            pin_memory=options.pin_memory,
            collate_fn=options.collate,
            multiprocessing_context=options.start_method if options.num_workers else None,
            generator=torch.Generator().manual_seed(seed),  # else each cut would draw from the training's own
        )
        self._batches: Iterator[Batch] = iter(())

    def cut(self, position: int, plan_micro: int, rank: int, world_size: int) -> None:
        check_batch(self._stream.num_samples, plan_micro * world_size)
        self._sampler.cut = (position, rank, world_size, plan_micro)
        self._taken = 0
        self._batches = iter(self._loader)

    def reaches(self, position: int) -> bool:  # noqa: ARG002
        return True

    def next(self, count: int | None = None) -> Batch:
        position, rank, world_size, micro = self._sampler.cut
        if count is not None and count != micro:
            self.cut(position + self._taken * micro * world_size, count, rank, world_size)
        self._taken += 1
        return next(self._batches)

    def close(self) -> None:
        del self._batches, self._loader  # the iterator's end stops its workers
