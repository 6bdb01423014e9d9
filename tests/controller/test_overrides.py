"""What a job's command line gives to the script."""

import json

import pytest

from trimtab.controller import overrides
from trimtab.controller.controller import PolicySpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.overrides import JOB, VARIABLE, Overrides
from trimtab.controller.policies.code import Code

OWN = PolicySpec(name="noise_scale", kind="noise_scale", params={})
PLATEAU = PolicySpec(name="plateau", kind="plateau", params={"patience": 2})
SHADOW = PolicySpec(name="goodput", kind="goodput", params={}, mode="shadow")


def test_it_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code("Cruise", "my_policy.py", "class Cruise: ...\n")
    given = Overrides(
        {"lr": HyperParameter(name="lr", default=0.1, min=0.0, max=1.0), "batch_size": 64, "precision": "bf16"},
        (PLATEAU, SHADOW, PolicySpec(name="", kind="", params={"loss": 2.5}, code=code)),
    )
    monkeypatch.setenv(VARIABLE, given.encode())
    assert overrides.overrides() == given


def test_without_it_the_script_has_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    nothing = overrides.overrides()
    assert not nothing
    assert nothing.over_hp({"lr": 0.1}) == {"lr": 0.1}
    assert nothing.over_policies([OWN]) == [OWN]


def test_values_are_replaced_one_by_one() -> None:
    assert Overrides({"lr": 0.5}).over_hp({"lr": 0.1, "batch_size": 32}) == {"lr": 0.5, "batch_size": 32}


def test_policies_replace_the_scripts_and_shadows_stand_beside_them() -> None:
    assert Overrides(policies=(PLATEAU, SHADOW)).over_policies([OWN]) == [PLATEAU, SHADOW]
    assert Overrides(policies=(SHADOW,)).over_policies([OWN]) == [OWN, SHADOW]


def test_what_does_not_fit_into_an_environment_is_told() -> None:
    code = Code("Cruise", "my_policy.py", "#" * 200_000)
    with pytest.raises(ValueError, match="100,000 fit"):
        Overrides(policies=(PolicySpec(name="", kind="", params={}, code=code),)).encode()


def test_a_job_knows_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB, raising=False)
    assert overrides.job() == ""
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "train-1"}}))
    assert overrides.job() == "train-1"
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {}}))
    assert overrides.job() == ""
