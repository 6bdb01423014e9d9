import math
from pathlib import Path

import numpy as np
import pytest

from trimtab.controller.metrics import Block, RankReader
from trimtab.controller.metrics.block import part
from trimtab.controller.metrics.ranks import RankWriter, numbers


def block(steps: range, *ranks: int) -> Block:
    """A block whose values tell where they come from."""
    at = np.arange(steps.start, steps.stop)
    columns = {part("loss", rank): (at + rank / 4).astype(np.float32) for rank in ranks}
    return Block(at, at * 8, 1.7e9 + at * 0.5, columns)


def of(folder: Path, rank: int, start: float | None = None, end: float | None = None) -> tuple[list[int], list[float]]:
    reader = RankReader(folder)
    found = reader.query(["loss"], rank, "step", start, end, 10**6).get("loss")
    reader.close()
    return ([], []) if found is None else (found.x.tolist(), found.last.tolist())


def test_nothing_was_written(tmp_path: Path) -> None:
    assert of(tmp_path / "none", 0) == ([], [])
    RankWriter(tmp_path / "none").close()


def test_the_newest_steps_are_kept_across_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.controller.metrics.ranks.FULL_STEPS", 100)
    folder = tmp_path / "run.ranks"
    writer = RankWriter(folder)
    for first in range(1, 1001, 20):
        writer.append(block(range(first, first + 20), 0, 1))
        if first == 501:
            writer.close()
            writer = RankWriter(folder)
    writer.flush()
    steps, values = of(folder, 1)
    assert steps == list(range(steps[0], 1001))
    assert 100 <= len(steps) <= 200
    assert values == [step + 0.25 for step in steps]
    assert of(folder, 1, 990, 992) == ([990, 991, 992], [990.25, 991.25, 992.25])
    assert of(folder, 7) == ([], [])
    assert len(numbers(folder)) == 2


def test_a_file_that_is_very_large_is_full_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.controller.metrics.ranks.FULL_BYTES", 10_000)
    writer = RankWriter(tmp_path)
    for first in range(1, 10_001, 500):
        writer.append(block(range(first, first + 500), 0))
    writer.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 30_000


def test_a_rewind_voids_later_steps_in_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.controller.metrics.ranks.FULL_STEPS", 100)
    writer = RankWriter(tmp_path)
    writer.append(block(range(1, 101), 0))
    writer.append(block(range(101, 151), 0))
    writer.rewind(80)
    assert of(tmp_path, 0)[0] == list(range(1, 81))
    writer.append(block(range(81, 91), 0, 1, 2))  # more ranks now
    writer.close()
    assert of(tmp_path, 0)[0] == list(range(1, 91))
    assert of(tmp_path, 2)[0] == list(range(81, 91))
    reader = RankReader(tmp_path)
    rows = list(reader.table(["loss", "none"], 2))
    assert [row.step for row in rows] == list(range(81, 91))
    assert math.isnan(rows[0].values[1])
