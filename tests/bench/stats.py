"""What the benchmarks share: medians with bootstrap intervals, progress on stderr, one JSON line on stdout."""

import json
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000


def interval(values: ArrayLike, seed: int = 0) -> tuple[float, float, float]:
    """Median of all `values`, (n,) or (n, k), and its 95 % bootstrap interval, (median, low, high).

    The n rows are resampled whole, so that values which belong together (of one round) stay together.
    """
    rows = np.asarray(values, np.float64)
    rows = rows[~np.isnan(rows).reshape(len(rows), -1).any(axis=1)]
    if not len(rows):
        return (float("nan"),) * 3
    rng = np.random.default_rng(seed)
    medians = [np.median(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(rows)), float(low), float(high)


def spread(name: str, values: ArrayLike, seed: int = 0) -> dict[str, float]:
    """The interval as three keys: NAME, NAME_low, NAME_high."""
    median, low, high = interval(values, seed)
    return {name: median, f"{name}_low": low, f"{name}_high": high}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(bench: str, **figures: Any) -> None:
    """The figures as one line of JSON, the last on stdout; the load tells whether the machine was quiet."""
    machine = {"cpus": os.cpu_count(), "load_1min": round(os.getloadavg()[0], 2)}
    print(json.dumps({"bench": bench} | {k: _short(v) for k, v in figures.items()} | machine), flush=True)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return value
