"""What a rank does about a spike within the step that shows it: skip the step, or clip its gradient (ZClip).

Decided from the norm of the reduced gradient, which all ranks have alike and read once a step anyhow, so they decide
alike and nothing waits. Both thresholds are hyper-parameters; with both at 0 nothing is kept or counted.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW = 128  # norms of accepted steps that a spike is measured against
FEWEST = 25  # of them before anything is done; ZClip's own warm-up
ALPHA = 0.97  # ZClip: what the mean and the variance keep of themselves at each step
MAX_SKIPPED = 10  # spikes in a row after which it is the level that has changed
LEAST = 1e-6  # smallest share of the mean that counts as a deviation: rounding is no spread


class Guard:
    """Tells how large a gradient may be applied, and learns from what is.

    Skip: norm > mean + skip_sigma * deviation of the last `WINDOW` accepted norms. Skipped norms are not learnt from;
    after `MAX_SKIPPED` in a row, and whenever the batch changes, which moves all norms, the window begins anew.

    Clip (Kumar et al. 2025, ZClip, arXiv 2504.02507): with z = (norm - m) / s > zclip the norm becomes
    m + s * zclip^2 / z; m and s^2 are exponential means, begun with those of the first `FEWEST` norms.
    """

    def __init__(self) -> None:
        self._begin(0)

    def _begin(self, batch: int) -> None:
        self._batch = batch
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._moments: tuple[float, float] | None = None  # m and s^2
        self._skipped = 0

    def limit(self, norm: float, batch: int, skip_sigma: float, zclip: float) -> float:
        """The largest norm to apply where it is `norm`, which is finite: 0 to skip the step, inf to let it be.

        `batch` is the global one that was planned [samples].
        """
        if skip_sigma <= 0 and zclip <= 0:
            return math.inf
        if batch != self._batch:
            self._begin(batch)
        if skip_sigma > 0 and len(self._norms) >= FEWEST and self._is_spike(norm, skip_sigma):
            self._skipped += 1
            if self._skipped > MAX_SKIPPED:
                self._begin(batch)
            else:
                return 0.0
        self._skipped = 0
        limit = self._clip(norm, zclip) if zclip > 0 and self._moments else math.inf
        self._learn(min(norm, limit))
        return limit

    def _is_spike(self, norm: float, sigma: float) -> bool:
        mean, variance = _moments(self._norms)
        return norm > mean + sigma * max(math.sqrt(variance), LEAST * mean)

    def _clip(self, norm: float, zclip: float) -> float:
        assert self._moments is not None
        mean, variance = self._moments
        deviation = max(math.sqrt(variance), LEAST * mean)
        if deviation == 0 or norm <= mean + zclip * deviation:
            return math.inf
        return mean + deviation * zclip * (zclip * deviation / (norm - mean))

    def _learn(self, norm: float) -> None:
        self._norms.append(norm)
        if self._moments is not None:
            mean = ALPHA * self._moments[0] + (1 - ALPHA) * norm
            self._moments = (mean, ALPHA * self._moments[1] + (1 - ALPHA) * (norm - mean) ** 2)
        elif len(self._norms) >= FEWEST:
            self._moments = _moments(self._norms)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: numbers and containers of them."""
        return {
            "batch": self._batch,
            "norms": list(self._norms),
            "moments": None if self._moments is None else list(self._moments),
            "skipped": self._skipped,
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave; None: anew."""
        if state is None:
            return self._begin(0)
        self._batch, self._skipped = state["batch"], state["skipped"]
        self._norms = deque(state["norms"], WINDOW)
        self._moments = None if state["moments"] is None else (state["moments"][0], state["moments"][1])
        return None


def _moments(norms: deque[float]) -> tuple[float, float]:
    mean = math.fsum(norms) / len(norms)
    return mean, math.fsum([(norm - mean) ** 2 for norm in norms]) / len(norms)
