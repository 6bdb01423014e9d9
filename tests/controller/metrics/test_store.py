"""Writer and reader together: what was appended is what is read."""

import errno
import json
import math
import os
from dataclasses import replace
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
from trimtab.controller.metrics.block import part
from trimtab.controller.metrics.format import Kind, _frame, frames
from trimtab.controller.metrics.reader import Window
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


@settings(deadline=None, max_examples=120)
@given(actions, st.sampled_from([1, 7, 256]), st.sampled_from([1, 5, 1000]), st.sampled_from([-1, 10**9]))
def test_what_is_appended_is_read(
    actions: list[Block | int | str], chunk_rows: int, segment_rows: int, checked: int
) -> None:
    """Blocks, rewinds, flushes and reopenings in any order; a reader follows, another one comes at the end."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.controller.metrics.writer.CHUNK_ROWS", chunk_rows)
        patch.setattr("trimtab.controller.metrics.writer.SEGMENT_ROWS", segment_rows)
        patch.setattr("trimtab.controller.metrics.reader.PAGE_ROWS", 7)
        patch.setattr("trimtab.controller.metrics.format.CHECKED_BYTES", checked)
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
            for start, end in ((-math.inf, math.inf), (100, 2**61)):
                inside = [one for one in wanted if start <= one[0] <= end]
                check_summaries(reader, key, Window(axis, start, end, 1), inside)
    wanted_cells = {(point.step, point.key): point.value for point in model.points}
    rows = list(reader.table(keys))
    assert [row.step for row in rows] == sorted({step for step, _ in wanted_cells})
    for row in rows:
        assert (row.samples, row.time) in {(p.samples, p.time) for p in model.points if p.step == row.step}
        assert_array_equal(row.values, [wanted_cells.get((row.step, key), math.nan) for key in keys])


def check_summaries(reader: MetricReader, key: str, window: Window, wanted: list[tuple[float, float]]) -> None:
    """Summaries stand for all points of the window, each once, and none other."""
    ((_, (series, weights)),) = reader.points([key], window)
    assert weights.sum() == len(wanted)
    if wanted:
        values = np.array([value for _, value in wanted], np.float32)
        assert_array_equal(np.fmin.reduce(series.min), np.fmin.reduce(values))
        assert_array_equal(np.fmax.reduce(series.max), np.fmax.reduce(values))
        assert window.axis != "step" or series.x[-1] == wanted[-1][0]


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
    assert path.stat().st_size / (20_000 * len(keys)) < 6.4
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


def test_a_file_of_the_first_version_is_read_and_goes_on(path: Path) -> None:
    """`golden/0.1.metrics` was written before there were summaries and spreads: two writers, a rewind, NaN."""
    golden = Path(__file__).parent / "golden" / "0.1.metrics"
    wanted = json.loads(golden.with_suffix(".json").read_text())
    path.write_bytes(golden.read_bytes())
    reader = MetricReader(path)
    assert list(reader.keys()) == reader.columns(reader.keys()) == wanted["keys"]
    rows = list(reader.table(wanted["keys"]))
    assert [list(row[:3]) for row in rows] == [row[:3] for row in wanted["rows"]]
    cells = [[math.nan if cell is None else cell for cell in row[3:]] for row in wanted["rows"]]
    assert_array_equal([row.values for row in rows], np.array(cells, np.float32))
    reader.close()
    writer = MetricWriter(path)
    writer.append(block(list(range(560, 2600)), "loss", "grad_norm", "hp/lr"))
    writer.close()
    reader = MetricReader(path)
    assert str(list(reader.table(wanted["keys"]))[: len(rows)]) == str(rows)
    ((_, (series, weights)),) = reader.points(["loss"], Window(max_points=10))
    assert (weights.sum(), len(series) < 400) == (559 + 2040, True)


def ranked(steps: range, low: float, high: float) -> Block:
    at = np.arange(steps.start, steps.stop)
    ends = np.full(len(at), low, np.float32), np.full(len(at), high, np.float32)
    return Block(at, at * 8, START_S + at * 0.5, {"loss": np.sin(at).astype(np.float32)}, {"loss": ends})


def test_of_one_rank_there_is_no_spread_in_a_table_though_summaries_have_one(path: Path) -> None:
    writer = MetricWriter(path)
    for start in range(1, 5001, 250):
        writer.append(block(list(range(start, start + 250))))
    writer.close()
    reader = MetricReader(path)
    assert reader._index.summaries > 0
    assert reader.columns(["loss"]) == ["loss"]


def test_the_spread_over_ranks_is_kept_where_there_is_one(path: Path) -> None:
    writer = MetricWriter(path)
    writer.append(block(list(range(1, 301))))  # one rank
    writer.append(ranked(range(301, 601), -5, 5))
    same = block(list(range(601, 901)))
    writer.append(replace(same, spread={"loss": (same.columns["loss"], same.columns["loss"])}))  # ranks agree
    writer.close()
    reader = MetricReader(path)
    columns = ["loss", part("loss", "min"), part("loss", "max")]
    assert (reader.keys(), reader.columns(["loss"])) == (("loss",), columns)
    rows = {row.step: row.values for row in reader.table(columns)}
    assert (rows[300], rows[601]) == ((300, 300, 300), (601, 601, 601))
    assert rows[301][1:] == (-5, 5)
    for start in (-5, 0, 1, 300, 301, 900, 901):
        assert [row.step for row in reader.table(columns, start)] == list(range(max(1, start), 901))
    found = reader.query(["loss"], start=301, end=600, max_points=1)["loss"]
    assert (found.min.tolist(), found.max.tolist(), found.last[0]) == ([-5], [5], np.float32(math.sin(600)))
    with path.open("rb") as file:
        sizes = [frame.end - frame.start for frame in frames(file.fileno()) if frame.kind == Kind.POINTS]
    assert sizes[1] - sizes[0] == sizes[1] - sizes[2] == 2 * 4 * (300 + 1)  # two columns and their numbers


def test_a_long_run_is_read_from_summaries_and_loses_no_spike(path: Path) -> None:
    writer, n = MetricWriter(path), 120_000
    for first in range(0, n, 200):
        made = block(list(range(first, first + 200)), "loss", "val")
        if first == 77_000:
            made.columns["loss"][77] = 1e30
        writer.append(made)
    writer.close()
    reader = MetricReader(path)
    axes: list[tuple[Axis, float]] = [("step", 1), ("samples", 8), ("time", 0.5)]
    for axis, unit in axes:
        origin = START_S if axis == "time" else 0
        for low, high, most in ((None, None, 600), (33_333, 99_999, 700), (77_077, 77_077, 1), (77_000, 79_000, 999)):
            window = [None if end is None else origin + end * unit for end in (low, high)]
            both = reader.query(["loss", "val"], axis, *window, max_points=most)
            found = both["loss"]
            assert len(found) <= most
            assert found.max.max() == np.float32(1e30)
            assert both["val"].min[0] == (low or 0) + 0.25
            assert found.x[-1] == origin + (n - 1 if high is None else high) * unit
        ((_, (rows, weights)),) = reader.points(["val"], Window(axis, max_points=500))
        assert (weights.sum(), len(rows) < 3500) == (n, True)
        calm = reader.query(["val"], axis, max_points=500)["val"]
        assert np.abs(calm.mean - (calm.min + calm.max) / 2).max() < 5  # a line's mean is its middle


def test_a_summary_that_the_disk_does_not_take_is_written_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.controller.metrics.writer.encode_summary", refuse)
        with pytest.raises(OSError, match="No space"):
            writer.append(block(list(range(1, 1001))))
    writer.append(block(list(range(1001, 1301))))
    writer.close()
    assert writer.lost == 0
    assert steps_in(path) == list(range(1, 1301))
    assert len(MetricReader(path).query(["loss"], max_points=1)["loss"]) == 1
    with path.open("rb") as file:
        assert [frame.kind for frame in frames(file.fileno())].count(Kind.SUMMARY) == 1
