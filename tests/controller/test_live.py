"""What a controller holds of a run besides its journaled state."""

from pathlib import Path

import numpy as np
import pytest

from trimtab.controller.live import TRACE, _losses, _medians
from trimtab.controller.metrics import Block, MetricWriter


def test_the_trace_of_the_loss_outlasts_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "r.metrics"
    writer = MetricWriter(path)
    steps = np.arange(1, 201)
    writer.append(Block(steps, steps * 8, steps * 0.1, {"loss": (1 / steps).astype(np.float32)}))
    writer.close()
    traced = list(_losses(path))
    assert len(traced) == TRACE
    assert traced[-1] == pytest.approx(1 / 200)
    assert _losses(tmp_path / "none") == []


def test_the_median_of_each_ranks_times() -> None:
    early, late = np.array([[0.1, np.inf], [0.3, np.nan]]), np.array([[0.2, 0.3], [np.nan, 0.5]])
    assert _medians([early, late]) == pytest.approx((0.2, 0.4))
    assert _medians([early[:, 1:]]) == ()  # of none of them anything is known
    assert _medians([np.array([[0.1], [np.nan]])]) == ()  # a rank is silent
    assert _medians([]) == ()
