import math

import numpy as np
import pytest

from trimtab.controller.metrics import Block
from trimtab.controller.metrics.block import concatenate
from trimtab.controller.records import Floats


def block(steps: list[int], **columns: Floats) -> Block:
    n = len(steps)
    return Block(np.array(steps, np.int64), np.zeros(n, np.int64), np.full(n, 1e9), columns or {"a": floats(n)})


def floats(n: int) -> Floats:
    return np.arange(n, dtype=np.float32)


def test_keys_are_sorted_and_rows_counted() -> None:
    made = block([1, 2], b=floats(2), a=floats(2))
    assert made.keys == ("a", "b")
    assert len(made) == 2
    assert len(block([])) == 0


def test_values_may_be_anything() -> None:
    block([1, 2, 3], a=np.array([math.nan, math.inf, -math.inf], np.float32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", np.array([1, 2], np.int32), r"steps must be int64 of shape \(2,\), got int32"),
        ("samples", np.array([1], np.int64), r"samples must be int64 of shape \(2,\), got int64 of \(1,\)"),
        ("times", np.array([[1.0, 2.0]]), r"times must be float64 of shape \(2,\), got float64 of \(1, 2\)"),
        ("columns", {"loss": np.zeros(2)}, r"loss must be float32 of shape \(2,\), got float64"),
        ("columns", {}, "at least one column"),
        ("steps", np.array([-1, 2], np.int64), "start at 0, got -1"),
        ("samples", np.array([0, -7], np.int64), "start at 0, got 1 and -7"),
        ("times", np.array([1.0, math.nan]), "unix seconds, got nan"),
        ("times", np.array([-1.0, 1.0]), "unix seconds, got -1"),
        ("times", np.array([1.0, 1.7e12]), "unix seconds, got 1.0 to 17000"),
    ],
)
def test_a_bad_block_is_refused(field: str, value: object, message: str) -> None:
    good = {
        "steps": np.array([1, 2], np.int64),
        "samples": np.array([10, 20], np.int64),
        "times": np.array([1.0, 2.0]),
        "columns": {"loss": floats(2)},
    }
    with pytest.raises(ValueError, match=message):
        Block(**(good | {field: value}))  # type: ignore[arg-type]


def test_until_keeps_earlier_steps() -> None:
    cut = block([1, 5, 3], a=np.array([1, 2, 3], np.float32)).until(3)
    assert cut.steps.tolist() == [1, 3]
    assert cut.columns["a"].tolist() == [1, 3]


def test_concatenate_keeps_order() -> None:
    whole = concatenate([block([1, 2]), block([7])])
    assert whole.steps.tolist() == [1, 2, 7]
    assert whole.columns["a"].tolist() == [0, 1, 0]
