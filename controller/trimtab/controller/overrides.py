"""What the command line of a job gives to the script: it travels in the job's environment, as JSON."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from trimtab.controller.controller import PolicySpec
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.trajectory import Scalar

VARIABLE = "TRIMTAB_OVERRIDES"
LARGEST = 100_000  # [bytes]; Linux takes 128 KiB a variable
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # where Ray tells a job's driver what it is

Value = Scalar | HyperParameter


@dataclass(frozen=True, slots=True)
class Overrides:
    """Hyper-parameters and policies of the command line; they stand in place of the script's own."""

    hp: Mapping[str, Value] = field(default_factory=dict)
    policies: tuple[PolicySpec, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hp or self.policies)

    def encode(self) -> str:
        """Raises ValueError if it does not fit into an environment."""
        text = _ADAPTER.dump_json(self).decode()
        if len(text.encode()) > LARGEST:
            raise ValueError(
                f"policies and hyper-parameters take {len(text):,} bytes, {LARGEST:,} fit: shorten the files"
            )
        return text

    @staticmethod
    def decode(text: str) -> "Overrides":
        """Raises ValueError if somebody else has written it."""
        return _ADAPTER.validate_json(text)

    def over_hp(self, hp: Mapping[str, Value]) -> dict[str, Value]:
        """The script's values with these in their place."""
        return {**hp, **self.hp}

    def over_policies(self, policies: Sequence[PolicySpec]) -> list[PolicySpec]:
        """These policies instead of the script's; beside them if they only decide in shadow."""
        own = [] if any(one.mode == "active" for one in self.policies) else policies
        return [*own, *self.policies]


_ADAPTER = TypeAdapter(Overrides)
_CONFIG = TypeAdapter(dict[str, Any])
NOTHING = Overrides()


def overrides() -> Overrides:
    """What this process was given. Raises ValueError if somebody else has set the variable."""
    text = os.environ.get(VARIABLE)
    return NOTHING if text is None else Overrides.decode(text)


def job() -> str:
    """The submission id of the job that this process belongs to; "" if it was not submitted."""
    text = os.environ.get(JOB)
    return "" if text is None else str(_CONFIG.validate_json(text).get("metadata", {}).get("job_submission_id", ""))
