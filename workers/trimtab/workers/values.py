"""The hyper-parameters in force, as a train function reads them, and those that every run has."""

from typing import Any

from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.records import COLUMNS, MEAN_SQ
from trimtab.controller.sync import SYNC_PARAMETER
from trimtab.controller.trajectory import Scalar


class Values:
    """The hyper-parameters in force, as attributes."""

    def __init__(self, values: dict[str, Scalar]) -> None:
        self.__dict__["_values"] = values

    def __getattr__(self, name: str) -> Any:
        values: dict[str, Scalar] = self.__dict__["_values"]
        if name not in values:
            raise AttributeError(f"no hyper-parameter {name!r}; there are {', '.join(values)}")
        return values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is set by policies and pins; register a knob of your own with session.knob")


TAKEN = frozenset({*COLUMNS, MEAN_SQ, "step_time_max", "noise_scale", "noise_scale_low", "noise_scale_high"})
COMMON = (
    HyperParameter(name="grad_clip", default=0.0, min=0.0, unit="2-norm; 0 is off"),
    HyperParameter(name="skip_sigma", default=0.0, min=0.0, unit="deviations of the gradient's norm; 0 is off"),
    HyperParameter(name="zclip", default=0.0, min=0.0, unit="deviations of the gradient's norm; 0 is off"),
    HyperParameter(name="precision", kind="choice", default="fp32", choices=("fp32", "bf16")),
    SYNC_PARAMETER,
)
__all__ = ["COMMON", "TAKEN", "Values"]
