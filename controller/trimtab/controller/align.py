"""Alignment: the records of all ranks, reduced to one row a step."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.controller.metrics.block import Block, part, together
from trimtab.controller.records import COLUMNS, MEAN_SQ, Floats, Ints, Records, Times

MAX_PENDING = 4096  # rows held for a silent rank before the others go on without it
MEASURES = ("local_sq", "local_batch", "batch_size")  # for the estimator; no metrics of their own
MEAN = tuple(name for name in COLUMNS if name not in MEASURES)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows that are final: dense metrics of every step and the sparse ones that users logged."""

    dense: Block  # columns: MEAN, with their spread over ranks, `step_time_max`, `hp/NAME`
    measured: Mapping[str, Times]  # s, b, q, batch: (n,) each, NaN where a rank is missing
    own_times: Times  # (ranks, n) each rank's time a step without waiting for the others [s], NaN where it is missing
    sparse: Mapping[str, Block]  # each has a column of that name; metrics that were logged together share theirs
    by_rank: Sequence[Block]  # each rank's own values of all these but `hp/NAME`, in columns `part(KEY, RANK)`


@dataclass(frozen=True, slots=True)
class Logged:
    """What one rank has logged of one metric."""

    rank: int
    name: str
    steps: Ints
    values: Floats

    def at(self, rows: np.ndarray) -> "Logged":
        return Logged(self.rank, self.name, self.steps[rows], self.values[rows])


class Aligner:
    """Collects the records of one formation's ranks.

    A step is final when every rank has gone past it, so a row may miss ranks only where their records were dropped,
    or came after the others had gone on without them. What comes twice counts once. What a user logs belongs to the
    step that has just ended, hence it is final one step later.
    """

    def __init__(self, world_size: int) -> None:
        self._pending: dict[int, list[Records]] = {rank: [] for rank in range(world_size)}
        self._last = dict.fromkeys(range(world_size), 0)  # newest step of each rank
        self._final = 0  # newest step that has been taken
        self._logged: list[Logged] = []
        self._messages: dict[int, Records] = {}  # each rank's newest
        self._recent: deque[Block] = deque()  # the steps that sparse metrics find their samples and times in
        self._recent_rows = 0

    def add(self, records: Records) -> tuple[int, int]:
        """Take in a message; how many of its steps and logged values were new, and how many steps came too late.

        Raises KeyError for a rank that is not of the formation.
        """
        last = self._last[records.rank]
        taken = 0
        before = self._messages.get(records.rank)
        self._messages[records.rank] = records
        if before is None or not _same_log(before, records):
            self._logged += [Logged(records.rank, name, *points) for name, points in records.logged.items()]
            taken = sum(len(steps) for steps, _ in records.logged.values())
        new = _after(records, last)
        in_time = _after(new, self._final) if self._final > last else new
        if len(in_time.steps):
            self._pending[records.rank].append(in_time)
            self._last[records.rank] = int(in_time.steps[-1])
        return taken + len(in_time.steps), len(new.steps) - len(in_time.steps)

    def take(self, final: bool = False) -> Aligned | None:
        """What has become final; None if nothing has. `final` ends the run: everything has."""
        rows = max(sum(len(r.steps) for r in pending) for pending in self._pending.values())
        frontier = max(self._last.values()) if final or rows > MAX_PENDING else min(self._last.values())
        parts = {rank: self._cut(rank, frontier) for rank in self._pending}
        steps = _union([records.steps for part in parts.values() for records in part])
        sparse_until = frontier if final else frontier - 1
        if not self._recent and not len(steps):  # what is logged needs a step that it belongs to
            return None
        if not len(steps) and not any((one.steps <= sparse_until).any() for one in self._logged):
            return None
        self._final = max(self._final, frontier)
        dense, measured, own_times, own = self._reduce(steps, parts)
        self._remember(dense)
        logged = [self._mean(metrics) for metrics in _alike(self._ready(sparse_until))]
        sparse = {name: block for block, _ in logged for name in block.columns}
        by_rank = together(block for _, block in logged)
        return Aligned(dense, measured, own_times, sparse, [own, *by_rank] if len(steps) else by_rank)

    def _cut(self, rank: int, frontier: int) -> list[Records]:
        ready = [r for r in self._pending[rank] if r.steps[-1] <= frontier]
        rest = self._pending[rank][len(ready) :]
        if rest and rest[0].steps[0] <= frontier:
            n = int(np.searchsorted(rest[0].steps, frontier, side="right"))
            ready.append(_rows(rest[0], slice(None, n)))
            rest[0] = _rows(rest[0], slice(n, None))
        self._pending[rank] = rest
        return ready

    def _reduce(self, steps: Ints, parts: Mapping[int, list[Records]]) -> tuple[Block, dict[str, Times], Times, Block]:
        n, ranks = len(steps), len(parts)
        cube = np.zeros((ranks, len(COLUMNS), n))
        present = np.zeros((ranks, n), bool)
        samples, times = np.zeros(n, np.int64), np.zeros(n)
        settings: dict[str, Floats] = {}
        for rank, messages in parts.items():
            for records in messages:
                at = _places(records.steps, steps)
                present[rank, at] = True
                samples[at] = records.samples
                times[at] = np.maximum(times[at], records.times)
                cube[rank][:, at] = [records.columns[name] for name in COLUMNS]
                for name in records.columns.keys() - _COLUMNS:
                    settings.setdefault(name, np.full(n, np.nan, np.float32))[at] = records.columns[name]
        mean = cube.sum(axis=0) / np.maximum(present.sum(axis=0), 1)
        rows = mean.astype(np.float32)
        columns = {name: rows[_ROW[name]] for name in MEAN}
        slowest = np.where(present, cube[:, _ROW["step_time"]], -np.inf).max(axis=0, initial=-np.inf)
        columns["step_time_max"] = slowest.astype(np.float32)
        with np.errstate(invalid="ignore"):
            own = np.where(present, cube[:, _ROW["step_time"]] - cube[:, _ROW["reduce_time"]], np.nan)
        measured = _measured(cube, mean, present)
        if MEAN_SQ in settings:  # each rank applied a gradient of its own, and that of their mean was measured apart
            measured["grad_sq"] = np.where(np.isfinite(settings[MEAN_SQ]), settings[MEAN_SQ], measured["grad_sq"])
        single: Floats = np.where(present[:, None], cube, np.nan).astype(np.float32)
        dense = Block(steps, samples, times, columns | settings, _spread(single))
        by_rank = {part(name, rank): single[rank, _ROW[name]] for rank in parts for name in MEAN}
        return dense, measured, own, Block(steps, samples, times, by_rank)

    def _remember(self, dense: Block) -> None:
        if not len(dense):
            return
        self._recent.append(dense)
        self._recent_rows += len(dense)
        while len(self._recent) > 1 and self._recent_rows - len(self._recent[0]) >= 2 * MAX_PENDING:
            self._recent_rows -= len(self._recent.popleft())

    def _ready(self, until: int) -> dict[str, list[Logged]]:
        """What has been logged at steps <= `until`, by name; the rest is kept."""
        ready: dict[str, list[Logged]] = {}
        rest = []
        for one in self._logged:
            now = one.steps <= until
            if now.all():
                ready.setdefault(one.name, []).append(one)
                continue
            if now.any():
                ready.setdefault(one.name, []).append(one.at(now))
            rest.append(one.at(~now))
        self._logged = rest
        return ready

    def _mean(self, metrics: Mapping[str, list[Logged]]) -> tuple[Block, Block]:
        """One value a step of metrics that the same ranks have logged at the same steps: the mean over these ranks,
        with the lowest and the highest; and each rank's own."""
        first = next(iter(metrics.values()))
        steps, at = np.unique(np.concatenate([one.steps for one in first]), return_inverse=True)
        values = np.array([np.concatenate([one.values for one in points]) for points in metrics.values()])
        order = np.argsort(at, kind="stable")
        starts = np.searchsorted(at[order], np.arange(len(steps)))
        values = values[:, order]  # (metrics, points)
        mean = np.add.reduceat(values.astype(np.float64), starts, axis=1) / np.diff(np.append(starts, len(at)))
        spread = {}
        if len(steps) < len(at):
            low, high = np.fmin.reduceat(values, starts, axis=1), np.fmax.reduceat(values, starts, axis=1)
            spread = {name: (low[i], high[i]) for i, name in enumerate(metrics)}
        samples, times = self._when(steps)
        columns = dict(zip(metrics, mean.astype(np.float32), strict=True))
        return Block(steps, samples, times, columns, spread), Block(steps, samples, times, _own(steps, metrics))

    def _when(self, steps: Ints) -> tuple[Ints, Times]:
        """The samples and the time at the end of each step, or of the nearest step before that is known."""
        first = self._recent[0]
        samples, times = np.full(len(steps), first.samples[0]), np.full(len(steps), first.times[0])
        sought = np.ones(len(steps), bool)
        for block in reversed(self._recent):
            here = sought & (steps >= block.steps[0])
            rows = np.searchsorted(block.steps, steps[here], side="right") - 1
            samples[here], times[here] = block.samples[rows], block.times[rows]
            sought &= ~here
            if not sought.any():
                break
        return samples, times


_COLUMNS = frozenset(COLUMNS)
_ROW = {name: row for row, name in enumerate(COLUMNS)}


def _spread(cube: Floats) -> dict[str, tuple[Floats, Floats]]:
    """The lowest and the highest rank of each metric; `cube` is (ranks, COLUMNS, n), NaN where a rank is missing."""
    if len(cube) == 1:
        return {}
    low, high = np.fmin.reduce(cube), np.fmax.reduce(cube)
    return {name: (low[_ROW[name]], high[_ROW[name]]) for name in MEAN}


def _alike(logged: Mapping[str, list[Logged]]) -> list[dict[str, list[Logged]]]:
    """The metrics in groups that the same ranks have logged at the same steps."""
    groups: dict[tuple[tuple[int, bytes], ...], dict[str, list[Logged]]] = {}
    for name, points in logged.items():
        groups.setdefault(tuple((one.rank, one.steps.tobytes()) for one in points), {})[name] = points
    return list(groups.values())


def _own(steps: Ints, metrics: Mapping[str, list[Logged]]) -> dict[str, Floats]:
    """The ranks' own values, NaN where a rank has logged none."""
    columns: dict[str, Floats] = {}
    for name, points in metrics.items():
        for one in points:
            column = columns.setdefault(part(name, one.rank), np.full(len(steps), np.nan, np.float32))
            column[np.searchsorted(steps, one.steps)] = one.values
    return columns


def _same_log(one: Records, other: Records) -> bool:
    """Is this the same message again, sent twice because its answer was lost?"""
    return (
        one.produced == other.produced
        and np.array_equal(one.steps, other.steps)
        and one.logged.keys() == other.logged.keys()
        and all(_same_points(one.logged[name], other.logged[name]) for name in one.logged)
    )


def _same_points(one: tuple[Ints, Floats], other: tuple[Ints, Floats]) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1], equal_nan=True)


def _after(records: Records, last: int) -> Records:
    """The rows beyond step `last`, in order, each step once."""
    steps = records.steps
    if len(steps) > 1 and not (steps[1:] > steps[:-1]).all():
        records = _rows(records, np.unique(steps, return_index=True)[1])
    known = int(np.searchsorted(records.steps, last, side="right"))
    return _rows(records, slice(known, None)) if known else records


def _union(steps: list[Ints]) -> Ints:
    if not steps:
        return np.empty(0, np.int64)
    if all(np.array_equal(steps[0], other) for other in steps[1:]):
        return steps[0]
    return np.unique(np.concatenate(steps))


def _places(steps: Ints, of: Ints) -> Ints | slice:
    """Where `steps` stand among the steps `of`."""
    return slice(None) if len(steps) == len(of) else np.searchsorted(of, steps)


def _rows(records: Records, rows: slice | Ints) -> Records:
    return Records(
        records.run,
        records.rank,
        records.formation,
        records.steps[rows],
        records.samples[rows],
        records.times[rows],
        {name: column[rows] for name, column in records.columns.items()},
    )


def _measured(cube: Times, mean: Times, present: np.ndarray) -> dict[str, Times]:
    """The estimator's input: mean |g_k|^2, harmonic mean of the b_k, |g-bar|^2 and B of every step."""
    whole = present.all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        harmonic = len(cube) / (1 / cube[:, _ROW["local_batch"]]).sum(axis=0)
        grad_sq = mean[_ROW["grad_norm"]] ** 2
    return {
        "local_sq": np.where(whole, mean[_ROW["local_sq"]], np.nan),
        "local_batch": harmonic,
        "grad_sq": grad_sq,
        "batch": mean[_ROW["batch_size"]],
    }
