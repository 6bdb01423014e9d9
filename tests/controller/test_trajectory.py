import math
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trimtab.controller.trajectory import (
    LARGEST,
    LATEST,
    MOST_MARKS,
    Constant,
    Coupling,
    Factor,
    LrRule,
    Progress,
    Ramp,
    Table,
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
def tables(draw: st.DrawFn) -> Table:
    marks = draw(st.lists(st.integers(0, LATEST) | st.integers(0, 50), min_size=2, max_size=8, unique=True).map(sorted))
    values = draw(st.lists(finite | st.sampled_from([0.0, 1.0]), min_size=len(marks), max_size=len(marks)))
    unit, interpolation = draw(st.sampled_from(["samples", "steps"])), draw(st.sampled_from(["step", "linear"]))
    return Table(tuple(marks), tuple(values), unit, interpolation)


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


def test_a_table_passes_its_marks() -> None:
    marks, values = (10, 20, 40), (1.0, 3.0, 0.0)
    points = [Progress(steps=7, samples=mark) for mark in (0, 10, 15, 20, 30, 39, 40, 99)]
    assert [Table(marks, values).at(p) for p in points] == pytest.approx([1, 1, 2, 3, 1.5, 0.15, 0, 0])
    assert [Table(marks, values, interpolation="step").at(p) for p in points] == [1, 1, 1, 3, 3, 3, 0, 0]


@given(tables(), st.integers(0, LATEST) | st.integers(0, 60), st.integers(0, 100))
def test_a_table_stays_within_its_values(table: Table, mark: int, more: int) -> None:
    now, later = Progress(mark, mark), Progress(mark + more, mark + more)
    assert min(table.values) <= table.at(now) <= max(table.values)
    assert all(table.at(Progress(m, m)) == value for m, value in zip(table.marks, table.values, strict=True))
    if not table.moving(now):
        assert table.at(now) == table.at(later) == table.values[-1]
    after = table.at(Progress(table.marks[-1], table.marks[-1]))
    assert table.moving(now) or table.at(now) == after
    assert table.moving(now) == (mark < table.marks[-1])


@given(tables(), st.integers(0, 60))
def test_a_table_rises_where_its_next_change_is_upwards(table: Table, mark: int) -> None:
    now = Progress(mark, mark)
    then = [table.at(Progress(m, m)) for m in table.marks if m > mark]
    start = table.at(now)
    coming = next((value > start for value in then if value != start), False)
    assert table.rising(now) == coming
    assert table.moving(now) or not table.rising(now)


def test_a_cycle_rises_and_falls() -> None:
    table = Table((100, 200, 300, 400), (0.0, 1.0, 1.0, 0.5))
    assert [table.rising(Progress(0, mark)) for mark in (0, 100, 199, 200, 300, 400, 500)] == [1, 1, 1, 0, 0, 0, 0]
    assert [table.moving(Progress(0, mark)) for mark in (0, 399, 400)] == [True, True, False]


@given(tables() | ramps(), finite, st.integers(0, 10**13))
def test_times_is_the_same_curve_times_a_number(curve: Table | Ramp, worth: float, mark: int) -> None:
    scaled, now = curve.times(worth), Progress(mark, mark)
    if scaled is None:
        assert isinstance(curve, Ramp)
        assert curve.shape == "exponential"
    else:
        ends = (scaled.start, scaled.end) if isinstance(scaled, Ramp) else scaled.values
        assert min(ends) <= scaled.at(now) <= max(ends)
        assert scaled.moving(now) == curve.moving(now)


def test_times_scales_every_point() -> None:
    table, ramp = Table((0, 10), (1.0, 2.0)), Ramp(1.0, 4.0, 0, 10, shape="exponential")
    assert table.times(-2.0) == Table((0, 10), (-2.0, -4.0))
    assert ramp.times(0.5) == Ramp(0.5, 2.0, 0, 10, shape="exponential")
    assert ramp.times(0.0) is None


@given(ramps() | tables() | couplings() | st.builds(Constant, finite | st.integers(-(2**60), 2**60) | st.text()))
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


@pytest.mark.parametrize(
    ("marks", "values"),
    [
        ((), ()),
        ((1,), (1.0,)),
        ((0, 1), (1.0,)),
        ((1, 1), (1.0, 2.0)),
        ((2, 1), (1.0, 2.0)),
        ((-1, 1), (1.0, 2.0)),
        ((0, LATEST + 1), (1.0, 2.0)),
        ((0, 1), (1.0, math.nan)),
        ((0, 1), (1.0, math.inf)),
        (tuple(range(MOST_MARKS + 1)), (1.0,) * (MOST_MARKS + 1)),
    ],
)
def test_an_impossible_table_is_refused(marks: tuple[int, ...], values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="got"):
        Table(marks, values)


def test_a_constant_is_finite_and_progress_is_not_negative() -> None:
    with pytest.raises(ValueError, match="finite"):
        Constant(math.inf)
    with pytest.raises(ValueError, match="negative"):
        Progress(-1, 0)
    with pytest.raises(ValidationError):
        FACTORS.validate_json('{"shape": "constant", "value": [1]}')


def test_texts_tell_the_shape() -> None:
    assert str(Ramp(0.01, 1, 0, 50_000)) == "linear 0.01→1 until 50,000 samples"
    assert str(Table((0, 5000), (1.0, 0.1), "steps", "step")) == "step table 1→0.1 until 5,000 steps"
    assert str(Table((0, 5, 50), (0.0, 1.0, 0.25))) == "linear table 0→…→0.25 until 50 samples"
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
