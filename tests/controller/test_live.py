"""What a controller holds of a run besides its journaled state."""

from pathlib import Path

import numpy as np
import pytest

from trimtab.controller.live import TRACE, _losses
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
