"""The policy `goodput`: the batch that makes the most progress a second."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

from pydantic import Field

from trimtab.controller.batching import Plan
from trimtab.controller.hyperparameters import BATCH
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Proposal, Set
from trimtab.controller.policies.batch import BatchPolicy, Rest
from trimtab.controller.policies.policy import JsonState
from trimtab.controller.trajectory import Constant

__all__ = ["Goodput"]

IN_FORCE = f"hp/{BATCH}"  # the batch that each step ran with
WARM = 2  # readings dropped at the beginning and after a change: caches, autotuning, a step of either batch
FEWEST = 5  # readings that a batch's step time needs
MOST = 15  # readings that a batch's step time is told from
SHORTEST, LONGEST = 1e-9, 1e9  # step times outside cannot be [s]
LARGEST = 1e12  # batch beyond which a reading cannot be one [samples]
SIZES = 4  # batches whose step times are kept, besides the present one's


class State(Rest):
    agreed: int  # consecutive observations that ask for a larger batch; for a smaller one, if negative
    trials: int  # of another batch, to learn its step time
    world_size: int  # of the step times
    measured: int  # the batch of `recent` [samples]
    warm: int  # readings of it still to be dropped
    recent: list[float]  # step times at `measured`, the newest last [s]
    times: dict[str, float]  # batch -> step time, as it was when it was left [s]


class Line(NamedTuple):
    """The step time a + c B of a batch of B samples."""

    a: float  # [s]
    c: float  # [s/sample]

    def best(self, scale: float) -> float:
        """The batch of the largest goodput at that noise scale; infinite where a larger one takes no longer."""
        return math.sqrt(self.a) * math.sqrt(scale / self.c) if self.c > 0 else math.inf

    def gain(self, batch: float, to: float, scale: float) -> float:
        """The goodput of `to` over that of `batch`: throughput B / (a + c B) x efficiency 1 / (scale + B)."""
        faster = (to / batch) * (self.a + self.c * batch) / (self.a + self.c * to)
        return faster * ((scale + batch) / (scale + to))

    def __str__(self) -> str:
        return f"{self.a * 1e3:.3g} ms + {self.c * 1e6:.3g} µs a sample"


@dataclass(frozen=True, slots=True)
class Advice:
    """Where the batch should go, and what that is worth."""

    line: Line
    noise: Noise
    best: float  # [samples]
    batch: int  # present [samples]
    target: int  # what can be had of the best one now [samples]
    gain: float  # predicted ratio of goodputs
    sure: bool  # is it a gain at the unfavourable end of the noise scale's interval, too?

    @property
    def sign(self) -> int:
        return (self.target > self.batch) - (self.target < self.batch)

    def __str__(self) -> str:
        best = "a larger batch takes no longer" if math.isinf(self.best) else f"best batch {self.best:,.0f}"
        return (
            f"step time {self.line}, noise scale {self.noise}: {best}, goodput {self.gain - 1:+.0%}: "
            f"batch {self.batch:,} -> {self.target:,}"
        )


class Goodput(BatchPolicy):
    """Choose the global batch B with the largest goodput, throughput x efficiency.

    The time of a step is a line, T(B) = a + c B, fitted to the usual step times of the batches that the run has had:
    throughput is B / T(B). With the gradient noise scale phi [samples] a sample of a batch B is worth
    (phi + B0) / (phi + B) of one at the first batch B0: that is the efficiency. Their product is largest at

        B* = sqrt(phi a / c)

    whatever B0 is. The optimum is flat, so the batch moves only for a predicted gain of more than `min_gain` that is
    still a gain at the unfavourable end of phi's 95 % interval, on `confirm` consecutive observations; by `max_change`
    times at most, to a batch that the workers can take. Where |G|^2 is not above zero the lower bound stands for phi.

    A line needs two batches. While only one has been seen the policy tries one larger by `max_change` (a smaller one
    if there is none), which it leaves again if that is worth it. After a change the batch rests for `window` estimates
    of phi. It does not change while the learning rate is warming up, nor grow for a window after a cut of it, which
    inflates phi. Step times are forgotten when the number of workers changes.

    Source: Qiao et al. 2021 (Pollux, OSDI); the couplings are those of `noise_scale`.
    """

    kind: ClassVar[str] = "goodput"
    source: ClassVar[str] = "Qiao et al. 2021, Pollux: Co-adaptive Cluster Scheduling for Goodput, OSDI"

    min_gain: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Predicted gain of goodput that a change needs; the optimum is flat.",
        json_schema_extra={"unit": "of the goodput"},
    )

    def reads(self) -> frozenset[str]:
        return frozenset({"noise_scale", "step_time", IN_FORCE})

    def initial(self) -> State:
        return State(**self._at_first(), agreed=0, trials=0, world_size=0, measured=0, warm=WARM, recent=[], times={})

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        now = _timed(cast(State, state), observation)
        noise, batch = observation.noise, observation.plan.batch_size
        if noise is None or noise.estimates == now["seen"]:
            return now, ()
        now = {**now, **self._aged(now, observation, noise)}
        scale, times = noise.value or noise.low, _times(now)
        if not scale or batch not in times:
            return now, ()
        if len(times) == 1:
            return self._try(now, observation)
        advice = self._advise(_fit(times), scale, observation, noise)
        sign = advice.sign if advice.gain > 1 + self.min_gain and advice.sure else 0
        now = {**now, "agreed": now["agreed"] + sign if now["agreed"] * sign > 0 else sign}
        if abs(now["agreed"]) < self.confirm or self._rests(now, observation, sign > 0):
            return now, ()
        rested: State = {**now, "agreed": 0, "cooldown": self.window}
        return rested, (Set(BATCH, Constant(advice.target), str(advice), self.coupling),)

    def _try(self, now: State, observation: Observation) -> tuple[State, Sequence[Proposal]]:
        """Go to another batch, the larger one first, for its step time alone."""
        batch = observation.plan.batch_size
        larger, smaller = (
            self._reachable(observation.plan, wanted) for wanted in (batch * self.max_change, batch / self.max_change)
        )
        ways = [target for target in (larger, smaller) if target != batch]
        if not ways or self._rests(now, observation, growing=True):
            return now, ()
        target = ways[now["trials"] % len(ways)]  # the other way next time, should this one lead nowhere
        reason = (
            f"only batch {batch:,} has been seen, and how the step time grows takes two: trying batch "
            f"{batch:,} -> {target:,}"
        )
        tried: State = {**now, "trials": now["trials"] + 1, "cooldown": self.first_window}
        return tried, (Set(BATCH, Constant(target), reason, self.coupling),)

    def _advise(self, line: Line, scale: float, observation: Observation, noise: Noise) -> Advice:
        batch, best = observation.plan.batch_size, line.best(scale)
        target = self._reachable(observation.plan, best)
        unfavourable = noise.low if target > batch else noise.high
        sure = unfavourable is not None and line.gain(batch, target, unfavourable) > 1
        return Advice(line, noise, best, batch, target, line.gain(batch, target, scale), sure)

    def _reachable(self, plan: Plan, wanted: float) -> int:
        """The batch nearest to `wanted` that one change can reach; the present one if there is none."""
        batch, grain = plan.batch_size, plan.world_size * plan.micro_batch
        low, high = batch / self.max_change, batch * self.max_change
        high = high if self.max is None else max(low, min(high, self.max))
        low = min(max(low, self.min), high)
        nearest = plan.nearest(min(max(wanted, low), high))
        nearest += grain * ((nearest < low) - (nearest > high))
        return nearest if low <= nearest <= high else batch


def _timed(now: State, observation: Observation) -> State:
    """The state after the new step times, of steps that all ran with one batch."""
    if now["world_size"] != observation.plan.world_size:
        now = {
            **now,
            "world_size": observation.plan.world_size,
            "measured": 0,
            "warm": WARM,
            "recent": [],
            "times": {},
        }
    time, in_force = observation.last("step_time"), observation.last(IN_FORCE)
    if time is None or in_force is None or in_force.std_error:
        return now
    if not (SHORTEST <= time.value <= LONGEST and 1 <= in_force.value <= LARGEST):
        return now
    batch = round(in_force.value)
    if batch != now["measured"]:
        now = {**now, "measured": batch, "warm": WARM, "recent": [], "times": _left(now)}
    if now["warm"]:
        return {**now, "warm": now["warm"] - 1}
    return {**now, "recent": [*now["recent"], float(f"{time.value:.4g}")][-MOST:]}


def _left(now: State) -> dict[str, float]:
    """The step times to be kept when the batch that was measured is left: the newest."""
    times, batch = dict(now["times"]), str(now["measured"])
    if len(now["recent"]) >= FEWEST:
        times.pop(batch, None)
        times[batch] = _usual(now["recent"])
    return dict(list(times.items())[-SIZES:])


def _times(now: State) -> dict[int, float]:
    """The step time of every batch that has been measured [s]."""
    times = {int(batch): time for batch, time in now["times"].items()}
    return times | ({now["measured"]: _usual(now["recent"])} if len(now["recent"]) >= FEWEST else {})


def _usual(times: Sequence[float]) -> float:
    """The lower quartile: what disturbs a step makes it longer, and one such step raises the mean that a reading is."""
    return sorted(times)[len(times) // 4]


def _fit(times: Mapping[int, float]) -> Line:
    """The line through the step times of two batches or more, by least squares of relative errors, a and c >= 0."""
    weights = [1 / time**2 for time in times.values()]
    whole = sum(weights)
    batch, time = (sum(w * x for w, x in zip(weights, xs, strict=True)) / whole for xs in (times, times.values()))
    spread = sum(w * (b - batch) ** 2 for w, b in zip(weights, times, strict=True))
    c = sum(w * (b - batch) * t for w, (b, t) in zip(weights, times.items(), strict=True)) / spread
    if c <= 0:
        return Line(time, 0.0)
    if time <= c * batch:
        return Line(0.0, sum(b / t for b, t in times.items()) / sum((b / t) ** 2 for b, t in times.items()))
    return Line(time - c * batch, c)
