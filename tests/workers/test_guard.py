import json
import math
import timeit

import pytest

from trimtab.workers.guard import ALPHA, FEWEST, MAX_SKIPPED, WINDOW, Guard


def calm(skip_sigma: float = 6.0, zclip: float = 0.0, count: int = FEWEST) -> Guard:
    """A guard that has seen norms 0.9 and 1.1 in turn: mean 1 and deviation 0.1 after each pair."""
    guard = Guard()
    for i in range(count):
        assert guard.limit(1.1 if i % 2 else 0.9, 64, skip_sigma, zclip) == math.inf
    return guard


def test_off_it_keeps_nothing_and_costs_nothing() -> None:
    guard = Guard()
    assert guard.limit(1e9, 64, 0.0, 0.0) == math.inf
    assert guard.state()["norms"] == []
    each = min(timeit.repeat(lambda: guard.limit(1.0, 64, 0.0, 0.0), number=10_000, repeat=3)) / 10_000
    assert each < 5e-6


def test_a_norm_beyond_six_deviations_is_skipped_and_not_learnt_from() -> None:
    assert calm(count=26).limit(1.59, 64, 6.0, 0.0) == math.inf
    guard = calm(count=26)
    assert guard.limit(1.61, 64, 6.0, 0.0) == 0.0
    assert len(guard.state()["norms"]) == 26
    assert guard.limit(1.0, 64, 6.0, 0.0) == math.inf


def test_nothing_is_skipped_before_there_is_something_to_compare_with() -> None:
    assert calm(count=FEWEST - 1).limit(1e6, 64, 6.0, 0.0) == math.inf
    assert calm(count=FEWEST).limit(1e6, 64, 6.0, 0.0) == 0.0


@pytest.mark.parametrize(("norm", "skipped"), [(1.89, False), (1.91, True)])
def test_the_last_128_count(norm: float, skipped: bool) -> None:
    guard = calm(count=26)
    for i in range(WINDOW):  # mean 1.3, deviation 0.1
        guard.limit(1.4 if i % 2 else 1.2, 64, 6.0, 0.0)
    assert (guard.limit(norm, 64, 6.0, 0.0) == 0) == skipped


def test_a_new_level_is_accepted_after_ten_steps() -> None:
    guard = calm()
    assert [guard.limit(50.0, 64, 6.0, 0.0) for _ in range(MAX_SKIPPED + 1)] == [0.0] * MAX_SKIPPED + [math.inf]
    assert guard.state()["norms"] == [50.0]


def test_another_batch_begins_anew() -> None:
    guard = calm()
    assert guard.limit(50.0, 32, 6.0, 0.0) == math.inf
    assert guard.state()["norms"] == [50.0]


def test_norms_that_are_all_alike_are_no_reason_to_skip_a_rounding() -> None:
    guard = Guard()
    for _ in range(FEWEST):
        guard.limit(2.0, 64, 6.0, 2.5)
    assert guard.limit(2.0 * (1 + 1e-7), 64, 6.0, 2.5) == math.inf
    assert guard.limit(2.1, 64, 6.0, 2.5) == 0.0


def test_zclip_clips_to_the_reciprocal_of_the_z_score() -> None:
    guard = Guard()
    for i in range(FEWEST):  # 12 x 1.2 and 13 x 0.8
        guard.limit(1.2 if i % 2 else 0.8, 64, 0.0, 2.5)
    mean = (12 * 1.2 + 13 * 0.8) / 25
    deviation = math.sqrt((12 * (1.2 - mean) ** 2 + 13 * (0.8 - mean) ** 2) / 25)
    assert guard.limit(mean + 2.4 * deviation, 64, 0.0, 2.5) == math.inf
    mean = ALPHA * mean + 0.03 * (mean + 2.4 * deviation)
    variance = ALPHA * deviation**2 + 0.03 * (guard.state()["norms"][-1] - mean) ** 2
    norm = mean + 5 * math.sqrt(variance)
    limit = guard.limit(norm, 64, 0.0, 2.5)
    assert limit == pytest.approx(mean + 2.5**2 / 5 * math.sqrt(variance))  # z = 5: 1.25 deviations
    assert guard.state()["norms"][-1] == limit  # what was applied is learnt from
    assert guard.state()["moments"][0] == pytest.approx(ALPHA * mean + 0.03 * limit)


def test_skipping_goes_before_clipping() -> None:
    guard = calm(6.0, 2.5, count=26)
    assert guard.limit(1.4, 64, 6.0, 2.5) < 1.4
    assert guard.limit(9.0, 64, 6.0, 2.5) == 0.0


def test_it_goes_on_from_its_state() -> None:
    guard, norms = calm(4.0, 2.5, count=30), [1.3, 0.7, 1.0, 2.0, 1.29, 50.0, 1.0]
    again = Guard()
    again.restore(json.loads(json.dumps(guard.state())))
    assert [guard.limit(n, 64, 4.0, 2.5) for n in norms] == [again.limit(n, 64, 4.0, 2.5) for n in norms]
    assert guard.state() == again.state()
    again.restore(None)
    assert again.state() == Guard().state()


def test_on_it_costs_less_than_a_thousandth_of_a_step() -> None:
    guard = calm(6.0, 2.5, count=WINDOW)
    each = min(timeit.repeat(lambda: guard.limit(1.0, 64, 6.0, 2.5), number=500, repeat=5)) / 500
    assert each < 100e-6  # about 15 µs on a quiet core; a step is 20 ms
