"""The policy `early_stop`: stop when a metric no longer improves, is good enough, diverges or is not finite."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self, TypedDict, cast

from pydantic import Field, model_validator

from trimtab.controller.observation import Command, Observation, Proposal
from trimtab.controller.policies.policy import JsonState, Part, Policy

__all__ = ["EarlyStop"]


class State(TypedDict):
    best: float | None
    wait: int  # readings since the best


class EarlyStop(Policy):
    """Stop the run, at one step on all ranks and with a checkpoint, by any of four rules.

    Decides as Lightning's `EarlyStopping`, one check for each reading, in this order: the reading is not finite
    (`check_finite`); it is better than `stopping_threshold`; it is worse than `divergence_threshold`; it is the
    `patience`-th in a row that is not better than the best by more than `min_delta`. Where `check_finite` is off, a
    value that is not finite is no reading.

    A run that is resumed after its patience was over has all of it again.

    Source: Lightning, lightning.pytorch.callbacks.EarlyStopping.
    """

    kind: ClassVar[str] = "early_stop"
    source: ClassVar[str] = "Lightning, lightning.pytorch.callbacks.EarlyStopping"

    metric: str = Field(
        "val_loss", min_length=1, description="The metric to watch.", json_schema_extra={"unit": "name"}
    )
    mode: Literal["min", "max"] = Field(
        "min", description="Whether lower or higher is better.", json_schema_extra={"unit": "mode"}
    )
    patience: int = Field(
        3, ge=0, description="Readings in a row without improvement that stop.", json_schema_extra={"unit": "readings"}
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        description="Improvement on the best that does not count: it must be larger.",
        json_schema_extra={"unit": "the metric's"},
    )
    stopping_threshold: float | None = Field(
        None,
        description="Stop at a reading better than this: the goal is reached; empty: no goal.",
        json_schema_extra={"unit": "the metric's"},
    )
    divergence_threshold: float | None = Field(
        None,
        description="Stop at a reading worse than this: the run has diverged; empty: no limit.",
        json_schema_extra={"unit": "the metric's"},
    )
    check_finite: bool = Field(
        True, description="Stop when the metric is NaN or infinite.", json_schema_extra={"unit": "yes or no"}
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        goal, limit = self.stopping_threshold, self.divergence_threshold
        if goal is not None and limit is not None and self._better(limit, goal):
            raise ValueError(f"every reading would stop: with mode {self.mode} {limit:g} is better than {goal:g}")
        return self

    def reads(self) -> frozenset[str]:
        return frozenset({self.metric})

    def writes(self) -> Mapping[str, Part]:
        return {}

    def initial(self) -> State:
        return State(best=None, wait=0)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        now = cast(State, state)
        lost = observation.nonfinite.get(self.metric, 0)
        if self.check_finite and lost:
            reason = f"{self.metric}: {lost:,} value{'s' * (lost > 1)} not finite; {_best(now)}"
            return now, (Command("stop", reason),)
        for reading in observation.metrics.get(self.metric, ()):
            now, why = self._check(now, reading.value)
            if why:
                return now, (Command("stop", f"{self.metric} {reading.value:.4g} {why}"),)
        return now, ()

    def _check(self, now: State, value: float) -> tuple[State, str]:
        """The state after a reading, and why to stop, if so."""
        better, worse = ("below", "above") if self.mode == "min" else ("above", "below")
        if self.stopping_threshold is not None and self._better(value, self.stopping_threshold):
            return now, f"is {better} the stopping threshold {self.stopping_threshold:.4g}"
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, value):
            return now, f"is {worse} the divergence threshold {self.divergence_threshold:.4g}; {_best(now)}"
        if now["best"] is None or self._better(value, now["best"], self.min_delta):
            return State(best=value, wait=0), ""
        wait = now["wait"] + 1
        if wait < self.patience:
            return State(best=now["best"], wait=wait), ""
        why = f"has not improved on the best {now['best']:.4g} for {wait:,} reading{'s' * (wait > 1)}"
        return State(best=now["best"], wait=0), f"{why} (patience {self.patience:,})"

    def _better(self, value: float, than: float, by: float = 0.0) -> bool:
        return value - by > than if self.mode == "max" else value + by < than


def _best(state: State) -> str:
    return "nothing was read before" if state["best"] is None else f"the best was {state['best']:.4g}"
