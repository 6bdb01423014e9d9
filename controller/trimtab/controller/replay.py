"""Replay: policies decide again over the recorded observations of a run. Pure: no clock, no I/O.

Without candidates the policies are those of the record, put, edited and deleted as they were; their decisions and the
versions made of them must then be the recorded ones, to the bit. With candidates (what-if) these take the place of all
recorded policies, from the start of the run. What people did (pins, commands), declarations, formations and roll backs
are taken as recorded.

The limit of a what-if: the observations are those of the run as it was. Values in force that a policy reads are the
would-be ones; measurements are not, since nobody knows what the loss or the noise would have been. So the first
decision that differs from the record is sound, and the further a what-if goes on from there, the less its later ones
say. A stop that would have come ends nothing, and a roll back brings values back, not observations. Metrics that the
journal does not hold come from the run's metric file, which no longer has what a formation has voided.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from trimtab.controller import engine
from trimtab.controller.align import MEAN
from trimtab.controller.draft import Draft
from trimtab.controller.errors import Refused
from trimtab.controller.events import (
    Change,
    Created,
    Event,
    Formed,
    Mode,
    Observed,
    PolicyDeleted,
    PolicyGiven,
    PolicyPut,
    Registered,
    RollbackFailed,
    Stated,
    Versioned,
)
from trimtab.controller.history import subject
from trimtab.controller.hyperparameters import COUPLED, Version, initial_parameter
from trimtab.controller.live import reduced
from trimtab.controller.metrics import Block
from trimtab.controller.observation import Command, Notice, Observation, Reading
from trimtab.controller.run import Absent, Run, begin, fold
from trimtab.controller.shadow import seen
from trimtab.controller.trajectory import Progress, Scalar

MAX_POINTS = 1000  # of a value in the answer
NAME = "replay"  # of the run; third-party policies have their processes under it
BY = "what-if"
DENSE = frozenset({*MEAN, "step_time_max"})  # metrics of every step, besides `hp/NAME`
MEASURED = frozenset({"noise_scale", "rank_times"})  # what a policy may read that is no metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy to try from the start of a run."""

    name: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    mode: Mode = "active"


@dataclass(frozen=True, slots=True)
class Decision:
    """One change that a policy made, or was refused: then `after` is empty and `refused` says why."""

    step: int
    samples: int
    policy: str  # "batch": the learning rate's coupling to the batch
    param: str
    before: bool | Scalar | None
    after: bool | Scalar | None
    reason: str
    refused: str | None = None
    shadow: bool = False  # decided in shadow: nothing was applied


@dataclass(frozen=True, slots=True)
class Trace:
    """A value over the observations, where it changed and just before; thinned out to `MAX_POINTS`."""

    step: list[int] = field(default_factory=list)
    value: list[Scalar] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the policies decide, beside what was decided."""

    observations: int
    decisions: list[Decision]
    recorded: list[Decision]
    values: dict[str, Trace]
    unread: dict[str, list[str]]  # by policy: what it reads and no observation has
    equal: bool  # are the decisions those recorded? Without candidates: policies' states and versions too


class Stored(Protocol):
    """The run's metric file."""

    def block(self, key: str) -> Block | None:
        """All points of a metric, ascending; None if there are none."""


class Nothing:
    """No metric file."""

    def block(self, key: str) -> Block | None:  # noqa: ARG002
        return None


def replay(
    events: Iterable[Event], candidates: Sequence[Candidate] | None = None, stored: Stored | None = None
) -> Replayed:
    """The run whose `events` these are, decided again. Raises Refused for policies that cannot be put, or be run."""
    again = _Replay(candidates, stored or Nothing())
    for event, following in _pairs(events):
        again.take(event, following)
    return again.replayed()


def _pairs(events: Iterable[Event]) -> Iterator[tuple[Event, Event | None]]:
    """Each event with the one that follows."""
    iterator = iter(events)
    event = next(iterator, None)
    while event is not None:
        following = next(iterator, None)
        yield event, following
        event = following


class _Replay:
    """The run as it is decided anew, `run`, beside the version on record."""

    run: Run
    version: Version  # on record
    known: Run  # the run with the policies on record, for what they read; only a what-if needs it

    def __init__(self, candidates: Sequence[Candidate] | None, stored: Stored) -> None:
        self._candidates = candidates
        self._put = not candidates
        self._equal = True
        self._registered: Registered | None = None
        self._observations = 0
        self._made = _Decisions()
        self._recorded = _Decisions()
        self._values = _Values()
        self._settled: tuple[Version, Observation] | None = None  # a version whose values move no more
        self._readings = _Readings(stored)
        self._read: set[str] = set()  # what any observation has

    @property
    def _what_if(self) -> bool:
        return self._candidates is not None

    @property
    def _in_step(self) -> bool:
        """Is this the recorded run so far?"""
        return not self._what_if and self._equal

    def take(self, event: Event, following: Event | None) -> None:
        if not self._put and not isinstance(event, Created | PolicyGiven):
            self._put_candidates()
        match event:
            case Observed() if isinstance(following, Stated) and following.state.ended:
                self._last_sight(event)  # no policy was asked
            case Observed():
                self._observe(event, following)
            case Created():
                self._create(event)
            case Registered():
                self._registered = event  # the observation that follows belongs to it
            case Versioned():
                self._take_version(event)
            case PolicyPut() | PolicyDeleted():
                self._take_policy(event)
            case Formed():
                self._form(event)
            case RollbackFailed() if not self._in_step:
                self._roll_back_is_over()
            case _:
                self._fold([event])

    def replayed(self) -> Replayed:
        if not self._put:
            self._put_candidates()
        made, recorded = self._made.found, self._recorded.found
        return Replayed(
            observations=self._observations,
            decisions=made,
            recorded=recorded,
            values=self._values.traces(),
            unread=self._unread(),
            equal=made == recorded and (self._what_if or self._equal),
        )

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            self.run = fold(self.run, event, 0.0)

    # ---- what policies decide -------------------------------------------------------------------------------------

    def _create(self, event: Created) -> None:
        self.version = event.version
        self.run = self.known = begin(NAME, event, 0.0)

    def _put_candidates(self) -> None:
        """As if the run had been created with them, once the files that came with its job are known."""
        self._put = True
        for i, one in enumerate(self._candidates or ()):
            if one.name in self.run.policies:
                message = f"policy {one.name} is given twice; name them apart"
                raise Refused("invalid-parameters", message, {f"policies.{i}.name": message})
            try:
                put = engine.put_policy(self.run, self.version.term, one.name, one.kind, one.params, one.mode, BY, "")
            except Refused as error:
                fields = {f"policies.{i}.{name}": message for name, message in error.fields.items()}
                raise Refused(error.code, error.message, fields) from None
            self._fold(put)

    def _observe(self, event: Observed, following: Event | None) -> None:
        """One control tick, or the decisions before the first step."""
        decided = following if isinstance(following, Versioned) and _decided(event, following) else None
        term = decided.version.term if decided else self.run.version.term
        events = self._register(event, following, term) if self._registered else self._tick(event, term)
        made = events[-1] if isinstance(events[-1], Versioned) else None
        observed = events[-1 if made is None else -2]
        assert isinstance(observed, Observed)
        if self._in_step:
            self._equal = (observed, made) == (event, decided)
        self._fold(events)
        self._observations += 1
        self._recorded.add(event, decided)
        self._made.add(observed, made)
        self._note(observed.observation, made)
        if self._what_if:
            if event.faults:
                self.known = fold(self.known, event, 0.0)
            if made is not None:
                self._roll_back_is_over()

    def _note(self, observation: Observation, made: Versioned | None) -> None:
        progress = observation.progress
        values = observation.values if made is None else made.version.at(progress).values
        self._values.note(progress.steps, values)
        self._readings.passed(progress.steps)
        if observation.metrics:
            self._read.update(observation.metrics)
        if observation.noise is not None:
            self._read.add("noise_scale")
        if observation.rank_times:
            self._read.add("rank_times")

    def _tick(self, event: Observed, term: int) -> Sequence[Event]:
        shown = event.observation if self._in_step else self._seen(self.run, event.observation)
        return engine.observe(self.run, term, shown, event.estimator)

    def _register(self, event: Observed, following: Event | None, term: int) -> Sequence[Event]:
        registered, self._registered = self._registered, None
        assert registered is not None
        after = following.version if isinstance(following, Versioned) else self.version
        declared = [p.spec for name, p in after.parameters.items() if name not in self.version.parameters]

        def look(run: Run) -> Observation:
            return event.observation if self._in_step else self._seen(run, event.observation)

        rule, size = registered.lr_rule, registered.dataset_size
        return engine.register(self.run, term, declared, rule, size, look, event.estimator)

    def _last_sight(self, event: Observed) -> None:
        shown = event.observation if self._in_step else self._seen(self.run, event.observation)
        self._fold([replace(event, observation=shown)])
        self._values.note(shown.progress.steps, shown.values)

    def _seen(self, run: Run, observation: Observation) -> Observation:
        """The recorded moment as it would have been: with the values in force, and the metrics that are asked for."""
        version = run.version
        if self._settled is not None and self._settled[0] is version:
            shown = self._settled[1]
            shown = replace(
                observation, values=shown.values, plan=shown.plan, rising=shown.rising, decay_from=shown.decay_from
            )
        else:
            shown = seen(observation, version)
            if version.still(observation.progress):
                self._settled = (version, shown)
        metrics, nonfinite = dict(observation.metrics), dict(observation.nonfinite)
        for name in run.reads - self.known.reads - metrics.keys() - MEASURED:
            readings, lost = self._readings.of(name, observation.progress.steps)
            if readings:
                metrics[name] = readings
            if lost:
                nonfinite[name] = lost
        return replace(shown, metrics=metrics, nonfinite=nonfinite)

    # ---- what is taken as recorded --------------------------------------------------------------------------------

    def _take_policy(self, event: PolicyPut | PolicyDeleted) -> None:
        self.known = fold(self.known, event, 0.0)
        if self._what_if:
            return
        if isinstance(event, PolicyPut) and isinstance(self.known.policies[event.name].policy, Absent):
            raise Refused(
                "cannot-replay",
                f"policy {event.name} cannot be run again: this installation has no kind {event.kind} with rule"
                f" {event.rule}, under which it was recorded",
                {event.name: "cannot be run again"},
            )
        self._fold([event])

    def _take_version(self, event: Versioned) -> None:
        """A version on record: made here too, or by a person, a formation, a declaration, a policy's end."""
        if self._in_step:
            if self.run.version != event.version:
                self._fold([event])
        else:
            self._transfer(event)
        self.version = event.version

    def _transfer(self, event: Versioned) -> None:
        """Make of another version what was made of the one on record, as far as no policy had a part in it."""
        before, after = self.version, event.version
        draft = Draft(self.run, after.term, event.progress, self.run.version)
        if after.batching != before.batching:
            draft.rebatch(replace(draft.version, batching=after.batching), BY, "")
        for name, parameter in after.parameters.items():
            if name not in draft.version.parameters:
                draft.version = draft.version.with_parameter(initial_parameter(parameter.spec))
            mine = draft.version.parameters[name]
            if name not in before.parameters or parameter.pin != before.parameters[name].pin:
                draft.put(replace(mine, pin=parameter.pin), BY, "")
        if not all(_by_policy(self.known, change) for change in event.changes):
            draft.version = replace(
                draft.version,
                paused=after.paused if after.paused != before.paused else draft.version.paused,
                stopped=after.stopped if after.stopped != before.stopped else draft.version.stopped,
                decay_from=draft.version.decay_from or after.decay_from,
                checkpoints=after.checkpoints,
            )
        if after.rollback is not None and after.rollback != before.rollback:  # whoever asked: the run went back
            draft.version = replace(draft.version, stopped=False)
            draft.command(Command("rollback", "", after.rollback.step, after.rollback.skip_data), BY)
        self._fold(draft.events())

    def _form(self, event: Formed) -> None:
        if not self._in_step and event.rolled_back:
            self._roll_back_is_over()
            event = replace(event, rolled_back=self.run.rolled_back)
        self._fold([event])
        self._values.rewind(event.progress.steps)
        self._readings.rewind(event.progress.steps)

    def _roll_back_is_over(self) -> None:
        """Versions have other numbers here, and no rank reports that it has gone back."""
        if (wish := self.run.rolling_back) is not None:
            self._fold([RollbackFailed(wish.number, self.run.progress, BY)])

    def _unread(self) -> dict[str, list[str]]:
        missing = {name: sorted(entry.policy.reads() - self._read) for name, entry in self.run.policies.items()}
        return {name: metrics for name, metrics in missing.items() if metrics}


def _by_policy(run: Run, change: Change) -> bool:
    return change.by in run.policies


def _decided(observed: Observed, version: Versioned) -> bool:
    """Was the version made of what policies said at that observation, and not by a person right after?"""
    said = {one.policy for one in observed.outcomes if one.refused is None and one.policy not in observed.shadows}
    return version.progress == observed.observation.progress and all(
        change.by in said or change.by in (COUPLED, "script") for change in version.changes
    )


class _Decisions:
    """What was decided, in order. A refusal is told once, not for as long as it lasts."""

    def __init__(self) -> None:
        self.found: list[Decision] = []
        self._refusals: dict[tuple[str, str], str | None] = {}

    def add(self, observed: Observed, versioned: Versioned | None) -> None:
        if observed.outcomes:
            self._outcomes(observed)
        if versioned is not None:
            changes = (change for change in versioned.changes if change.by != "script")
            self._changes(observed.observation.progress, changes)
        for shadow in observed.shadows.values():
            self._changes(observed.observation.progress, shadow.changes, shadow=True)

    def _outcomes(self, observed: Observed) -> None:
        progress, values = observed.observation.progress, observed.observation.values
        for one in observed.outcomes:
            param, shadow = subject(one.proposal), one.policy in observed.shadows
            key = (one.policy, param)
            news = self._refusals.get(key) != one.refused
            self._refusals[key] = one.refused
            if isinstance(one.proposal, Notice) or (one.refused is not None and news):
                self.found.append(
                    Decision(
                        *(progress.steps, progress.samples, one.policy, param, values.get(param), None),
                        *(one.proposal.reason, one.refused, shadow),
                    )
                )

    def _changes(self, progress: Progress, changes: Iterable[Change], shadow: bool = False) -> None:
        self.found += [
            Decision(progress.steps, progress.samples, c.by, c.param, c.before, c.after, c.reason, None, shadow)
            for c in changes
        ]


class _Values:
    """The values in force at each observation."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: list[Mapping[str, Scalar]] = []
        self._until: int | None = None  # the last step at which the last values were seen

    def note(self, step: int, values: Mapping[str, Scalar]) -> None:
        if self._values and self._values[-1] == values:
            self._until = step
            return
        self._close()
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
        if len(kept) > MAX_POINTS:
            kept = [kept[i] for i in np.linspace(0, len(kept) - 1, MAX_POINTS).round().astype(int)]
        return Trace([step for step, _ in kept], [value for _, value in kept])


class _Readings:
    """Readings of metrics that the journal does not hold, reduced as they would have been."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._blocks: dict[str, Block | None] = {}
        self._dense = 0  # the step up to which metrics of every step have been read
        self._logged = 0  # the first step whose logged metrics have not

    def of(self, name: str, step: int) -> tuple[tuple[Reading, ...], int]:
        """The new readings at `step`, and the number of values that are none because they are not finite."""
        if name not in self._blocks:
            self._blocks[name] = self._stored.block(name)
        block = self._blocks[name]
        if block is None:
            return (), 0
        if name in DENSE or name.startswith("hp/"):
            return reduced([_cut(block, self._dense + 1, step + 1)], [], name)
        return reduced([], [(name, _cut(block, self._logged, step))], name)  # what is logged is final one step later

    def passed(self, step: int) -> None:
        self._dense = self._logged = step

    def rewind(self, step: int) -> None:
        self._dense, self._logged = step, step + 1


def _cut(block: Block, start: int, end: int) -> Block:
    """The rows at start <= step < end."""
    low, high = np.searchsorted(block.steps, (start, end))
    columns = {name: column[low:high] for name, column in block.columns.items()}
    return Block(block.steps[low:high], block.samples[low:high], block.times[low:high], columns)
