"""What goes into a replay and what comes out: candidates, and decisions beside those that were made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pydantic import StrictBool

from trimtab.controller.events import Change, Event, Mode, Observed, Versioned
from trimtab.controller.history import subject
from trimtab.controller.observation import Notice, Observation
from trimtab.controller.trajectory import Progress, Scalar

NAME = "replay"  # of the run; third-party policies have their processes under it
MAX_POINTS = 1000  # of a value in the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy to try from the start of a run."""

    name: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode = "active"


Tried = Candidate | Sequence[Candidate]  # in the place of the one of its name; in the place of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One change that a policy made, something that it told, or what it was refused: `refused` then says why."""

    step: int
    samples: int
    policy: str  # "batch": the learning rate's coupling to the batch
    param: str
    before: StrictBool | Scalar | None = None
    after: StrictBool | Scalar | None = None
    reason: str
    refused: str | None = None
    shadow: bool = False  # decided in shadow: nothing was applied


@dataclass(frozen=True, slots=True)
class Trace:
    """A value over the observations, where it changed and just before; it holds from each point to the next.

    Of more than `MAX_POINTS` those are left that outline it: what was level for long, and extremes, stay as they are.
    """

    step: list[int]
    value: list[Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What the policies decide, beside what was decided."""

    observations: int
    decisions: list[Decision]
    recorded: list[Decision]
    values: dict[str, Trace]
    unread: dict[str, list[str]]  # by policy: what it reads and no observation has
    equal: bool  # are the decisions those recorded? Without candidates: policies' states and versions too


class Decisions:
    """What was decided, in order. A refusal is told once, not for as long as it lasts."""

    def __init__(self) -> None:
        self.found: list[Decision] = []
        self._refusals: dict[tuple[str, str], str | None] = {}

    def add(self, events: Iterable[Event]) -> None:
        """Take in the events of one asking: an observation, and the version that was made of it."""
        for event in events:
            if isinstance(event, Observed):
                self._observed(event)
            elif isinstance(event, Versioned):
                self._changes(event.progress, (one for one in event.changes if one.by != "script"))

    def _observed(self, event: Observed) -> None:
        progress, values = event.observation.progress, event.observation.values
        for one in event.outcomes:
            param = subject(one.proposal)
            news = self._refusals.get((one.policy, param)) != one.refused
            self._refusals[one.policy, param] = one.refused
            if isinstance(one.proposal, Notice) if one.refused is None else news:
                self.found.append(
                    Decision(
                        step=progress.steps,
                        samples=progress.samples,
                        policy=one.policy,
                        param=param,
                        before=values.get(param),
                        reason=one.proposal.reason,
                        refused=one.refused,
                        shadow=one.policy in event.shadows,
                    )
                )
        for shadow in event.shadows.values():
            self._changes(progress, shadow.changes, shadow=True)
        for policy, message in event.faults.items():
            self.found.append(
                Decision(
                    step=progress.steps,
                    samples=progress.samples,
                    policy=policy,
                    param=f"policy {policy}",
                    reason="it failed",
                    refused=message,
                )
            )

    def _changes(self, progress: Progress, changes: Iterable[Change], shadow: bool = False) -> None:
        self.found += (
            Decision(
                step=progress.steps,
                samples=progress.samples,
                policy=one.by,
                param=one.param,
                before=one.before,
                after=one.after,
                reason=one.reason,
                shadow=shadow,
            )
            for one in changes
        )


class Values:
    """The values in force at each observation."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: list[Mapping[str, Scalar]] = []
        self._until: int | None = None  # the last step at which the last values were seen

    def after(self, events: Sequence[Event]) -> None:
        """Note what is in force after an asking."""
        *_, last = events
        if isinstance(last, Versioned):
            self.note(last.progress.steps, last.version.at(last.progress).values)
        elif isinstance(last, Observed):
            self.seen(last.observation)

    def seen(self, observation: Observation) -> None:
        self.note(observation.progress.steps, observation.values)

    def note(self, step: int, values: Mapping[str, Scalar]) -> None:
        if self._values and self._values[-1] == values:
            self._until = step if step > self._steps[-1] else None
            return
        self.rewind(step - 1)  # of one step the last counts
        self._steps.append(step)
        self._values.append(values)

    def _close(self) -> None:
        if self._until is not None:
            self._steps.append(self._until)
            self._values.append(self._values[-1])
            self._until = None

    def rewind(self, step: int) -> None:
        """What was seen beyond `step` is void."""
        self._close()
        while self._steps and self._steps[-1] > step:
            self._steps.pop()
            self._values.pop()

    def traces(self) -> dict[str, Trace]:
        self._close()
        names = dict.fromkeys(name for values in self._values for name in values)
        return {name: self._trace(name) for name in names}

    def _trace(self, name: str) -> Trace:
        points = [
            (step, values[name]) for step, values in zip(self._steps, self._values, strict=True) if name in values
        ]
        last = len(points) - 1
        kept = [
            point
            for i, point in enumerate(points)
            if i in (0, last) or not points[i - 1][1] == point[1] == points[i + 1][1]  # within a level stretch
        ]
        width = 1
        while len(kept) > MAX_POINTS:
            width *= 2
            kept = _outline(kept, width)
        return Trace([step for step, _ in kept], [value for _, value in kept])


def _outline(points: list[tuple[int, Scalar]], width: int) -> list[tuple[int, Scalar]]:
    """Of each bucket of `width` steps the first point and the last, the lowest and the highest.

    So a level stretch that goes on in another bucket keeps both its ends, the last point of the one and the first of
    the other.
    """
    kept = []
    for _, bucket in groupby(points, lambda point: point[0] // width):
        inside = list(bucket)
        places = range(len(inside))
        low, high = (of(places, key=lambda i: inside[i][1]) for of in (min, max))
        kept += [inside[i] for i in sorted({0, low, high, len(inside) - 1})]
    return kept


class Known:
    """What policies may read, as far as any observation had it."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add(self, observation: Observation) -> None:
        self._names.update(observation.metrics, observation.nonfinite)
        if observation.noise is not None:
            self._names.add("noise_scale")
        if observation.rank_times:
            self._names.add("rank_times")

    def missing(self, reads: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
        """By policy what it reads and nobody has seen; only the policies that miss something."""
        return {name: sorted(wanted - self._names) for name, wanted in reads.items() if wanted - self._names}
