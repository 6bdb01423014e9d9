"""The policy `spike_guard`: skip single spikes, and go back to before them where they come in a row."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypedDict, cast

from pydantic import Field

from trimtab.controller.hyperparameters import LR
from trimtab.controller.observation import Command, Notice, Observation, Proposal, Scale, Set
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.trajectory import Constant

__all__ = ["SpikeGuard"]

SKIP_SIGMA, ZCLIP, SKIPPED = "skip_sigma", "zclip", "skipped_step"  # as the workers call them
FEWEST = 16  # readings of the loss before one of them can be a spike
LEAST = 1e-6  # smallest share of the mean that counts as a deviation: rounding is no spread
LARGEST = 1e150  # a loss whose square is still finite


class State(TypedDict):
    thresholds: list[float] | None  # as last proposed
    count: int  # readings of the loss that were no spikes
    mean: float
    variance: float
    spikes: list[list[int]]  # first and last step of each that counts
    quiet_until: int  # step up to which none counts
    actions: int  # roll backs commanded, and cuts where there was nothing to go back to
    lr: float  # the factor of the learning rate


class SpikeGuard(Policy):
    """Keep spikes of the loss and of the gradient from spoiling a run.

    Within the step, by the workers: a gradient whose norm exceeds mean + `skip_sigma` deviations of the last 128
    accepted ones is not applied; with `zclip` one beyond that many deviations is clipped as in ZClip (Kumar et al.
    2025). The policy sets both thresholds and owns them.

    Over many steps, here: a skipped step is a spike (also one whose gradient was not finite), and so is a reading of
    the loss above mean + `loss_sigma` deviations of the last `window` readings that were none; both at once are one.
    At `spikes` of them `within` so many steps the run goes back to the last checkpoint before the first, leaves out the
    data that was read since (PaLM) and multiplies the learning rate by `lr_factor` (OPT). Where no such checkpoint is
    kept it cuts the learning rate only. For `cooldown` steps after that none counts. When `max_rollbacks` are used up
    it stops the run, or only warns.

    Source: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, 5.1); Zhang et al. 2022 (OPT, arXiv 2205.01068, 2.5);
    Kumar et al. 2025 (ZClip, arXiv 2504.02507).
    """

    kind: ClassVar[str] = "spike_guard"
    source: ClassVar[str] = (
        "Chowdhery et al. 2022 (PaLM, arXiv 2204.02311); Zhang et al. 2022 (OPT, arXiv 2205.01068); "
        "Kumar et al. 2025 (ZClip, arXiv 2504.02507)"
    )
    lasting: ClassVar[bool] = True  # it counts roll backs, and its cuts are for what comes after them

    skip_sigma: float = Field(
        6.0,
        ge=0,
        description="Skip a step whose gradient's norm is so far above the mean of the last 128; 0: never.",
        json_schema_extra={"unit": "standard deviations"},
    )
    zclip: float = Field(
        0.0,
        ge=0,
        description="Clip a gradient whose norm is so far above its moving mean, 2.5 in the paper; 0: never.",
        json_schema_extra={"unit": "standard deviations"},
    )
    loss_sigma: float = Field(
        6.0,
        ge=0,
        description="Count a reading of the loss so far above the mean as a spike; 0: never.",
        json_schema_extra={"unit": "standard deviations"},
    )
    window: int = Field(
        128,
        ge=FEWEST,
        description="Readings of the loss that its mean and deviation are taken over; older ones fade.",
        json_schema_extra={"unit": "readings"},
    )
    spikes: int = Field(
        3, ge=1, description="Spikes after which the run goes back.", json_schema_extra={"unit": "spikes"}
    )
    within: int = Field(
        200, ge=1, description="The stretch in which they must lie.", json_schema_extra={"unit": "steps"}
    )
    skip_data: bool = Field(
        True,
        description="Go on with the samples after the spikes; no: with those after the checkpoint, again.",
        json_schema_extra={"unit": "yes or no"},
    )
    lr_factor: float = Field(
        0.5,
        gt=0,
        le=1,
        description="What each roll back multiplies the learning rate by.",
        json_schema_extra={"unit": "1"},
    )
    cooldown: int = Field(
        200,
        ge=0,
        description="Steps after the checkpoint in which no spike counts.",
        json_schema_extra={"unit": "steps"},
    )
    max_rollbacks: int = Field(3, ge=0, description="Roll backs, at most.", json_schema_extra={"unit": "roll backs"})
    then: Literal["stop", "warn"] = Field(
        "stop", description="What to do at the next after the last of them.", json_schema_extra={"unit": "action"}
    )

    def reads(self) -> frozenset[str]:
        return frozenset({"loss", SKIPPED})

    def writes(self) -> Mapping[str, Part]:
        return {SKIP_SIGMA: "base", ZCLIP: "base", LR: "factor"}

    def initial(self) -> State:
        return State(thresholds=None, count=0, mean=0.0, variance=0.0, spikes=[], quiet_until=0, actions=0, lr=1.0)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        now = cast(State, dict(state))
        proposals: list[Proposal] = []
        wanted = [self.skip_sigma, self.zclip]
        if now["thresholds"] != wanted and {SKIP_SIGMA, ZCLIP} <= observation.values.keys():
            now["thresholds"] = wanted
            proposals += self._thresholds(observation)
        self._look(now, observation)
        if len(now["spikes"]) >= self.spikes:
            proposals += self._act(now, observation)
        return now, proposals

    def _thresholds(self, observation: Observation) -> list[Proposal]:
        wanted = {SKIP_SIGMA: self.skip_sigma, ZCLIP: self.zclip}
        return [
            Set(name, Constant(value), f"{name} {value:g}, as configured")
            for name, value in wanted.items()
            if observation.values[name] != value
        ]

    def _look(self, now: State, observation: Observation) -> None:
        """Take in what is new; a skipped step first, so that the loss of that moment is the same spike."""
        for reading in observation.metrics.get(SKIPPED, ()):
            if reading.value > 0:
                self._count(now, reading.step, reading.step)
        for reading in observation.metrics.get("loss", ()):
            if self._is_spike(now, reading.value):
                self._count(now, reading.step - reading.count + 1, reading.step)
            elif abs(reading.value) < LARGEST:
                self._learn(now, reading.value)

    def _is_spike(self, now: State, loss: float) -> bool:
        if self.loss_sigma == 0 or now["count"] < FEWEST:
            return False
        deviation = max(math.sqrt(now["variance"]), LEAST * abs(now["mean"]))
        return loss > now["mean"] + self.loss_sigma * deviation

    def _learn(self, now: State, loss: float) -> None:
        """Mean and variance of the readings so far; from `window` of them on the older ones fade."""
        now["count"] += 1
        weight = 1 / min(now["count"], self.window)
        change = loss - now["mean"]
        now["mean"] += weight * change
        now["variance"] = (1 - weight) * (now["variance"] + weight * change * change)

    def _count(self, now: State, first: int, last: int) -> None:
        known = [spike for spike in now["spikes"] if spike[1] > last - self.within]
        if last > now["quiet_until"] and not any(a <= last and first <= b for a, b in known):
            known.append([first, last])
        now["spikes"] = known

    def _act(self, now: State, observation: Observation) -> list[Proposal]:
        first = min(spike[0] for spike in now["spikes"])
        count = len(now["spikes"])
        why = f"{count} spike{'s' * (count > 1)} within {self.within:,} steps, the first at step {first:,}"
        target = max((step for step in observation.checkpoints if step < first), default=None)
        now["spikes"] = []
        now["quiet_until"] = observation.progress.steps + self.cooldown
        if now["actions"] >= self.max_rollbacks:
            why = f"{why}, and all {self.max_rollbacks:,} roll backs are used up"
            return [Command("stop", why) if self.then == "stop" else Notice(why)]
        now["actions"] += 1
        cut = self._cut(now, observation, why)
        if target is None:
            return cut or [Notice(f"{why}: no checkpoint from before it is kept")]
        now["quiet_until"] = target + self.cooldown
        return [Command("rollback", why, target, self.skip_data), *cut]

    def _cut(self, now: State, observation: Observation, why: str) -> list[Proposal]:
        lr = observation.values.get(LR)
        if self.lr_factor == 1 or not isinstance(lr, int | float):
            return []
        now["lr"] *= self.lr_factor
        return [Scale(LR, Constant(now["lr"]), f"{why}: lr × {self.lr_factor:g}")]
