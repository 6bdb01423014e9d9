"""The policy `goodput`: the batch, and where allowed the workers, that make the most progress a second."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NotRequired, cast

from trimtab.controller.hyperparameters import BATCH
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Proposal, Set
from trimtab.controller.policies.batch import Rest
from trimtab.controller.policies.goodput_workers import NOBODY, Crew, CrewPolicy, Sight, regrouped
from trimtab.controller.policies.policy import JsonState
from trimtab.controller.policies.step_times import IN_FORCE, STEP_TIME, Line, fit_worlds, timed, usual
from trimtab.controller.policies.step_times import fit as _fit
from trimtab.controller.trajectory import Constant

__all__ = ["Goodput"]

WARM = 2  # readings dropped at the beginning and after a change: caches, autotuning, a step of either batch
FEWEST = 5  # readings that a batch's step time needs
MOST = 15  # readings that a batch's step time is told from
SIZES = 4  # batches whose step times are kept, besides the present one's


class State(Rest):
    agreed: int  # consecutive observations that ask for a larger batch; for a smaller one, if negative
    trials: int  # of another batch, to learn its step time
    world_size: int  # of the step times
    measured: int  # the batch of `recent` [samples]
    warm: int  # readings of it still to be dropped
    recent: list[float]  # step times at `measured`, the newest last [s]
    times: dict[str, float]  # batch -> step time, as it was when it was left [s]
    crew: NotRequired[Crew]  # where the policy owns the workers


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


class Goodput(CrewPolicy):
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

    With `max_workers` the policy owns the number of workers n, too. The time of a step is then T_n(B) = a_n + c B / n:
    a rank's samples cost the same in any group, the network, in a_n, is each group's own, and step times of other
    groups are kept. Of n - 1, n and n + 1 that one is chosen whose goodput at its best batch is the largest after the
    workers have been paid for: the n-th must bring a gain of `worker_gain` / n, one that has been given back `min_gain`
    on top of that. Workers and batch are set together. A number not seen yet is tried once, when the batch has settled,
    if it would pay under the best of circumstances. Nothing is measured while newcomers are on their way; a wish that
    has not come true after `patience` observations goes back to what there is, and is not made again.

    Source: Qiao et al. 2021 (Pollux, OSDI); the couplings are those of `noise_scale`.
    """

    kind: ClassVar[str] = "goodput"
    source: ClassVar[str] = "Qiao et al. 2021, Pollux: Co-adaptive Cluster Scheduling for Goodput, OSDI"

    def reads(self) -> frozenset[str]:
        return frozenset({"noise_scale", STEP_TIME, IN_FORCE})

    def initial(self) -> State:
        counts = {"agreed": 0, "trials": 0, "world_size": 0, "measured": 0, "warm": WARM}
        first = cast(State, {**self._at_first(), **counts, "recent": [], "times": {}})
        if self.max_workers is not None:
            first["crew"] = NOBODY
        return first

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        now = cast(State, state)
        if self.max_workers is not None:
            crew, coming, said = self._awaited(now.get("crew", NOBODY), observation)
            now = {**now, "crew": crew}
            if coming:  # newcomers that start make the others slower
                return now, said
        now = _timed(now, observation)
        noise, batch = observation.noise, observation.plan.batch_size
        if noise is None or noise.estimates == now["seen"]:
            return now, ()
        now = {**now, **self._aged(now, observation, noise)}
        scale, times = noise.value or noise.low, _times(now)
        if not scale or batch not in times:
            return now, ()
        lines = self._lines(now, times)
        if not lines:
            return self._try(now, observation)
        advice = self._advise(lines[now["world_size"]], scale, observation, noise)
        sign = advice.sign if advice.gain > 1 + self.min_gain and advice.sure else 0
        now = {**now, "agreed": now["agreed"] + sign if now["agreed"] * sign > 0 else sign}
        if "crew" in now and self.max_workers is not None and now["crew"]["wish"]["size"]:
            now, moves = self._man(now, now["crew"], Sight(observation, lines, scale, noise))
            if moves:
                return now, moves
        if abs(now["agreed"]) < self.confirm or self._rests(now, observation, sign > 0):
            return now, ()
        rested: State = {**now, "agreed": 0, "cooldown": self.window}
        return rested, (Set(BATCH, Constant(advice.target), str(advice), self.coupling),)

    def _lines(self, now: State, times: dict[int, float]) -> dict[int, Line]:
        """The line of each world size that is known; of the present one only, where the workers are left alone."""
        if self.max_workers is None:
            return {now["world_size"]: _fit(times)} if len(times) > 1 else {}
        worlds = now.get("crew", NOBODY)["worlds"]
        known = {int(ranks): {int(b): time for b, time in of.items()} for ranks, of in worlds.items()}
        return fit_worlds({**known, now["world_size"]: times})

    def _man(self, now: State, crew: Crew, sight: Sight) -> tuple[State, Sequence[Proposal]]:
        """Go to another number of workers, with the batch that is best for it, if that pays or may."""
        crew, option = self._choose(crew, sight, settled=not now["agreed"])
        now = {**now, "crew": crew}
        growing = option is not None and option.batch > sight.observation.plan.batch_size
        if option is None or self._rests(now, sight.observation, growing):
            return now, ()
        crew, moves = self._moved(crew, option, sight)
        rest = self.first_window if option.trial else self.window
        return {**now, "agreed": 0, "cooldown": rest, "crew": crew}, moves

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


def _timed(now: State, observation: Observation) -> State:
    """The state after the new step times, of steps that all ran with one batch."""
    ranks = observation.plan.world_size
    if now["world_size"] != ranks:
        times: dict[str, float] = {}
        if "crew" in now:
            crew, times = regrouped(now["crew"], now["world_size"], _left(now), ranks)
            now = {**now, "crew": crew}
        now = {**now, "world_size": ranks, "measured": 0, "warm": WARM, "recent": [], "times": times}
    read = timed(observation)
    if read is None:
        return now
    batch, time = read
    if batch != now["measured"]:
        now = {**now, "measured": batch, "warm": WARM, "recent": [], "times": _left(now)}
    if now["warm"]:
        return {**now, "warm": now["warm"] - 1}
    return {**now, "recent": [*now["recent"], float(f"{time:.4g}")][-MOST:]}


def _left(now: State) -> dict[str, float]:
    """The step times to be kept when the batch that was measured is left: the newest."""
    times, batch = dict(now["times"]), str(now["measured"])
    if len(now["recent"]) >= FEWEST:
        times.pop(batch, None)
        times[batch] = usual(now["recent"])
    return dict(list(times.items())[-SIZES:])


def _times(now: State) -> dict[int, float]:
    """The step time of every batch that has been measured [s]."""
    times = {int(batch): time for batch, time in now["times"].items()}
    return times | ({now["measured"]: usual(now["recent"])} if len(now["recent"]) >= FEWEST else {})
