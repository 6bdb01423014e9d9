import math
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trimtab.controller.trajectory import (
    LARGEST,
    Constant,
    Coupling,
    Factor,
    LrRule,
    Progress,
    Ramp,
    product,
)

FACTORS: TypeAdapter[Factor] = TypeAdapter(Factor)
Shape = Literal["linear", "cosine", "sqrt", "exponential"]
finite = st.floats(allow_nan=False, allow_infinity=False)
above_zero = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
batches = st.integers(1, 2**40)


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    shape: Shape = draw(st.sampled_from(get_args(Shape)))
    ends = above_zero if shape == "exponential" else finite
    begin = draw(st.integers(0, 10**12))
    until = begin + draw(st.integers(1, 10**12))
    return Ramp(draw(ends), draw(ends), begin, until, draw(st.sampled_from(["samples", "steps"])), shape)


@st.composite
def couplings(draw: st.DrawFn) -> Coupling:
    return Coupling(
        rule=draw(st.sampled_from(get_args(LrRule))),
        base_batch=draw(batches),
        noise_scale=draw(st.none() | st.floats(1e-3, 1e9)),
        exponent=draw(st.floats(0, 2)),
        scale=draw(st.floats(1e-3, 1e3)),
    )


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [
        ("linear", 2.0, 3.0),
        ("cosine", 1 + 4 * (1 - math.cos(math.pi / 4)) / 2, 3.0),
        ("sqrt", 3.0, 1 + 4 * math.sqrt(0.5)),
        ("exponential", 5**0.25, 5**0.5),
    ],
)
def test_each_shape_passes_its_marks(shape: Shape, quarter: float, half: float) -> None:
    ramp = Ramp(1.0, 5.0, 100, 200, "steps", shape)
    worth = [ramp.at(Progress(steps=steps, samples=7)) for steps in (0, 100, 125, 150, 200, 999)]
    assert worth == pytest.approx([1, 1, quarter, half, 5, 5])


def test_sqrt_decay_is_one_minus_sqrt() -> None:
    assert Ramp(1.0, 0.0, 0, 100, shape="sqrt").at(Progress(samples=36)) == pytest.approx(1 - math.sqrt(0.36))


@given(ramps(), st.integers(0, 10**13))
def test_a_ramp_never_leaves_its_ends(ramp: Ramp, mark: int) -> None:
    worth = ramp.at(Progress(mark, mark))
    assert min(ramp.start, ramp.end) <= worth <= max(ramp.start, ramp.end)
    assert ramp.moving(Progress(mark, mark)) or worth == ramp.end


def test_a_ramp_between_the_largest_numbers_stays_finite() -> None:
    assert Ramp(-1e308, 1e308, 0, 4).at(Progress(0, 1)) == pytest.approx(-0.5e308)
    assert Ramp(1e-308, 1e308, 0, 2, shape="exponential").at(Progress(0, 1)) == pytest.approx(1.0)


@given(ramps() | couplings() | st.builds(Constant, finite | st.integers(-(2**60), 2**60) | st.text()))
def test_json_gives_the_same_back(factor: Factor) -> None:
    again = FACTORS.validate_json(FACTORS.dump_json(factor))
    assert again == factor
    assert not isinstance(factor, Constant) or type(again.value) is type(factor.value)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fields",
    [
        {"start": math.nan, "end": 1.0, "begin": 0, "until": 1},
        {"start": 0.0, "end": math.inf, "begin": 0, "until": 1},
        {"start": 0.0, "end": 1.0, "begin": 5, "until": 5},
        {"start": 0.0, "end": 1.0, "begin": -1, "until": 5},
        {"start": 0.0, "end": 1.0, "begin": 10**400, "until": 10**400 + 1},
        {"start": 0.0, "end": 1.0, "begin": 0, "until": 1, "shape": "exponential"},
    ],
)
def test_an_impossible_ramp_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Ramp(**fields)  # type: ignore[arg-type]


def test_a_constant_is_finite_and_progress_is_not_negative() -> None:
    with pytest.raises(ValueError, match="finite"):
        Constant(math.inf)
    with pytest.raises(ValueError, match="negative"):
        Progress(-1, 0)
    with pytest.raises(ValidationError):
        FACTORS.validate_json('{"shape": "constant", "value": [1]}')


def test_texts_tell_the_shape() -> None:
    assert str(Ramp(0.01, 1, 0, 50_000)) == "linear 0.01→1 until 50,000 samples"
    assert str(Constant(0.1)) == "0.1"
    assert str(Constant("sma")) == "sma"
    assert str(Coupling("sqrt", 64)) == "sqrt of batch / 64"
    assert str(Coupling("sqrt", 64, scale=0.5)) == "sqrt of batch / 64 × 0.5"


def test_coupling_gains() -> None:
    assert Coupling("none", 64).at(256) == 1
    assert Coupling("linear", 64).at(256) == 4
    assert Coupling("sqrt", 64).at(256) == 2
    assert Coupling("linear", 64, exponent=0.5).at(256) == 2
    assert Coupling("adascale", 64).at(256) == 2
    assert Coupling("adascale", 64, noise_scale=64).at(256) == pytest.approx(2 / 1.25)
    assert Coupling("adascale", 64, noise_scale=1e12).at(256) == pytest.approx(4)


@given(couplings(), batches, batches)
def test_rebased_leaves_the_factor(coupling: Coupling, before: int, after: int) -> None:
    assert coupling.rebased(before, after).at(after) == pytest.approx(coupling.at(before), rel=1e-9)


@given(couplings(), st.sampled_from(get_args(LrRule)), batches)
def test_another_rule_leaves_the_factor(coupling: Coupling, rule: LrRule, batch: int) -> None:
    other = coupling.under(rule, batch)
    assert other.rule == rule
    assert other.at(batch) == pytest.approx(coupling.at(batch), rel=1e-9)


@given(st.lists(st.tuples(batches, batches), max_size=600))
def test_a_coupling_outlasts_any_number_of_changes(changes: list[tuple[int, int]]) -> None:
    coupling = Coupling("linear", 64)
    for before, after in [*changes, *[(2**40, 1)] * 50]:
        coupling = coupling.rebased(before, after)
        assert 0 <= coupling.at(after) < math.inf


@pytest.mark.parametrize(
    "fields", [{"base_batch": 0}, {"noise_scale": 0.0}, {"noise_scale": math.inf}, {"exponent": math.nan}, {"scale": 0}]
)
def test_an_impossible_coupling_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Coupling(**{"rule": "linear", "base_batch": 64, **fields})  # type: ignore[arg-type]


@given(st.lists(finite))
def test_products_stay_finite(numbers: list[float]) -> None:
    assert abs(product(numbers)) <= LARGEST
