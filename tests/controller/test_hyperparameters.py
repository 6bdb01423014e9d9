import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.controller.batching import Batching
from trimtab.controller.hyperparameters import (
    HyperParameter,
    Parameter,
    Pin,
    Version,
    initial_parameter,
)
from trimtab.controller.trajectory import Constant, Coupling, Progress, Ramp, Table

LR = HyperParameter(name="lr", default=0.1, min=0.0, max=1.0)
BATCH = HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=1000)
SYNC = HyperParameter(name="sync", kind="choice", default="sma", choices=("sma", "allreduce"))
finite = st.floats(allow_nan=False, allow_infinity=False)


def version(lr: Parameter, batch: Parameter | None = None, world_size: int = 2) -> Version:
    batch = batch or initial_parameter(BATCH)
    parameters = {"lr": lr, "batch_size": batch, "sync": initial_parameter(SYNC)}
    return Version(1, 1, Batching(world_size, 16, 64), parameters)


def test_a_value_is_base_times_factors_clamped() -> None:
    parameter = Parameter(LR, Constant(0.1), {"warmup": Ramp(0.0, 1.0, 0, 100), "plateau": Constant(0.5)})
    assert parameter.at(Progress(1, 50), 0) == pytest.approx(0.025)
    assert parameter.at(Progress(9, 900), 0) == pytest.approx(0.05)
    assert Parameter(LR, Constant(0.1), {"up": Constant(100)}).at(Progress(), 0) == 1.0
    assert Parameter(LR, Constant(0.1), {"up": Constant(-1)}).at(Progress(), 0) == 0.0


def test_a_pin_beats_all() -> None:
    parameter = Parameter(LR, Constant(0.1), {"plateau": Constant(0.5)}, Pin(0.3, "ann"))
    assert parameter.at(Progress(), 0) == 0.3


def test_integers_are_rounded_and_choices_have_no_factors() -> None:
    value = Parameter(BATCH, Constant(64), {"plateau": Constant(1.26)}).at(Progress(), 0)
    assert value == 81
    assert isinstance(value, int)
    assert initial_parameter(SYNC).at(Progress(), 0) == "sma"


@given(finite, st.lists(finite, max_size=4), st.sampled_from(["real", "integer"]))
def test_no_product_leaves_the_bounds_or_the_finite_numbers(base: float, factors: list[float], kind: Any) -> None:
    for spec in (
        HyperParameter(name="x", kind=kind, default=1),
        HyperParameter(name="x", kind=kind, default=1, min=-3, max=7),
    ):
        value = Parameter(spec, Constant(base), {str(i): Constant(f) for i, f in enumerate(factors)}).at(Progress(), 0)
        assert isinstance(value, int | float)
        assert math.isfinite(value)
        assert spec.bounds[0] <= value <= spec.bounds[1]


def test_the_coupling_uses_the_batch_after_rounding() -> None:
    lr = Parameter(LR, Constant(0.1), {"batch": Coupling("linear", 64)})
    batch = Parameter(BATCH, Constant(130))
    settings = version(lr, batch).at(Progress())
    assert settings.plan.batch_size == 128
    assert settings.values == {"lr": pytest.approx(0.2), "batch_size": 128, "sync": "sma"}


def test_the_batch_after_rounding_keeps_the_bounds() -> None:
    lr, batch = initial_parameter(LR), Parameter(BATCH, Constant(5000))
    settings = version(lr, batch, world_size=3).at(Progress())
    assert settings.plan.batch_size == settings.values["batch_size"] == 960
    assert Parameter(BATCH, Constant(5000)).at(Progress(), 0) == 1000


def test_the_batch_may_follow_a_ramp_and_the_learning_rate_follows_it() -> None:
    lr = Parameter(LR, Constant(0.1), {"batch": Coupling("linear", 64)})
    v = version(lr, Parameter(BATCH, Ramp(64, 256, 0, 1000)))
    assert [v.at(Progress(0, samples)).values["lr"] for samples in (0, 334, 1000)] == pytest.approx([0.1, 0.2, 0.4])


def test_rising_names_what_a_ramp_still_raises() -> None:
    v = version(Parameter(LR, Constant(0.1), {"warmup": Ramp(0.0, 1.0, 0, 100), "decay": Ramp(1.0, 0.0, 0, 900)}))
    assert v.rising(Progress(0, 50)) == {"lr"}
    assert v.rising(Progress(0, 100)) == frozenset()
    cycle = Table((0, 100, 200, 300), (0.0, 1.0, 0.5, 2.0))
    v = version(Parameter(LR, Constant(0.1), {"cycle": cycle}))
    assert [bool(v.rising(Progress(0, mark))) for mark in (50, 150, 250, 300)] == [True, False, True, False]


def test_a_version_is_still_when_no_curve_moves_any_more() -> None:
    steps = Table((0, 100), (1.0, 0.1), interpolation="step")
    v = version(Parameter(LR, Ramp(0.1, 0.2, 0, 200), {"steps": steps}))
    assert [v.still(Progress(0, mark)) for mark in (0, 99, 100, 200)] == [False, False, False, True]
    assert [v.at(Progress(0, mark)).values["lr"] for mark in (0, 99, 100)] == pytest.approx([0.1, 0.1495, 0.015])
    assert version(Parameter(LR, Constant(0.1), {"steps": steps})).still(Progress(0, 100))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "no name"},
        {"kind": "choice"},
        {"kind": "choice", "choices": ("a",), "default": "b"},
        {"min": 2.0, "max": 1.0},
        {"min": math.nan},
        {"max": math.nan},
        {"kind": "integer", "min": 0.1, "max": 0.9},
        {"min": 2.0},
        {"default": "text"},
        {"default": True},
        {"default": math.nan},
        {"default": 0.5, "kind": "integer"},
        {"max_ratio": 1.0},
        {"max_ratio": math.nan},
        {"cooldown": -1},
    ],
)
def test_an_impossible_declaration_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|above|needs|between"):
        HyperParameter(**{"name": "x", "default": 1.0, **fields})


@pytest.mark.parametrize("value", [2.0, -0.1, math.nan, math.inf, "0.1", True, None, [0.1]])
def test_what_may_not_be_set_is_told(value: Any) -> None:
    with pytest.raises(ValueError, match="lr must"):
        LR.check(value)


def test_checked_values_have_the_parameters_own_type() -> None:
    assert type(BATCH.check(64.0)) is int
    assert LR.check(1) == 1
    with pytest.raises(ValueError, match="sync must be one of sma, allreduce, got x"):
        SYNC.check("x")
