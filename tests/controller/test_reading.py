"""The reader without Ray, over files as the controller writes them."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from trimtab.controller.align import Aligner
from trimtab.controller.metrics import Block, MetricStore
from trimtab.controller.metrics.grid import NAMES, Grid, Shared
from trimtab.controller.reading import OPEN, Reader
from trimtab.controller.records import COLUMNS, Records


def records(rank: int, steps: range, logged: dict[str, list[int]]) -> Records:
    """Losses of step + rank; what is logged is the step, doubled on rank 1."""
    at = np.arange(steps.start, steps.stop)
    columns = {name: np.full(len(at), 0.5, np.float32) for name in COLUMNS} | {"loss": (at + rank).astype(np.float32)}
    points = {k: (np.array(s), np.array(s, np.float32) * (1 + rank)) for k, s in logged.items()}
    return Records("r", rank, 1, at, at * 8, 1e9 + at * 0.5, columns, logged=points, produced=len(at))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """Over a home with one run of two ranks, 100 steps; only rank 1 logs `own`, at two steps."""
    (tmp_path / "metrics").mkdir()
    store, aligner = MetricStore(tmp_path / "metrics" / "r.metrics"), Aligner(2)
    aligner.add(records(0, range(1, 101), {"val": [50, 100]}))
    aligner.add(records(1, range(1, 101), {"val": [50, 100], "own": [50, 60]}))
    aligned = aligner.take(final=True)
    assert aligned is not None
    for block in (aligned.dense, *aligned.sparse.values()):
        store.append(block)
    for block in aligned.by_rank:
        store.append_ranks(block)
    store.close()
    return Reader(tmp_path)


def line(path: Path, run: str, steps: range, began: float = 1e9) -> None:
    """A run whose loss is its step."""
    at = np.arange(steps.start, steps.stop)
    store = MetricStore(path / "metrics" / f"{run}.metrics")
    store.append(Block(at, at * 16, began + at * 0.25, {"loss": at.astype(np.float32)}))
    store.close()


def test_metrics_are_means_with_the_lowest_and_the_highest_rank(reader: Reader) -> None:
    found = reader.query("r", ["loss", "val", "own"], "step", 50, 60, 1000)
    assert found["loss"].x.tolist() == list(range(50, 61))
    assert [part[0] for part in (found["loss"].last, found["loss"].min, found["loss"].max)] == [50.5, 50, 51]
    assert [part[0] for part in (found["val"].mean, found["val"].min, found["val"].max)] == [75, 50, 100]
    assert [part[1] for part in (found["own"].mean, found["own"].min, found["own"].max)] == [120, 120, 120]


def test_a_rank_has_values_of_its_own(reader: Reader) -> None:
    found = reader.query("r", ["loss", "own"], "samples", 400, None, 1000, rank=1)
    assert (found["loss"].x[0], found["loss"].last[0]) == (400, 51)
    assert found["own"].last.tolist() == [100, 120]
    assert reader.query("r", ["own"], "step", None, None, 1000, rank=0) == {}
    assert reader.query("none", ["own"], "step", None, None, 1000, rank=0) == {}


def test_all_points_as_csv_with_the_spread(reader: Reader) -> None:
    rows = list(csv.DictReader("".join(reader.csv("r", ["loss", "step_time", "own"])).splitlines()))
    assert list(rows[0]) == ["step", "samples", "time", "loss", "loss (min)", "loss (max)", "step_time", "own"]
    assert (rows[59]["loss"], rows[59]["loss (max)"], rows[59]["own"], rows[60]["own"]) == ("60.5", "61.0", "120.0", "")
    own = list(csv.DictReader("".join(reader.csv("r", ["loss", "val"], rank=1)).splitlines()))
    assert (len(own), own[49]) == (
        100,
        {"step": "50", "samples": "400", "time": "1000000025.0", "loss": "51.0", "val": "100.0"},
    )
    assert "".join(reader.csv("none", ["loss"])) == "step,samples,time,loss\r\n"


def test_numbers_of_csv_are_as_short_as_float32_allows(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    values = np.array([0.3, 1e-5, 1 / 3, 2.0, np.inf, np.nan], np.float32)
    steps = np.arange(1, len(values) + 1)
    store = MetricStore(tmp_path / "metrics" / "r.metrics")
    store.append(Block(steps, steps, 1e9 + steps, {"loss": values}))
    store.close()
    told = [row["loss"] for row in csv.DictReader("".join(Reader(tmp_path).csv("r", ["loss"])).splitlines())]
    assert told == ["0.3", "1e-05", "0.33333334", "2.0", "inf", ""]
    assert np.array(told[:-1], np.float32).tobytes() == values[:-1].tobytes()


def test_runs_share_a_grid(tmp_path: Path, reader: Reader) -> None:
    line(tmp_path, "long", range(1, 30_001))
    line(tmp_path, "late", range(20_001, 20_005), began=2e9)
    found = reader.compare(["long", "late", "none"], ["loss", "x"], Grid(points=10))
    assert found.grid == [3000.0 * i for i in range(1, 11)]
    assert list(found.runs) == ["long", "late"]
    assert found.runs["long"]["loss"] == {
        "last": found.grid,
        "max": found.grid,
        "min": [3000.0 * i + 1 for i in range(10)],
        "mean": [3000.0 * i + 1500.5 for i in range(10)],
    }
    assert found.runs["late"]["loss"]["last"] == [None] * 6 + [20_004.0] + [None] * 3
    assert found.runs["long"]["x"]["mean"] == [None] * 10


def test_a_grid_of_steps_is_no_finer_than_a_step(tmp_path: Path, reader: Reader) -> None:
    line(tmp_path, "short", range(5, 9))
    found = reader.compare(["short"], ["loss"], Grid(points=500))
    assert (found.grid, found.runs["short"]["loss"]["last"]) == ([5, 6, 7, 8], [5, 6, 7, 8])
    window = reader.compare(["short"], ["loss"], Grid(start=6, end=7, points=2))
    assert (window.grid, window.runs["short"]["loss"]["last"]) == ([6, 7], [6, 7])
    assert reader.compare(["short"], ["none"], Grid()) == Shared([], {"short": {"none": {name: [] for name in NAMES}}})


def test_times_of_a_grid_count_from_each_run_s_first_point(tmp_path: Path, reader: Reader) -> None:
    line(tmp_path, "one", range(1, 402))
    line(tmp_path, "two", range(1, 402), began=2e9)
    found = reader.compare(["one", "two"], ["loss"], Grid(x="time", points=4))
    assert found.grid == [25, 50, 75, 100]
    assert found.runs["one"] == found.runs["two"]
    assert found.runs["one"]["loss"]["last"] == [101, 201, 301, 401]


def test_few_files_stay_open(tmp_path: Path, reader: Reader) -> None:
    for i in range(OPEN + 3):
        line(tmp_path, f"r{i}", range(1, 3))
        assert reader.keys(f"r{i}") == ["loss"]
    assert len(reader._open) == OPEN
    assert not math.isnan(reader.query("r0", ["loss"], "step", None, None, 1)["loss"].last[0])
