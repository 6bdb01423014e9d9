"""Alignment: the records of all ranks, reduced to one row a step."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.controller.metrics.block import Block
from trimtab.controller.records import COLUMNS, Floats, Ints, Records, Times

MAX_PENDING = 4096  # rows held for a silent rank before the others go on without it
MEASURES = ("local_sq", "local_batch", "batch_size")  # for the estimator; no metrics of their own
MEAN = tuple(name for name in COLUMNS if name not in MEASURES)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows that are final: dense metrics of every step and the sparse ones that users logged."""

    dense: Block  # columns: MEAN, `step_time_max`, `hp/NAME`
    measured: Mapping[str, Times]  # s, b, q, batch: (n,) each, NaN where a rank is missing
    sparse: Mapping[str, Block]  # one column each, named like its key


class Aligner:
    """Collects the records of one formation's ranks.

    A step is final when every rank has gone past it, so a row may miss ranks only where their records were dropped.
    What a user logs belongs to the step that has just ended, hence it is final one step later.
    """

    def __init__(self, world_size: int) -> None:
        self._pending: dict[int, list[Records]] = {rank: [] for rank in range(world_size)}
        self._last = dict.fromkeys(range(world_size), 0)  # newest step of each rank
        self._logged: list[tuple[str, Ints, Floats]] = []
        self._recent: tuple[Ints, Ints, Times] = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def add(self, records: Records) -> None:
        if len(records.steps):
            self._pending[records.rank].append(records)
            self._last[records.rank] = int(records.steps[-1])
        self._logged += [(name, steps, values) for name, (steps, values) in records.logged.items()]

    def take(self, final: bool = False) -> Aligned | None:
        """What has become final; None if nothing has. `final` ends the run: everything has."""
        rows = max(sum(len(r.steps) for r in pending) for pending in self._pending.values())
        frontier = max(self._last.values()) if final or rows > MAX_PENDING else min(self._last.values())
        parts = {rank: self._cut(rank, frontier) for rank in self._pending}
        steps = np.unique(
            np.concatenate([np.concatenate([r.steps for r in p]) for p in parts.values() if p] or [_NONE])
        )
        sparse_until = frontier if final else frontier - 1
        if not len(steps) and not any((s <= sparse_until).any() for _, s, _ in self._logged):
            return None
        dense, measured = self._reduce(steps, parts)
        self._remember(dense)
        return Aligned(dense, measured, self._sparse(sparse_until))

    def _cut(self, rank: int, frontier: int) -> list[Records]:
        ready = [r for r in self._pending[rank] if r.steps[-1] <= frontier]
        rest = self._pending[rank][len(ready) :]
        if rest and rest[0].steps[0] <= frontier:
            n = int(np.searchsorted(rest[0].steps, frontier, side="right"))
            ready.append(_rows(rest[0], slice(None, n)))
            rest[0] = _rows(rest[0], slice(n, None))
        self._pending[rank] = rest
        return ready

    def _reduce(self, steps: Ints, parts: Mapping[int, list[Records]]) -> tuple[Block, dict[str, Times]]:
        n, ranks = len(steps), len(parts)
        names = list(COLUMNS)
        cube = np.zeros((ranks, len(names), n))
        present = np.zeros((ranks, n), bool)
        samples, times = np.zeros(n, np.int64), np.zeros(n)
        settings: dict[str, Floats] = {}
        for rank, part in parts.items():
            for records in part:
                at = np.searchsorted(steps, records.steps)
                present[rank, at] = True
                samples[at] = records.samples
                times[at] = np.maximum(times[at], records.times)
                for i, name in enumerate(names):
                    cube[rank, i, at] = records.columns[name]
                for name in records.columns.keys() - set(names):
                    settings.setdefault(name, np.full(n, np.nan, np.float32))[at] = records.columns[name]
        mean = cube.sum(axis=0) / np.maximum(present.sum(axis=0), 1)
        columns = {name: mean[names.index(name)].astype(np.float32) for name in MEAN}
        slowest = np.where(present, cube[:, names.index("step_time")], -np.inf).max(axis=0, initial=-np.inf)
        columns["step_time_max"] = slowest.astype(np.float32)
        return Block(steps, samples, times, columns | settings), _measured(cube, mean, names, present)

    def _remember(self, dense: Block) -> None:
        old = self._recent
        new = (dense.steps, dense.samples, dense.times)
        self._recent = tuple(np.concatenate(pair)[-2 * MAX_PENDING :] for pair in zip(old, new, strict=True))  # type: ignore[assignment]

    def _sparse(self, until: int) -> dict[str, Block]:
        known, samples, times = self._recent
        if not len(known):
            return {}
        points: dict[str, list[tuple[Ints, Floats]]] = {}
        rest = []
        for name, steps, values in self._logged:
            ready = steps <= until
            points.setdefault(name, []).append((steps[ready], values[ready]))
            if not ready.all():
                rest.append((name, steps[~ready], values[~ready]))
        self._logged = rest
        blocks = {}
        for name, pairs in points.items():
            steps, inverse = np.unique(np.concatenate([s for s, _ in pairs]), return_inverse=True)
            if not len(steps):
                continue
            values = np.concatenate([v for _, v in pairs]).astype(np.float64)
            mean = np.bincount(inverse, values) / np.bincount(inverse)
            at = np.clip(np.searchsorted(known, steps, side="right") - 1, 0, None)
            blocks[name] = Block(steps, samples[at], times[at], {name: mean.astype(np.float32)})
        return blocks


_NONE: Ints = np.empty(0, np.int64)


def _rows(records: Records, rows: slice) -> Records:
    return Records(
        records.run,
        records.rank,
        records.formation,
        records.steps[rows],
        records.samples[rows],
        records.times[rows],
        {name: column[rows] for name, column in records.columns.items()},
    )


def _measured(cube: Times, mean: Times, names: list[str], present: np.ndarray) -> dict[str, Times]:
    """The estimator's input: mean |g_k|^2, harmonic mean of the b_k, |g-bar|^2 and B of every step."""
    whole = present.all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        harmonic = len(cube) / (1 / cube[:, names.index("local_batch")]).sum(axis=0)
    return {
        "local_sq": np.where(whole, mean[names.index("local_sq")], np.nan),
        "local_batch": harmonic,
        "grad_sq": mean[names.index("grad_norm")] ** 2,
        "batch": mean[names.index("batch_size")],
    }
