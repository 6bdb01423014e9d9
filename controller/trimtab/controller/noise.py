"""Gradient noise scale: the estimator of McCandlish et al. 2018 (arXiv 1812.06162, App. A) with error bars.

From s, the mean of |g_k|^2 over the micro-batch gradients of a step, and q = |g-bar|^2 of their mean, one step gives

    |G|^2 = (B q - b s) / (B - b)        tr(Sigma) = (s - q) / (1/b - 1/B)        both unbiased

with b the harmonic mean of the micro-batches and B the global batch [samples]. B_simple is the ratio of their
exponential means, never a mean of ratios: a step's own ratio has no expectation.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BETA = 0.99  # decay of the exponential means, per estimate
BLOCK = 16  # estimates in a block of the jackknife
BLOCKS = 24  # kept apart; what is older shares the first block, with 2 % of the weight
FEWEST = 4  # blocks that an interval needs
LARGEST = 1e75  # magnitude of an estimate whose fourth power is still finite
Z = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Noise:
    """An estimate of B_simple = tr(Sigma) / |G|^2 [samples, global]."""

    value: float | None  # None: undefined (the mean of |G|^2 is not above zero), so B_simple is far above the batch
    low: float | None  # 95 % lower bound; None while there are too few estimates
    high: float | None  # 95 % upper bound; None: unbounded
    grad_sq: float  # bias-corrected mean of the unbiased |G|^2
    trace: float  # bias-corrected mean of the unbiased tr(Sigma)
    estimates: int  # taken in so far
    skipped: int  # steps whose norms were not finite

    def __str__(self) -> str:
        low = _figure(self.low or 0.0)
        if self.value is None:  # no estimate, and no end above: all that is known is that it is not below its bound
            return f"at least {low} (95 %, {self.estimates:,} estimates)"
        bounds = f"at least {low}" if self.high is None else f"{low}-{_figure(self.high)}"
        return f"{_figure(self.value)} (95 % {bounds}, {self.estimates:,} estimates)"


class NoiseState(TypedDict):
    """What an estimator must remember, as JSON."""

    estimates: int
    skipped: int
    blocks: str  # at most `BLOCKS` pairs of float64, little-endian, in base64: a tenth of the time to read


class NoiseEstimator:
    """Exponential means of |G|^2 and tr(Sigma) and the interval of their ratio, from blocks of their sums.

    Each estimate uses its own b and B, so the means survive changes of the batch. A block's sums are weighted as at
    the block's end; from one block to the next the weight falls by BETA ** BLOCK.
    """

    def __init__(self) -> None:
        self._estimates = 0
        self._skipped = 0
        self._blocks: Array = np.zeros((0, 2))  # (blocks, |G|^2 and tr(Sigma)), oldest first

    def update(self, local_sq: Array, local_batch: Array, grad_sq: Array, batch: Array) -> None:
        """Take in n steps; every array is (n,) float64.

        `local_sq` is the mean over ranks of |g_k|^2 (NaN: not measured, ignored), `local_batch` the harmonic mean of
        their batches [samples], `grad_sq` = |g-bar|^2, `batch` the global batch [samples]. A step with one gradient
        only says nothing about the noise and is ignored; one with other non-finite values is counted as skipped.
        """
        # Two or more gradients have local_batch <= batch / 2, so 3/4 tells one from several despite rounding.
        alone = np.isfinite(local_batch) & (local_batch >= 0.75 * batch)
        measured = ~np.isnan(local_sq) & ~alone
        pairs, sound = _estimate(*(a[measured] for a in (local_sq, local_batch, grad_sq, batch)))
        self._skipped += int(np.count_nonzero(~sound))
        self._add(pairs[sound])

    def noise(self) -> Noise:
        """The present estimate with its 95 % interval: Fieller's, from the jackknife's covariance over blocks."""
        if not self._estimates:
            return Noise(None, None, None, 0.0, 0.0, 0, self._skipped)
        weights = self._weights()
        share = weights / weights.sum()
        means = self._blocks * (self._ages() / weights)[:, None]
        grad_sq, trace = (float(x) for x in share @ means)
        value = _finite(max(trace, 0.0) / grad_sq) if grad_sq > 0 else None
        low, high = (None, None) if len(share) < FEWEST else _interval(grad_sq, trace, share, means)
        return Noise(value, low, high, grad_sq, trace, self._estimates, self._skipped)

    def state(self) -> NoiseState:
        return {"estimates": self._estimates, "skipped": self._skipped, "blocks": _packed(self._blocks)}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> "NoiseEstimator":
        """The estimator that had that state; it continues bit for bit."""
        estimator = cls()
        estimator._estimates = int(state["estimates"])
        estimator._skipped = int(state["skipped"])
        estimator._blocks = _unpacked(state["blocks"])
        return estimator

    def _add(self, pairs: Array) -> None:
        if not len(pairs):
            return
        begun = self._estimates % BLOCK
        index, position = np.divmod(begun + np.arange(len(pairs)), BLOCK)
        weighted = pairs * (BETA ** np.arange(BLOCK - 1, -1, -1.0))[position, None]
        sums = np.stack([np.bincount(index, column) for column in weighted.T], axis=1)
        if begun:
            sums[0] += self._blocks[-1]
        self._estimates += len(pairs)
        self._blocks = _merge_oldest(np.concatenate([self._blocks[: -1 if begun else None], sums]))

    def _ages(self) -> Array:
        """The weight of each block's end against that of the last block's end, (blocks,)."""
        return np.asarray(BETA ** (BLOCK * np.arange(len(self._blocks) - 1, -1, -1.0)))

    def _weights(self) -> Array:
        """The summed weight of each block's estimates, (blocks,); the oldest may hold more, the newest fewer."""
        filled = (self._estimates - 1) % BLOCK + 1
        counts = np.full(len(self._blocks), BLOCK)
        counts[-1] = filled
        counts[0] += self._estimates - counts.sum()
        weights = self._ages() * (1 - BETA**counts) / (1 - BETA)
        weights[-1] *= BETA ** (BLOCK - filled)
        return np.asarray(weights)


def _packed(blocks: Array) -> str:
    return base64.b64encode(blocks.astype("<f8").tobytes()).decode()


def _unpacked(blocks: str | list[list[float]]) -> Array:
    """(blocks, 2); the first journals hold them as lists."""
    if isinstance(blocks, str):
        return np.frombuffer(base64.b64decode(blocks), "<f8").astype(np.float64).reshape(-1, 2)
    return np.array(blocks, dtype=np.float64).reshape(-1, 2)


def _estimate(s: Array, b: Array, q: Array, big: Array) -> tuple[Array, NDArray[np.bool_]]:
    """|G|^2 and tr(Sigma) of each step, (n, 2), and whether both can be used, (n,)."""
    with np.errstate(all="ignore"):
        pairs = np.stack([(big * q - b * s) / (big - b), (s - q) / (1 / b - 1 / big)], axis=1)
        return pairs, np.all(np.abs(pairs) < LARGEST, axis=1) & (s >= 0) & (q >= 0) & (b > 0)


def _merge_oldest(blocks: Array) -> Array:
    surplus = len(blocks) - BLOCKS
    if surplus <= 0:
        return blocks
    ages = BETA ** (BLOCK * np.arange(surplus, -1, -1.0))
    return np.concatenate([(ages @ blocks[: surplus + 1])[None], blocks[surplus + 1 :]])


def _interval(grad_sq: float, trace: float, share: Array, means: Array) -> tuple[float | None, float | None]:
    """The 95 % interval of trace / grad_sq, whose blocks have `share` (blocks,) of the weight and `means` (blocks, 2).

    The covariance is the delete-one-block jackknife's, each difference weighted by 1 - share (Wu 1986), which is
    unbiased for equal shares. Fieller's bounds (1954) are the roots r of
    (trace - r grad_sq)^2 = t^2 Var(trace - r grad_sq).
    """
    centred = means - np.array([grad_sq, trace])
    var_g, cov, _, var_t = (centred.T * (share**2 / (1 - share)) @ centred).ravel().tolist()
    t_sq = _t_quantile(float(np.sum(share**2) ** 2 / np.sum(share**4)) - 1) ** 2
    grad_sq = max(grad_sq, 0.0)  # its true value is a square
    a, b, c = grad_sq**2 - t_sq * var_g, grad_sq * trace - t_sq * cov, trace**2 - t_sq * var_t
    root = b + math.sqrt(max(b * b - a * c, 0.0))
    high = _finite(max(root, 0.0) / a) if a > 0 else None
    if trace <= 0 or c <= 0:
        return 0.0, high
    # The lower root in the form that has no difference in it: it holds for a <= 0 too, where there is no upper one.
    return (_finite(c / root) if root > 0 else None), high


def _t_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t (Abramowitz & Stegun 26.7.5); `freedom` after Satterthwaite, at least 1."""
    n = max(freedom, 1.0)
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / n + second / n**2 + third / n**3


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figure(value: float) -> str:
    return f"{value:,.0f}" if 10 <= value < 1e9 else f"{value:.3g}"
