import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.controller.metrics.series import bucketed, series


@given(st.lists(st.floats(width=32) | st.just(math.nan), max_size=200), st.integers(1, 220))
def test_buckets_equal_brute_force(values: list[float], max_points: int) -> None:
    n = len(values)
    column, x = np.array(values, np.float32), np.arange(n, dtype=np.int64) * 3
    found = bucketed(series(x, column), max_points)
    assert len(found) == min(n, max_points)
    for i in range(len(found)):
        low, high = i * n // len(found), (i + 1) * n // len(found)
        present = [value for value in column[low:high].tolist() if not math.isnan(value)]
        parts = [float(part[i]) for part in (found.last, found.min, found.max, found.mean)]
        assert found.x[i] == x[high - 1]
        if not present:
            assert all(math.isnan(value) for value in parts)
            continue
        assert parts[:3] == [present[-1], min(present), max(present)]
        with np.errstate(all="ignore"):
            assert parts[3] == pytest.approx(float(np.mean(present)), rel=1e-6, abs=1e-44, nan_ok=True)


def test_no_spike_disappears() -> None:
    values = np.zeros(100_000, np.float32)
    values[12_345], values[54_321] = 1e30, -math.inf
    found = bucketed(series(np.arange(100_000), values), 100)
    assert found.max.max() == np.float32(1e30)
    assert found.min.min() == -math.inf


def test_few_points_stay_as_they_are() -> None:
    values = np.array([1, math.nan, 3], np.float32)
    found = bucketed(series(np.array([4, 5, 9]), values), 3)
    assert found.x.tolist() == [4, 5, 9]
    for part in (found.last, found.min, found.max, found.mean):
        np.testing.assert_array_equal(part, values)
