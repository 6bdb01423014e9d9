"""What lets the policy `goodput` choose the number of workers beside the batch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from pydantic import Field

from trimtab.controller.batching import Plan
from trimtab.controller.hyperparameters import BATCH
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Notice, Observation, Proposal, Set
from trimtab.controller.policies.batch import BatchPolicy
from trimtab.controller.policies.policy import Part
from trimtab.controller.policies.step_times import Line, gain
from trimtab.controller.policies.wish import NONE, Wish, asking, look, others, present
from trimtab.controller.sync import WORKERS
from trimtab.controller.trajectory import Constant

__all__ = ["NOBODY", "Crew", "CrewPolicy", "Sight", "regrouped"]

KEPT = 4  # other world sizes whose step times are kept


class Crew(TypedDict):
    """Part of the state, where the policy owns the workers."""

    wish: Wish
    tried: list[int]  # workers that have been asked for
    worlds: dict[str, dict[str, float]]  # other world sizes -> batch -> step time, as it was when it was left [s]
    leaning: int  # consecutive observations in favour of one worker more; of one fewer, if negative


NOBODY = Crew(wish=NONE, tried=[], worlds={}, leaning=0)


class Sight(NamedTuple):
    """What a number of workers is chosen from."""

    observation: Observation
    lines: Mapping[int, Line]  # of the step time, by world size
    scale: float  # [samples]
    noise: Noise

    @property
    def beside(self) -> int:
        """Learners on each worker."""
        return others(self.observation, WORKERS)

    @property
    def workers(self) -> int:
        return present(self.observation, WORKERS)

    @property
    def here(self) -> Line:
        return self.lines[self.observation.plan.world_size]


class Option(NamedTuple):
    """Another number of workers, with the best batch for it."""

    workers: int
    batch: int  # [samples]
    gain: float  # predicted ratio of goodputs, both at their best batch
    pays: float  # the ratio from which on it pays
    sure: bool  # does it pay at the unfavourable end of the noise scale's interval, too?
    trial: bool = False  # it has not been measured


class CrewPolicy(BatchPolicy):
    """Owns the workers as well as the batch where `max_workers` is given, and moves them by one at a time."""

    min_gain: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Predicted gain of goodput that a change needs; the optimum is flat.",
        json_schema_extra={"unit": "of the goodput"},
    )
    max_workers: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Largest number of workers to propose; empty: they are left alone. For runs that hold their batch "
        "when ranks come or go (`on_resize` hold), since the policy sets it for the new number itself.",
        json_schema_extra={"unit": "workers"},
    )
    worker_gain: float = Field(
        1 / 3,
        ge=0,
        le=10,
        description="Gain of goodput that the n-th worker must bring, times n, as in KungFu (Mai et al. 2020).",
        json_schema_extra={"unit": "x 1/n"},
    )
    patience: int = Field(
        600,
        ge=1,
        description="Observations for which a wish for other workers may stay unfulfilled, since the cluster has no "
        "room or newcomers are still starting; then it is taken back.",
        json_schema_extra={"unit": "observations"},
    )

    def writes(self) -> Mapping[str, Part]:
        batch: Mapping[str, Part] = {BATCH: "base"}
        return batch if self.max_workers is None else {**batch, WORKERS: "base"}

    def _awaited(self, crew: Crew, observation: Observation) -> tuple[Crew, bool, Sequence[Proposal]]:
        """The crew, whether it is still on its way, and what there is to say of that."""
        fate, wish = look(crew["wish"], observation, WORKERS)
        known: Crew = {**crew, "wish": wish}
        if fate == "denied":
            asked = crew["wish"]["size"]
            reason = f"{_count(asked)} asked for, but a bound or a pin holds them at {wish['size']}"
            return _without(known, asked, observation), True, (Notice(reason),)
        if fate != "waiting":
            return known, fate == "moved", ()
        if wish["waited"] < self.patience:
            return known, True, ()
        there = present(observation, WORKERS)
        reason = (
            f"{_count(wish['size'])} wished, but the run trains on {there} after {self.patience:,} observations: "
            f"workers {wish['size']} -> {there}"
        )
        given_up: Crew = {**_without(known, wish["size"], observation), "wish": asking(there)}
        return given_up, True, (Set(WORKERS, Constant(there), reason),)

    def _choose(self, crew: Crew, sight: Sight, settled: bool) -> tuple[Crew, Option | None]:
        """The crew after another look, and where to go: to what pays, or, where the batch has settled, to try one."""
        beside, near = sight.beside, self._near(sight.workers)
        known = [self._option(n, sight.lines[n * beside], sight) for n in near if n * beside in sight.lines]
        paying = next((one for one in known if one.sure and one.gain > self._needed(one, sight)), None)
        sign = 0 if paying is None else 1 if paying.workers > sight.workers else -1
        leaning = crew["leaning"] + sign if crew["leaning"] * sign > 0 else sign
        looked: Crew = {**crew, "leaning": leaning}
        if paying is not None:
            return looked, paying if abs(leaning) >= self.confirm else None
        unknown = [n for n in near if n * beside not in sight.lines and n not in crew["tried"]] if settled else []
        hopeful = (one for n in unknown if (one := self._trial(n, sight)) is not None)
        return looked, next(hopeful, None)

    def _near(self, workers: int) -> list[int]:
        most = self.max_workers or 0
        return [n for n in (workers + 1, workers - 1) if 1 <= n <= most or 1 <= n < workers]

    def _needed(self, option: Option, sight: Sight) -> float:
        """For one that left because it did not pay the bar is higher, lest it come and go."""
        return option.pays * (1 + self.min_gain) if option.workers > sight.workers else option.pays

    def _trial(self, workers: int, sight: Sight) -> Option | None:
        """An unknown number of workers, if it pays when seen with favour.

        One more makes the network no faster, so the constant part of the step is at least the present one; that of
        one fewer is at least nothing.
        """
        here, ranks = sight.here, sight.observation.plan.world_size
        likely = Line(here.a, here.c * ranks / (workers * sight.beside))
        hoped = Line(0.0, likely.c) if workers < sight.workers and likely.c else likely
        option = self._option(workers, likely, sight, hoped)
        return option._replace(trial=True) if option.gain > option.pays else None

    def _option(self, workers: int, line: Line, sight: Sight, hoped: Line | None = None) -> Option:
        """`workers` with the best batch for step times as in `line`, judged by those of `hoped` if given."""
        plan, here, noise, judged = sight.observation.plan, sight.here, sight.noise, hoped or line
        stay = self._reachable(plan, here.best(sight.scale))
        batch = self._reachable(plan, line.best(sight.scale), workers * sight.beside)
        asked = 1 + self.worker_gain / max(workers, sight.workers)
        pays = asked if workers > sight.workers else 1 / asked
        end = sight.scale if batch == stay else noise.low if batch > stay else noise.high
        return Option(
            workers,
            batch,
            gain(here, stay, judged, batch, sight.scale),
            pays,
            sure=end is not None and gain(here, stay, judged, batch, end) > pays,
        )

    def _moved(self, crew: Crew, option: Option, sight: Sight) -> tuple[Crew, Sequence[Proposal]]:
        """Workers and batch are one decision."""
        workers, n, batch = sight.workers, option.workers, sight.observation.plan.batch_size
        worth = f"goodput {option.gain - 1:+.0%}"
        if option.trial:
            told = f"{_count(n)} {'has' if n == 1 else 'have'} not been tried: {worth} at best"
        else:
            line = sight.lines[n * sight.beside]
            told = f"step time {sight.here}, with {_count(n)} {line}, noise scale {sight.noise}: {worth}"
        asked = f"{'above' if n > workers else 'and one fewer pays from'} {option.pays - 1:+.0%}"
        reason = f"{told}, {asked}: workers {workers} -> {n}, batch {batch:,} -> {option.batch:,}"
        after: Crew = {**crew, "wish": asking(n), "tried": sorted({*crew["tried"], n}), "leaning": 0}
        return after, (
            Set(WORKERS, Constant(n), reason),
            Set(BATCH, Constant(option.batch), reason, self.coupling),
        )

    def _reachable(self, plan: Plan, wanted: float, ranks: int = 0) -> int:
        """The batch nearest to `wanted` that one change can reach, of `ranks` if given; the present one if none is."""
        batch, group = plan.batch_size, Plan(ranks or plan.world_size, plan.micro_batch, plan.accumulation)
        grain = group.world_size * group.micro_batch
        low, high = batch / self.max_change, batch * self.max_change
        high = high if self.max is None else max(low, min(high, self.max))
        low = min(max(low, self.min), high)
        nearest = group.nearest(min(max(wanted, low), high))
        nearest += grain * ((nearest < low) - (nearest > high))
        return nearest if low <= nearest <= high else batch


def regrouped(crew: Crew, left: int, times: Mapping[str, float], ranks: int) -> tuple[Crew, dict[str, float]]:
    """The crew when `left` ranks with their step times have become `ranks`, and what is known of these."""
    worlds = {world: known for world, known in crew["worlds"].items() if world != str(left)}
    if times:
        worlds[str(left)] = dict(times)
    known = worlds.pop(str(ranks), {})
    return {**crew, "leaning": 0, "worlds": dict(list(worlds.items())[-KEPT:])}, known


def _without(crew: Crew, workers: int, observation: Observation) -> Crew:
    """The crew when that many workers cannot be had: they are not asked for again."""
    gone = str(workers * others(observation, WORKERS))
    worlds = {world: times for world, times in crew["worlds"].items() if world != gone}
    return {**crew, "tried": sorted({*crew["tried"], workers}), "worlds": worlds}


def _count(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"
