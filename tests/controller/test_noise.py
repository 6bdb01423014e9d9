import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.controller.noise import BETA, BLOCK, BLOCKS, Noise, NoiseEstimator

Array = NDArray[np.float64]
Steps = tuple[Array, Array, Array, Array]  # local_sq, local_batch, grad_sq, batch: each (n,)

DIM = 2000


def simulate(seed: int, n: int, scale: float, micro: int, ranks: int) -> Steps:
    """Norms of Gaussian gradients with |G|^2 = 1 and tr(Sigma) = scale, drawn from their exact distribution."""
    rng = np.random.default_rng(seed)
    batch, var = micro * ranks, scale / DIM  # var: of one sample's gradient in one dimension
    grad_sq = rng.noncentral_chisquare(DIM, batch / var, n) * var / batch
    local_sq = grad_sq + rng.chisquare(DIM * (ranks - 1), n) * var / batch
    return local_sq, np.full(n, float(micro)), grad_sq, np.full(n, float(batch))


def simulate_vectors(seed: int, n: int, scale: float, micros: list[int]) -> Steps:
    """The same from explicit gradient vectors, with a micro-batch for each rank."""
    rng = np.random.default_rng(seed)
    sizes = np.array(micros, dtype=np.float64)
    true = np.ones(DIM, dtype=np.float32) / math.sqrt(DIM)
    spread = np.sqrt(scale / DIM / sizes).astype(np.float32)[None, :, None]
    noise = rng.standard_normal((n, len(micros), DIM), dtype=np.float32)
    grads = (true + spread * noise).astype(np.float64)
    applied = np.einsum("nkd,k->nd", grads, sizes / sizes.sum())
    harmonic = 1 / np.mean(1 / sizes)
    local_sq = np.square(grads).sum(axis=2).mean(axis=1)
    return local_sq, np.full(n, harmonic), np.square(applied).sum(axis=1), np.full(n, sizes.sum())


def estimate(*runs: Steps) -> Noise:
    estimator = NoiseEstimator()
    for steps in runs:
        estimator.update(*steps)
    return estimator.noise()


def test_one_step_by_hand() -> None:
    # b 2, B 8, s 5, q 2: |G|^2 = (8*2 - 2*5) / 6 = 1, tr(Sigma) = 3 / (1/2 - 1/8) = 8
    noise = estimate(tuple(np.array([x]) for x in (5.0, 2.0, 2.0, 8.0)))
    assert (noise.value, noise.grad_sq, noise.trace) == pytest.approx((8.0, 1.0, 8.0))
    assert (noise.low, noise.high, noise.estimates) == (None, None, 1)


def test_is_a_ratio_of_bias_corrected_exponential_means() -> None:
    s, b, q, batch = simulate(0, 50, 1000, 32, 4)
    mean_g = mean_t = 0.0
    for i in range(50):
        mean_g = BETA * mean_g + (1 - BETA) * (batch[i] * q[i] - b[i] * s[i]) / (batch[i] - b[i])
        mean_t = BETA * mean_t + (1 - BETA) * (s[i] - q[i]) / (1 / b[i] - 1 / batch[i])
    noise = estimate((s, b, q, batch))
    correction = 1 - BETA**50
    assert noise.grad_sq == pytest.approx(mean_g / correction, rel=1e-12)
    assert noise.trace == pytest.approx(mean_t / correction, rel=1e-12)
    assert noise.value == pytest.approx(mean_t / mean_g, rel=1e-12)


def test_simulation_noise_scale_1000() -> None:
    values = [estimate(simulate(seed, 600, 1000, 32, 4)).value for seed in range(300)]
    low, high = np.percentile(np.array(values, dtype=float), [5, 95])
    assert low > 900
    assert high < 1100


def test_simulation_noise_scale_10000_is_never_negative() -> None:
    noises = [estimate(simulate(seed, 600, 10_000, 32, 4)) for seed in range(300)]
    assert all(noise.value is not None and noise.value > 0 for noise in noises)
    low, high = np.percentile([noise.value for noise in noises if noise.value], [5, 95])
    assert low > 7_200
    assert high < 15_500


def test_simulation_of_unequal_micro_batches() -> None:
    values = [estimate(simulate_vectors(seed, 250, 1000, [16, 32, 64, 16])).value for seed in range(8)]
    assert np.mean([value for value in values if value]) == pytest.approx(1000, rel=0.04)


def test_explicit_vectors_and_their_distribution_agree() -> None:
    by_vectors = [estimate(simulate_vectors(seed, 200, 1000, [32] * 4)).value for seed in range(6)]
    assert np.mean([value for value in by_vectors if value]) == pytest.approx(1000, rel=0.04)


def test_simulation_of_a_batch_switch() -> None:
    values = [estimate(simulate(s, 400, 512, 16, 4), simulate(900 + s, 400, 512, 16, 32)).value for s in range(100)]
    assert all(value is not None and abs(value - 512) < 16 for value in values)


@pytest.mark.parametrize("scale", [100, 1000, 10_000, 100_000])
@pytest.mark.parametrize("num_steps", [64, 200, 600])
def test_coverage_of_the_interval(scale: float, num_steps: int) -> None:
    noises = [estimate(simulate(seed, num_steps, scale, 32, 4)) for seed in range(300)]
    assert all(noise.low is not None for noise in noises)
    covered = sum((n.low or 0.0) <= scale <= (math.inf if n.high is None else n.high) for n in noises)
    assert 0.85 <= covered / len(noises) <= 0.995


def test_undefined_estimate_keeps_its_lower_bound() -> None:
    noises = [estimate(simulate(seed, 300, 1e5, 32, 4)) for seed in range(60)]
    undefined = [noise for noise in noises if noise.value is None]
    assert undefined
    assert all(noise.grad_sq <= 0 and noise.high is None and (noise.low or 0) > 1000 for noise in undefined)


def test_significantly_negative_grad_sq_counts_as_zero_in_the_bound() -> None:
    s, b, q, batch = simulate(0, 200, 1000, 32, 4)
    noise = estimate((s, b, q - 10.0, batch))
    assert noise.value is None  # every q is now below zero: skipped
    assert noise.skipped == 200
    noise = estimate((s + 20.0, b, q, batch))
    assert (noise.value, noise.high) == (None, None)
    assert noise.grad_sq < 0
    assert noise.low is not None
    assert 0 < noise.low < math.inf


def test_update_in_chunks_equals_update_at_once() -> None:
    steps = simulate(1, 1000, 1000, 32, 4)
    for size in (1, 7, 16, 333):
        chunked = NoiseEstimator()
        for i in range(0, 1000, size):
            chunked.update(*(a[i : i + size] for a in steps))
        got, want = chunked.noise(), estimate(steps)
        assert got.estimates == want.estimates == 1000
        for name in ("value", "low", "high", "grad_sq", "trace"):
            assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-9), (size, name)


def test_restore_continues_bit_for_bit() -> None:
    estimator = NoiseEstimator()
    for seed, n in enumerate((3, 40, 16, 700, 0, 5)):
        estimator.update(*simulate(seed, n, 1000, 32, 4))
        other = NoiseEstimator.restore(json.loads(json.dumps(estimator.state())))
        assert other.noise() == estimator.noise()
        more = simulate(100 + seed, 21, 1000, 32, 4)
        estimator.update(*more)
        other.update(*more)
        assert other.noise() == estimator.noise()
        assert other.state() == estimator.state()


def test_state_is_compact() -> None:
    estimator = NoiseEstimator()
    estimator.update(*simulate(0, 5000, 1000, 32, 4))
    assert len(json.dumps(estimator.state())) < 600


def test_old_blocks_that_share_one_keep_the_mean_exact() -> None:
    n = BLOCK * BLOCKS * 2 + 5
    s, b, q, batch = simulate(3, n, 1000, 32, 4)
    weights = BETA ** np.arange(n - 1, -1, -1.0)
    grad_sq = (batch * q - b * s) / (batch - b)
    assert estimate((s, b, q, batch)).grad_sq == pytest.approx(weights @ grad_sq / weights.sum(), rel=1e-12)


def test_unmeasured_steps_and_single_gradients_are_ignored() -> None:
    s, b, q, batch = simulate(0, 100, 1000, 32, 4)
    clean = estimate((s, b, q, batch))
    s2, b2, q2, batch2 = (np.repeat(a, 3) for a in (s, b, q, batch))
    s2[1::3] = np.nan
    q2[1::3] = np.nan
    b2[2::3] = batch2[2::3]
    assert estimate((s2, b2, q2, batch2)) == clean
    assert clean.skipped == 0


def test_non_finite_steps_are_skipped_and_counted() -> None:
    s, b, q, batch = simulate(0, 100, 1000, 32, 4)
    clean = estimate((s, b, q, batch))
    bad = [(np.inf, 32, 1, 128), (1, 32, np.nan, 128), (1, 32, np.inf, 128), (1, np.nan, 1, 128), (1, np.inf, 1, 128)]
    bad += [(1, 32, 1, np.inf), (-1, 32, 1, 128), (1e300, 32, 1, 128), (1, 0, 1, 128)]
    rows = np.array(bad, dtype=np.float64).T
    noise = estimate(*[tuple(rows)], (s, b, q, batch))  # type: ignore[list-item]
    assert noise.skipped == len(bad)
    assert (noise.value, noise.low, noise.high) == (clean.value, clean.low, clean.high)


def test_nothing_measured() -> None:
    assert NoiseEstimator().noise() == Noise(None, None, None, 0.0, 0.0, 0, 0)
    nothing = np.full(4, np.nan)
    assert estimate((nothing, nothing, nothing, nothing)) == Noise(None, None, None, 0.0, 0.0, 0, 0)
    estimator = NoiseEstimator.restore(json.loads(json.dumps(NoiseEstimator().state())))
    estimator.update(*simulate(0, 20, 1000, 32, 4))
    assert estimator.noise() == estimate(simulate(0, 20, 1000, 32, 4))


def test_gradients_without_noise() -> None:
    ones = np.ones(100)
    noise = estimate((ones, 32 * ones, ones, 128 * ones))
    assert (noise.value, noise.low, noise.high) == (0.0, 0.0, pytest.approx(0.0, abs=1e-9))
    zeros = estimate((0 * ones, 32 * ones, 0 * ones, 128 * ones))
    assert (zeros.value, zeros.low, zeros.high) == (None, 0.0, None)


def test_extreme_norms_stay_finite() -> None:
    for size in (1e-45, 1e-30, 1e30, 3e38):
        s, b, q, batch = simulate(0, 300, 1000, 32, 4)
        noise = estimate((size * s, b, size * q, batch))
        assert noise.skipped == 0
        if size > 1e-40:
            assert noise.value == pytest.approx(estimate((s, b, q, batch)).value, rel=1e-6)
            assert noise.low == pytest.approx(estimate((s, b, q, batch)).low, rel=1e-6)


def test_text_quotes_the_interval() -> None:
    assert str(Noise(812.3, 640.1, 1100.0, 1.0, 812.3, 340, 0)) == "812 (95 % 640-1,100, 340 estimates)"
    assert str(Noise(None, 640.0, None, -0.1, 812.3, 1340, 0)) == "at least 640 (95 %, 1,340 estimates)"
