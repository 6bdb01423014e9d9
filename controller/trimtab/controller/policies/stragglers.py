"""The policy `stragglers`: name the ranks that hold up the others."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypedDict, cast

from pydantic import Field

from trimtab.controller.observation import Notice, Observation, Proposal
from trimtab.controller.policies.policy import JsonState, Part, Policy

__all__ = ["Stragglers"]


class State(TypedDict):
    ranks: int  # how many there are
    slow: list[int]  # ranks named and not yet recovered
    against: dict[str, int]  # rank -> consecutive observations that speak against what was last told of it


class Stragglers(Policy):
    """Name each rank whose own time a step exceeds `ratio` x the median of the others' for `window` observations.

    A rank's own time is the step without the all-reduce: in synchronous training every rank's step takes as long as
    the slowest one's, and the straggler is who does not wait. The median is that of the *other* ranks, since with two
    of them the median of both would never be far from the slower one.

    A straggler is named once, and once more when it has kept up with the others for a window. Nothing is changed:
    to replace the rank's node is for people or the cluster.

    Source: Ananthanarayanan et al. 2010 (Mantri), where a task is an outlier from 1.5 x the median of its phase on.
    """

    kind: ClassVar[str] = "stragglers"
    source: ClassVar[str] = "Ananthanarayanan et al. 2010, Reining in the Outliers in Map-Reduce Clusters, OSDI"

    ratio: float = Field(
        1.5,
        gt=1,
        description="A rank is slow above this multiple of the median of the others.",
        json_schema_extra={"unit": "x median"},
    )
    window: int = Field(
        20,
        ge=1,
        description="Consecutive observations, each the median over its steps, until a rank is named, or has "
        "recovered. An observation takes a step, and a quarter of a second at least.",
        json_schema_extra={"unit": "observations"},
    )

    def reads(self) -> frozenset[str]:
        return frozenset({"rank_times"})

    def writes(self) -> Mapping[str, Part]:
        return {}

    def initial(self) -> State:
        return State(ranks=0, slow=[], against={})

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        times = observation.rank_times
        if len(times) < 2:
            return state, ()
        before = cast(State, state)
        if before["ranks"] != len(times):  # another group of workers: its ranks are other processes
            before = self.initial()
        slow, against, notices = list(before["slow"]), {}, []
        for rank, (own, median) in enumerate(zip(times, _medians_of_others(times), strict=True)):
            lags = own > self.ratio * median > 0
            if lags == (rank in slow):
                continue
            seen = before["against"].get(str(rank), 0) + 1
            if seen < self.window:
                against[str(rank)] = seen
                continue
            slow = sorted({*slow, rank}) if lags else [one for one in slow if one != rank]
            notices.append(Notice(self._reason(rank, own, median, lags), rank))
        return State(ranks=len(times), slow=slow, against=against), notices

    def _reason(self, rank: int, own: float, median: float, lags: bool) -> str:
        compared = f"{_ms(own)} of its own a step, the other ranks' median is {_ms(median)}"
        if lags:
            return f"rank {rank} is slow: {compared} ({own / median:.1f} x); consider replacing its node"
        return f"rank {rank} has recovered: {compared}"


def _medians_of_others(times: Sequence[float]) -> list[float]:
    """For each rank the median of all times but its own."""
    order = sorted(range(len(times)), key=lambda rank: times[rank])
    ranked = [times[rank] for rank in order]
    others = len(times) - 1
    medians = [0.0] * len(times)
    for place, rank in enumerate(order):
        low, high = ((others - 1) // 2, others // 2)
        medians[rank] = (ranked[low + (low >= place)] + ranked[high + (high >= place)]) / 2
    return medians


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"
