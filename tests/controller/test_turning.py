import pytest

from trimtab.controller.observation import Scale, Set
from trimtab.controller.trajectory import Constant, Coupling, Ramp, Scalar
from trimtab.controller.turning import TURNS, WINDOW, Turning, wanted


def turned(*values: Scalar) -> Turning:
    turning = Turning(values[0])
    for now, value in enumerate(values):
        turning = turning.after(value, now)
    return turning


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ((1.0,), ()),
        ((1.0, 2.0, 4.0, 8.0), ()),
        ((8.0, 4.0, 4.0, 2.0, 0.0), ()),
        ((1.0, 2.0, 1.0), (2,)),
        ((1.0, 2.0, 3.0, 2.9, 2.8, 2.9), (4,)),  # 2.9 is within the swing of 3, 2.8 is not
        ((1.0, 1.02, 0.98, 1.02, 0.98), ()),
        ((0.0, 1.0, 0.0, 1.0), (2, 3)),
        ((0.0, 1e308, -1e308, 1e308), (2, 3)),
        ((-1.0, -2.0, -1.0), (2,)),
        ((64, 128, 64), (2,)),
        (("a", "b", "b", "a", "c"), (1, 3, 4)),
        ((1.0, "a", 2.0), (1, 2)),
    ],
)
def test_turns(values: tuple[Scalar, ...], turns: tuple[int, ...]) -> None:
    assert turned(*values).turns == turns


def test_one_turn_too_many_within_the_window() -> None:
    turning = turned(*([1.0, 2.0] * TURNS)[: TURNS + 2])
    assert len(turning.turns) == TURNS
    last, other = (2.0, 1.0) if turning.farthest == 2.0 else (1.0, 2.0)
    assert turning.too_often(other, TURNS + 2)
    assert not turning.too_often(last, TURNS + 2)  # no turn
    assert not turning.too_often(last * 2 if last > other else last / 2, TURNS + 2)  # farther the same way
    assert turning.too_often(other, turning.turns[0] + WINDOW - 1)
    assert not turning.too_often(other, turning.turns[0] + WINDOW)


def test_a_triangle_of_twenty_observations_is_borne() -> None:
    turning = Turning(0.0)
    for now in range(1000):
        value = float(abs(now % 20 - 10))
        assert not turning.too_often(value, now)
        turning = turning.after(value, now)


def test_a_ramp_counts_for_its_end() -> None:
    assert wanted(Set("lr", Constant(2.0), "why")) == 2.0
    assert wanted(Set("lr", Ramp(1.0, 0.1, 0, 10), "why")) == 0.1
    assert wanted(Scale("lr", Ramp(0.1, 1.0, 5, 10, "steps", "cosine"), "why")) == 1.0
    assert wanted(Scale("lr", Coupling("sqrt", 64), "why")) is None
