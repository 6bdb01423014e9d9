"""The small languages of the command line."""

from typing import Any

import pytest

from trimtab.api.cli.parse import HpArgument, PolicyArgument, hp, policy, value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("3", 3), ("0.1", 0.1), ("1e-3", 1e-3), (".5", 0.5), ("-2", -2), ("true", True), ("false", False)),
        *(("null", None), ("adam", "adam"), ('"3"', "3"), ("[1, 2]", [1, 2]), ("NaN", "NaN"), ("inf", "inf"), ("", "")),
    ],
)
def test_values(text: str, expected: Any) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


def test_policies() -> None:
    assert policy("warmup") == PolicyArgument("warmup")
    assert policy("plateau:patience=3,metric=val_loss,instead=null") == PolicyArgument(
        "plateau", {"patience": 3, "metric": "val_loss", "instead": None}
    )
    assert policy("steps:at=[1,2],by=0.5").params == {"at": [1, 2], "by": 0.5}
    assert policy("k:note=a,b").params == {"note": "a,b"}


@pytest.mark.parametrize("text", ["", ":a=1", "plateau:", "plateau:patience", "plateau:=3", "pla teau", "k:a b=1"])
def test_bad_policies(text: str) -> None:
    with pytest.raises(ValueError, match="got"):
        policy(text)


def test_hyperparameters() -> None:
    assert hp("lr=0.1") == HpArgument("lr", 0.1)
    assert hp("batch_size=256:32:4096") == HpArgument("batch_size", 256, 32, 4096)
    assert hp("lr=0.1::1") == HpArgument("lr", 0.1, None, 1)
    assert hp("precision=bf16") == HpArgument("precision", "bf16")


@pytest.mark.parametrize("text", ["lr", "lr=", "=1", "lr=1:2", "lr=1:2:3:4", "lr=true", "lr=1:a:b", "l r=1", "lr=[1]"])
def test_bad_hyperparameters(text: str) -> None:
    with pytest.raises(ValueError, match="got"):
        hp(text)
