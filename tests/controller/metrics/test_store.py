"""Writer and reader together: what was appended is what is read."""

import errno
import math
import os
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from trimtab.controller.metrics import Axis, Block, MetricReader, MetricWriter
from trimtab.controller.metrics.format import _frame, frames
from trimtab.controller.metrics.writer import CHUNK_ROWS

START_S = 1_700_000_000.0
EVERYTHING = 10**9
KEY_SETS = [("loss",), ("a b", "loss", "é"), ("val/acc",), ("é",)]


def block(steps: list[int], *keys: str, batch: int = 8) -> Block:
    """A block whose values tell where they come from."""
    at = np.array(steps, np.int64)
    columns = {key: (at + 0.25 * i).astype(np.float32) for i, key in enumerate(keys or ("loss",))}
    return Block(at, at * batch, (START_S + at * 0.5).astype(np.float64), columns)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.metrics"


def steps_in(path: Path, key: str = "loss") -> list[int]:
    reader = MetricReader(path)
    found = reader.query([key], max_points=EVERYTHING)[key].x.tolist()
    reader.close()
    return [int(step) for step in found]


values = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-45])
integers = st.integers(0, 2**62) | st.integers(0, 300)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    n = draw(st.integers(0, 12))
    first = draw(integers)
    lines = st.integers(0, 5).map(lambda stride: [first + stride * i for i in range(n)])
    column = lines | st.lists(integers, min_size=n, max_size=n)
    return Block(
        np.array(draw(column), np.int64),
        np.array(draw(column), np.int64),
        START_S + np.array(draw(st.lists(st.integers(0, 4000), min_size=n, max_size=n)), np.float64) / 8,
        {
            key: np.array(draw(st.lists(values, min_size=n, max_size=n)), np.float32)
            for key in draw(st.sampled_from(KEY_SETS))
        },
    )


class Point(NamedTuple):
    key: str
    step: int
    samples: int
    time: float
    value: float


class Model:
    """The points in the order they were written."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def append(self, block: Block) -> None:
        rows = zip(block.steps.tolist(), block.samples.tolist(), block.times.tolist(), strict=True)
        for i, row in enumerate(rows):
            self.points += [Point(key, *row, column[i].item()) for key, column in block.columns.items()]

    def rewind(self, step: int) -> None:
        self.points = [point for point in self.points if point.step <= step]

    def along(self, key: str, axis: Axis) -> list[tuple[float, float]]:
        points = [point for point in self.points if point.key == key]
        return [(getattr(point, axis), point.value) for point in sorted(points, key=attrgetter(axis))]


actions = st.lists(blocks() | integers | st.sampled_from(["flush", "reopen"]), max_size=12)


@settings(deadline=None, max_examples=400)
@given(actions, st.sampled_from([1, 7, 256]))
def test_what_is_appended_is_read(actions: list[Block | int | str], chunk_rows: int) -> None:
    """Blocks, rewinds, flushes and reopenings in any order; a reader follows, another one comes at the end."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.controller.metrics.writer.CHUNK_ROWS", chunk_rows)
        path, model = Path(folder) / "run.metrics", Model()
        writer = MetricWriter(path)
        follower = MetricReader(path)
        for action in actions:
            if isinstance(action, Block):
                writer.append(action)
                model.append(action)
            elif isinstance(action, int):
                writer.rewind(action)
                model.rewind(action)
            elif action == "flush":
                writer.flush()
                follower.refresh()
            else:
                writer.close()
                writer = MetricWriter(path)
        writer.close()
        follower.refresh()
        late = MetricReader(path)
        for reader in (follower, late):
            check_equal(reader, model)
            reader.close()


def check_equal(reader: MetricReader, model: Model) -> None:
    keys = sorted({key for keys in KEY_SETS for key in keys})
    axes: list[Axis] = ["step", "samples", "time"]
    for axis in axes:
        series = reader.query(keys, x=axis, max_points=EVERYTHING)
        for key in keys:
            wanted = model.along(key, axis)
            assert series[key].x.tolist() == [x for x, _ in wanted]
            assert_array_equal(series[key].last, np.array([value for _, value in wanted], np.float32))
    wanted_cells = {(point.step, point.key): point.value for point in model.points}
    rows = list(reader.table(keys))
    assert [row.step for row in rows] == sorted({step for step, _ in wanted_cells})
    for row in rows:
        assert (row.samples, row.time) in {(p.samples, p.time) for p in model.points if p.step == row.step}
        assert_array_equal(row.values, [wanted_cells.get((row.step, key), math.nan) for key in keys])


def test_a_torn_tail_is_cut_wherever_it_is_torn(path: Path) -> None:
    writer = MetricWriter(path)
    writer.append(block([1, 2, 3]))
    writer.flush()
    whole = path.stat().st_size
    writer.append(block([4, 5, 60], "loss", "new"))
    writer.close()
    content = path.read_bytes()
    with path.open("rb") as file:
        ends = [frame.end for frame in frames(file.fileno())]
    for size in range(whole, len(content)):
        path.write_bytes(content[:size])
        assert steps_in(path) == [1, 2, 3]
        writer = MetricWriter(path)
        assert path.stat().st_size == max(end for end in ends if end <= size)
        writer.append(block([7], "newer", "loss"))
        writer.close()
        assert steps_in(path) == [1, 2, 3, 7]
        assert steps_in(path, "newer") == [7]


@pytest.mark.parametrize("damage", [b"\0", b"\xff"])
def test_a_damaged_last_chunk_is_never_read(path: Path, damage: bytes) -> None:
    writer = MetricWriter(path)
    writer.append(block([1, 2, 3]))
    writer.flush()
    whole = path.stat().st_size
    writer.append(block([4, 5, 60]))
    writer.close()
    content = path.read_bytes()
    for at in range(whole, len(content)):
        damaged = content[:at] + damage + content[at + 1 :]
        path.write_bytes(damaged)
        assert steps_in(path) == ([1, 2, 3, 4, 5, 60] if damaged == content else [1, 2, 3])


def test_a_rewind_voids_later_steps_only(path: Path) -> None:
    writer = MetricWriter(path)
    writer.append(block(list(range(1, 601))))  # more than a chunk
    writer.append(block([100, 200, 300, 400], "val"))
    writer.append(block([601, 602]))  # still in the buffer
    writer.rewind(300)
    assert steps_in(path) == list(range(1, 301))
    assert steps_in(path, "val") == [100, 200, 300]
    writer.append(block([301, 302], batch=16))
    writer.append(block([301], "val"))
    writer.close()
    writer = MetricWriter(path)
    writer.rewind(301)
    assert steps_in(path) == list(range(1, 302))
    assert steps_in(path, "val") == [100, 200, 300, 301]
    reader = MetricReader(path)
    assert reader.query(["loss"], x="samples", start=2400)["loss"].x.tolist() == [2400, 301 * 16]
    writer.rewind(0)
    assert reader.refresh()
    assert len(reader.query(["loss"])["loss"]) == 0
    assert list(reader.table(["loss", "val"])) == []


def test_a_reader_follows_the_writer(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MetricReader(path)
    writer = MetricWriter(path)
    reader = MetricReader(path)
    assert reader.keys() == ()
    assert not reader.refresh()
    writer.append(block([1, 2], "b", "a"))
    assert not reader.refresh()  # not yet written
    writer.flush()
    assert reader.query(["a"])["a"].x.tolist() == []  # not yet refreshed
    assert reader.refresh()
    held = reader.query(["a"])["a"]
    for first in range(3, 3000, 9):
        writer.append(block(list(range(first, first + 9)), "b", "a"))
        if first % 2:
            writer.append(block([first], "sparse"))
        writer.flush()
        assert reader.refresh()
        assert reader.query(["a"], start=first)["a"].x.tolist() == list(range(first, first + 9))
    assert reader.keys() == ("a", "b", "sparse")
    assert held.x.tolist() == [1, 2]
    reader.close()
    reader.close()


def test_a_window_includes_both_ends(path: Path) -> None:
    writer = MetricWriter(path)
    writer.append(block(list(range(10))))
    writer.close()
    reader = MetricReader(path)
    assert reader.query(["loss"], start=3, end=5)["loss"].x.tolist() == [3, 4, 5]
    assert reader.query(["loss"], x="samples", start=23.5, end=33)["loss"].x.tolist() == [24, 32]
    assert reader.query(["loss"], x="time", end=START_S + 1)["loss"].x.tolist() == [START_S + 0.5 * i for i in range(3)]
    assert len(reader.query(["loss"], start=50)["loss"]) == 0
    assert len(reader.query(["unknown"])["unknown"]) == 0
    assert len(reader.query(["loss"], max_points=4)["loss"]) == 4
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        reader.query(["loss"], max_points=0)


def test_a_table_joins_sparse_and_dense_metrics(path: Path) -> None:
    writer = MetricWriter(path)
    writer.append(block([1, 2, 3]))
    writer.append(block([2, 4], "val"))
    writer.close()
    rows = list(MetricReader(path).table(["val", "loss", "none"]))
    assert [(row.step, row.samples, row.time) for row in rows] == [(i, 8 * i, START_S + 0.5 * i) for i in (1, 2, 3, 4)]
    nan = math.nan
    assert_array_equal([row.values for row in rows], [[nan, 1, nan], [2, 2, nan], [nan, 3, nan], [4, nan, nan]])


def test_a_point_takes_few_bytes(path: Path) -> None:
    writer = MetricWriter(path)
    chance = np.random.default_rng(7)
    keys = [f"metric {i}" for i in range(10)]
    for first in range(0, 20_000, 20):
        at = np.arange(first, first + 20)
        columns = {key: chance.standard_normal(20).astype(np.float32) for key in keys}
        writer.append(Block(at, at * 128, (START_S + at * 0.01).astype(np.float64), columns))
    writer.close()
    assert path.stat().st_size / (20_000 * len(keys)) < 4.6
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_loses_the_chunk_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.write` does what it does on a full disk: a part of it, then ENOSPC."""
    writer = MetricWriter(path)
    writer.append(block([1, 2, 3]))
    writer.flush()
    write, room = os.write, 10

    def write_some(fd: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        writer.append(block([4, 5], "loss", "new"))
        with pytest.raises(OSError, match="No space"):
            writer.flush()
        with pytest.raises(OSError, match="No space"):
            writer.rewind(2)
    assert steps_in(path) == [1, 2, 3]
    assert writer.lost == 4
    writer.append(block([3, 4], "loss", "new"))
    writer.close()
    assert steps_in(path) == [1, 2, 3, 4]
    assert steps_in(path, "new") == [3, 4]


def test_a_writer_thought_dead_does_no_harm(path: Path) -> None:
    old = MetricWriter(path)
    old.append(block([1, 2]))
    old.flush()
    new = MetricWriter(path)
    old.append(block([3], "loss", "old's"))
    new.append(block([3], "loss", "new's"))
    new.flush()
    reader = MetricReader(path)
    old.rewind(0)
    old.append(block(list(range(4, 4 + CHUNK_ROWS)), "loss", "old's"))
    new.append(block([4], "loss", "new's"))
    new.close()
    old.close()
    reader.refresh()
    assert steps_in(path) == [1, 2, 3, 4]
    assert reader.query(["loss"])["loss"].x.tolist() == [1, 2, 3, 4]
    assert reader.keys() == ("loss", "new's")
    last = MetricWriter(path)
    last.append(block([5], "loss", "old's"))
    last.close()
    assert steps_in(path, "old's") == [5]


def test_a_kind_of_a_later_version_is_passed_over(path: Path) -> None:
    writer = MetricWriter(path)
    writer.append(block([1]))
    writer.flush()
    with path.open("ab") as file:
        file.write(_frame(99, 1, b"a pyramid, say"))  # type: ignore[arg-type]
    writer.append(block([2]))
    writer.close()
    assert steps_in(path) == [1, 2]
