from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, RMSprop

from trimtab.controller.hyperparameters import BATCH, NUMBERS
from trimtab.workers.apply import NAMES, OptimizerValues


def parameters(count: int = 1) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2)) for _ in range(count)]


def test_the_command_line_knows_which_values_are_numbers() -> None:
    assert NAMES | {BATCH} == NUMBERS


def test_sgd_s_values_are_found_and_written() -> None:
    optimizer = SGD(parameters(), lr=0.1, momentum=0.9)
    values = OptimizerValues(optimizer)
    found = {spec.name: spec for spec in values.discover()}
    assert {name: spec.default for name, spec in found.items()} == {"lr": 0.1, "momentum": 0.9, "weight_decay": 0}
    assert (found["lr"].min, found["lr"].max) == (0, 10)
    assert found["momentum"].max == 0.9999
    values.apply({"lr": 0.5, "momentum": 0.8, "batch_size": 64, "mixup": 0.1})
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.8)
    assert values.lr_rule == "adascale"


def test_adam_s_betas_are_two_values() -> None:
    optimizer = AdamW(parameters(), lr=1e-3)
    values = OptimizerValues(optimizer)
    assert {"beta1", "beta2"} < {spec.name for spec in values.discover()}
    values.apply({"beta2": 0.98})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    assert values.lr_rule == OptimizerValues(RMSprop(parameters())).lr_rule == "sqrt"


def test_groups_keep_their_ratios() -> None:
    first, second, third = parameters(3)
    groups: list[dict[str, Any]] = [
        {"params": [first]},
        {"params": [second], "lr": 0.01, "weight_decay": 0.0},
        {"params": [third], "lr": 0.4},
    ]
    optimizer = SGD(groups, lr=0.1, weight_decay=0.01)
    OptimizerValues(optimizer).apply({"lr": 1.0, "weight_decay": 0.02})
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1, 4.0])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0, 0.02]


def test_a_value_that_no_group_has_by_default_is_the_largest() -> None:
    first, second = parameters(2)
    optimizer = AdamW([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.05}])
    values = OptimizerValues(optimizer)
    assert values.discover()[0].default == 0.1
    values.apply({"lr": 0.2})
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]


def test_a_learning_rate_in_a_tensor_is_filled() -> None:
    lr = torch.tensor(0.1)
    optimizer = AdamW(parameters(), lr=lr, capturable=True)
    OptimizerValues(optimizer).apply({"lr": 0.25})
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == 0.25


def test_values_are_written_again_after_a_state_was_loaded() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    values, old = OptimizerValues(optimizer), optimizer.state_dict()
    values.apply({"lr": 0.5})
    optimizer.load_state_dict(old)
    values.apply({"lr": 0.5})
    assert optimizer.param_groups[0]["lr"] == 0.5
