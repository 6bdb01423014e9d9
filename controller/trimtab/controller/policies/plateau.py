"""The policy `plateau`: cut the learning rate, or raise the batch, when a metric stops improving."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self, TypedDict, cast

from pydantic import Field, model_validator

from trimtab.controller.hyperparameters import BATCH, LR
from trimtab.controller.observation import Observation, Proposal, Scale
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.trajectory import Constant, Scalar

__all__ = ["Plateau"]

LARGEST = 1e9  # factor of the batch beyond which raising it further means nothing


class State(TypedDict):
    best: float | None
    bad: int  # readings since the best, outside a cool-down
    cooldown: int  # readings left of it
    lr: float  # the factor of the learning rate
    batch: float  # the factor of the batch


class Plateau(Policy):
    """Multiply the learning rate by `factor` when a metric has not improved for more than `patience` readings.

    Decides as `torch.optim.lr_scheduler.ReduceLROnPlateau`, one step for each reading: a reading is better when it
    passes best * (1 -+ threshold) (rel) or best -+ threshold (abs); a cut is made when the count of the others
    exceeds `patience`, and is left out when it would change the learning rate by no more than `eps`; for `cooldown`
    readings after it none counts as bad.

    `instead` gives the same moment another effect: `batch` raises the batch by 1 / factor and leaves the learning
    rate alone (Smith et al. 2017); `seesaw` multiplies the learning rate by sqrt(factor) and the batch by 1 / factor
    (Meterez et al. 2025).

    Source: PyTorch, torch.optim.lr_scheduler.ReduceLROnPlateau.
    """

    kind: ClassVar[str] = "plateau"
    source: ClassVar[str] = "PyTorch, torch.optim.lr_scheduler.ReduceLROnPlateau"

    metric: str = Field(
        "val_loss", min_length=1, description="The metric to watch.", json_schema_extra={"unit": "name"}
    )
    mode: Literal["min", "max"] = Field(
        "min", description="Whether lower or higher is better.", json_schema_extra={"unit": "mode"}
    )
    factor: float = Field(
        0.1, gt=0, lt=1, description="What the learning rate is multiplied by.", json_schema_extra={"unit": "1"}
    )
    patience: int = Field(
        10,
        ge=0,
        description="Readings without improvement that are tolerated; the next one cuts.",
        json_schema_extra={"unit": "readings"},
    )
    threshold: float = Field(
        1e-4,
        ge=0,
        description="Improvement that counts: a share of the best (rel) or a difference to it (abs).",
        json_schema_extra={"unit": "of the best, or the metric's"},
    )
    threshold_mode: Literal["rel", "abs"] = Field(
        "rel", description="How the threshold is meant.", json_schema_extra={"unit": "mode"}
    )
    cooldown: int = Field(
        0, ge=0, description="Readings after a cut that do not count as bad.", json_schema_extra={"unit": "readings"}
    )
    min_lr: float = Field(
        0.0, ge=0, description="The learning rate is not cut below it.", json_schema_extra={"unit": "learning rate"}
    )
    eps: float = Field(
        1e-8,
        ge=0,
        description="A cut that changes the learning rate by no more than this is left out.",
        json_schema_extra={"unit": "learning rate"},
    )
    instead: Literal["batch", "seesaw"] | None = Field(
        None,
        description="In place of the cut: batch x 1 / factor (batch, Smith et al. 2017), or learning rate x "
        "sqrt(factor) and batch x 1 / factor (seesaw, Meterez et al. 2025).",
        json_schema_extra={"unit": "rule"},
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.mode == "min" and self.threshold_mode == "rel" and self.threshold >= 1:
            raise ValueError(f"a relative threshold for mode min must be below 1, got {self.threshold:g}")
        return self

    def reads(self) -> frozenset[str]:
        return frozenset({self.metric})

    def writes(self) -> Mapping[str, Part]:
        cut: Mapping[str, Part] = {} if self.instead == "batch" else {LR: "factor"}
        raised: Mapping[str, Part] = {BATCH: "factor"} if self.instead else {}
        return {**cut, **raised}

    def initial(self) -> State:
        return State(best=None, bad=0, cooldown=0, lr=1.0, batch=1.0)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        before = now = cast(State, state)
        lr, why = _number(observation.values.get(LR)), ""
        for reading in observation.metrics.get(self.metric, ()):
            now = self._count(now, reading.value)
            if now["bad"] > self.patience:
                why = (
                    f"{self.metric} {reading.value:.4g} has not improved on the best {now['best']:.4g} "
                    f"for {now['bad']} reading{'s' * (now['bad'] > 1)} (patience {self.patience})"
                )
                now = self._cut(now, lr * now["lr"] / before["lr"])
        return now, _proposals(before, now, lr, observation.plan.batch_size, why)

    def _count(self, now: State, value: float) -> State:
        better = now["best"] is None or self._better(value, now["best"])
        bad = 0 if better or now["cooldown"] else now["bad"] + 1
        return State(
            best=value if better else now["best"],
            bad=bad,
            cooldown=max(0, now["cooldown"] - 1),
            lr=now["lr"],
            batch=now["batch"],
        )

    def _better(self, value: float, best: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        level = best * (1.0 + sign * self.threshold) if self.threshold_mode == "rel" else best + sign * self.threshold
        return value > level if self.mode == "max" else value < level

    def _cut(self, now: State, lr: float) -> State:
        """The state after a cut from `lr`; its factors stay where the learning rate, or the batch, is at its end."""
        lr_factor, batch_factor = self._effect()
        spent = False
        if self.instead != "batch":
            lr_factor = max(lr_factor, self.min_lr / lr) if lr > 0 else 1.0
            spent = lr - lr * lr_factor <= self.eps or now["lr"] * lr_factor == 0
        if spent or now["batch"] * batch_factor > LARGEST:
            lr_factor = batch_factor = 1.0
        return State(
            best=now["best"],
            bad=0,
            cooldown=self.cooldown,
            lr=now["lr"] * lr_factor,
            batch=now["batch"] * batch_factor,
        )

    def _effect(self) -> tuple[float, float]:
        """What the learning rate and the batch are multiplied by."""
        if self.instead == "batch":
            return 1.0, 1 / self.factor
        if self.instead == "seesaw":
            return math.sqrt(self.factor), 1 / self.factor
        return self.factor, 1.0


def _proposals(before: State, now: State, lr: float, batch: int, why: str) -> tuple[Proposal, ...]:
    """A proposal for each factor that changed from `before`, the one that the values in force contain."""
    changes: list[Proposal] = []
    if now["lr"] != before["lr"]:
        new_lr = lr * now["lr"] / before["lr"]
        changes.append(Scale(LR, Constant(now["lr"]), f"{why}: lr {lr:.4g} -> {new_lr:.4g}"))
    if now["batch"] != before["batch"]:
        new_batch = batch * now["batch"] / before["batch"]
        reason = f"{why}: batch {batch:,} -> {new_batch:,.0f}"
        changes.append(Scale(BATCH, Constant(now["batch"]), reason, lr_rule="none"))
    return tuple(changes)


def _number(value: Scalar | None) -> float:
    return 0.0 if value is None or isinstance(value, str) else float(value)
