"""The policy `switch_sync`: another way to keep the replicas together, once it is time for it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypedDict, cast

from pydantic import Field

from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Proposal, Set
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.sync import ALLREDUCE, SYNC
from trimtab.controller.trajectory import Constant

__all__ = ["SwitchSync"]

LEVEL, SLOPE = 0.05, 0.02  # weight of a new reading in the moving mean of the loss, and of its change
LARGEST = 1e12  # a loss beyond it, either way, is no reading
REST = 20  # [observations] until what was refused is asked for again


class State(TypedDict):
    when: str  # the rule that the rest is of
    count: int  # readings in `mean`
    mean: float  # moving mean of the loss, or of its change from one reading to the next, begun at zero
    last: float | None  # reading of the loss
    reason: str  # why it is time; empty: it is not yet
    rest: int  # observations until the next proposal
    ended: bool


class SwitchSync(Policy):
    """Set `sync` to another strategy, once: at a step, at a level or a slope of the loss, or at a noise scale.

    `when` says what is waited for:

    * step: `step` steps are done.
    * loss_level: the moving mean of the loss, which weighs a new reading 0.05, is below `level`.
    * loss_slope: the moving mean of the loss's change from one reading to the next, which weighs a new one 0.02, is
      above `slope`, a small number below zero: the loss has stopped falling.
    * noise: the gradient noise scale is surely `side` (its 95 % bound) of `noise` x the batch, or of `noise` samples.
      Above the batch a gradient is noise for the most part, and every sample that all-reduce adds to it counts; below
      it they add little, and replicas that step by themselves and are averaged make more of the same samples.

    A reading is the mean over the steps of an observation. Both means begin at zero and are corrected for that; they
    say nothing before they have as many readings as they remember, 20 and 50. Where no noise scale is measured, as
    under model averaging without `noise_every`, `when` noise waits. After the switch the policy rests for good; delete
    it and put it again to begin once more. A roll back to before the switch takes it back, and the policy with it.

    Source: Mai et al. 2020 (KungFu, OSDI), AdaptiveSGD: model averaging first, synchronous SGD later; the noise scale
    is McCandlish et al. 2018.
    """

    kind: ClassVar[str] = "switch_sync"
    source: ClassVar[str] = "Mai et al. 2020, KungFu: Making Training in Distributed Machine Learning Adaptive, OSDI"

    to: Literal["allreduce", "sma", "pair", "local"] = Field(
        "allreduce", description="The strategy to switch to.", json_schema_extra={"unit": "strategy"}
    )
    when: Literal["step", "loss_level", "loss_slope", "noise"] = Field(
        "step", description="What to wait for.", json_schema_extra={"unit": "rule"}
    )
    step: int = Field(1000, ge=0, description="For step: steps done.", json_schema_extra={"unit": "steps"})
    level: float = Field(
        1.0, description="For loss_level: the mean loss must be below it.", json_schema_extra={"unit": "loss"}
    )
    slope: float = Field(
        -1e-4,
        description="For loss_slope: the mean change of the loss must be above it.",
        json_schema_extra={"unit": "loss / reading"},
    )
    noise: float = Field(
        1.0,
        gt=0,
        description="For noise: the noise scale to be passed, in units of the batch or in samples.",
        json_schema_extra={"unit": "x batch, or samples"},
    )
    noise_unit: Literal["batch", "samples"] = Field(
        "batch", description="What `noise` is given in.", json_schema_extra={"unit": "unit"}
    )
    side: Literal["above", "below"] | None = Field(
        None,
        description="For noise: whether the noise scale must be above or below; empty: above for allreduce, below for "
        "the others.",
        json_schema_extra={"unit": "side"},
    )

    def reads(self) -> frozenset[str]:
        return frozenset({"step": (), "noise": ("noise_scale",)}.get(self.when, ("loss",)))

    def writes(self) -> Mapping[str, Part]:
        return {SYNC: "base"}

    def initial(self) -> State:
        return State(when=self.when, count=0, mean=0.0, last=None, reason="", rest=0, ended=False)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        before, sync = cast(State, state), observation.values.get(SYNC)
        if before["ended"] or not isinstance(sync, str):
            return state, ()
        if before["when"] != self.when:  # edited: the means are of something else
            before = self.initial()
        now = before if before["reason"] else self._look(before, observation)
        if not now["reason"]:
            return now, ()
        if sync == self.to:
            return {**now, "ended": True}, ()
        if now["rest"]:  # it was refused, under a pin perhaps
            return {**now, "rest": now["rest"] - 1}, ()
        return {**now, "rest": REST}, (Set(SYNC, Constant(self.to), f"{now['reason']}: {sync} -> {self.to}"),)

    def _look(self, now: State, observation: Observation) -> State:
        """Is it time?"""
        if self.when == "step":
            done = observation.progress.steps
            return {**now, "reason": f"step {done:,} (from {self.step:,} on)"} if done >= self.step else now
        if self.when == "noise":
            noise = observation.noise
            return now if noise is None else {**now, "reason": self._passed(noise, observation.plan.batch_size)}
        for reading in observation.metrics.get("loss", ()):
            if abs(reading.value) < LARGEST and not now["reason"]:
                now = self._average(now, reading.value)
        return now

    def _average(self, now: State, loss: float) -> State:
        """The moving mean after that reading, and whether it says that it is time."""
        by_level = self.when == "loss_level"
        weight, last = (LEVEL if by_level else SLOPE), now["last"]
        if last is None and not by_level:
            return {**now, "last": loss}
        new = loss if by_level or last is None else loss - last
        count, mean = now["count"] + 1, now["mean"] + weight * (new - now["mean"])
        now = {**now, "count": count, "mean": mean, "last": loss}
        if count * weight < 1:
            return now
        corrected = mean / (1 - (1 - weight) ** count)
        if by_level and corrected < self.level:
            return {**now, "reason": f"mean loss {corrected:.4g} is below {self.level:g}"}
        if not by_level and corrected > self.slope:
            return {**now, "reason": f"mean change of the loss {corrected:.3g} a reading is above {self.slope:g}"}
        return now

    def _passed(self, noise: Noise, batch: int) -> str:
        """How the noise scale has passed the threshold, at the end of its interval that is the nearer; or nothing."""
        above = self.side == "above" if self.side else self.to == ALLREDUCE
        bound = noise.low if above else noise.high
        limit = self.noise * batch if self.noise_unit == "batch" else self.noise
        if bound is None or not (bound > limit if above else bound < limit):
            return ""
        told = f"{self.noise:g} x batch {batch:,}" if self.noise_unit == "batch" else f"{self.noise:g} samples"
        return f"noise scale {noise} is {'above' if above else 'below'} {told}"
