"""The audit of a run: every version, refusal and change of a policy, with what became of it."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isclose
from typing import Any, Literal

from trimtab.controller.events import (
    ROLLBACK,
    WORLD_SIZE,
    Applied,
    Change,
    Event,
    Formed,
    Observed,
    PolicyDeleted,
    PolicyGiven,
    PolicyPut,
    RollbackFailed,
    Stated,
    Told,
    Versioned,
)
from trimtab.controller.observation import Command, Notice, Proposal
from trimtab.controller.run import MAX_FAULTS

Kind = Literal["version", "refused", "policy", "notice", "shadow", "formation"]  # formation: ranks were lost
# Notices and "shadow" records stay accepted; a policy's change is applied at once, since no rank has to take it up.
Status = Literal["accepted", "applied", "superseded", "unapplied", "refused"]

ROUNDING = 1e-12  # of a value


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the audit. `applied` tells the first step that each rank ran with the version."""

    id: int
    kind: Kind
    time: float  # unix seconds
    step: int  # at which it was accepted
    changes: tuple[Change, ...]
    status: Status
    version: int | None = None
    applied: dict[int, int] = field(default_factory=dict)


class History:
    """A projection of a run's events; `take` returns the records that are new or have changed."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._of_version: dict[int, int] = {}  # version -> index
        self._open: set[int] = set()  # versions accepted and not yet applied by every rank
        self._carried: dict[int, set[int]] = {}  # version -> those before it that came in force with it
        self._world_size = 1
        self._faults: dict[str, int] = {}  # by policy, since it was put
        self._refusals: dict[str, str] = {}  # "policy/param" -> last message, so that a refusal is told once

    def __len__(self) -> int:
        return len(self._records)

    def waits(self) -> frozenset[int]:
        """The versions that have been accepted and not yet been applied on all ranks."""
        return frozenset(self._open)

    def after(self, record_id: int, limit: int) -> list[Record]:
        return self._records[record_id : record_id + limit]

    def newest(self, until: float | None = None) -> Iterator[Record]:
        """From the last back, or from the last that was accepted at `until` or before."""
        end = len(self) if until is None else bisect_right(self._records, until, key=lambda record: record.time)
        return (self._records[index] for index in range(end - 1, -1, -1))

    def take(self, event: Event, time: float) -> list[Record]:
        match event:
            case Versioned(version, changes, progress):
                shown = tuple(map(_unrounded, changes))
                record = self._add("version", time, progress.steps, shown, "accepted", version.number)
                self._of_version[version.number] = record.id - 1
                self._open.add(version.number)
                return [record]
            case Observed():
                return self._told(event, time)
            case PolicyGiven():
                told = f"comes with the job: {event.code.name} of {event.code.file}"
                reason = f"its source is kept here; sha256 {event.sha256}"
                change = Change(f"kind {event.kind}", None, told, event.by, reason)
                return [self._add("policy", time, 0, (change,), "applied")]
            case PolicyPut():
                self._faults.pop(event.name, None)
                change = Change(f"policy {event.name}", None, _described(event), event.by, event.reason)
                return [self._add("policy", time, event.progress.steps, (change,), "applied")]
            case PolicyDeleted():
                change = Change(f"policy {event.name}", None, "deleted", event.by, event.reason)
                return [self._add("policy", time, event.progress.steps, (change,), "applied")]
            case Told():
                change = Change("run", None, None, "workers", event.message)
                return [self._add("notice", time, event.progress.steps, (change,), "accepted")]
            case Formed():
                return self._formed(event, time)
            case RollbackFailed():
                return self._not_rolled_back(event, time)
            case Applied():
                return self._applied(event)
            case Stated() if event.state.ended:
                return [self._set(n, "applied" if self._begun(n) else "unapplied") for n in sorted(self._open)]
            case _:
                return []

    def _add(
        self,
        kind: Kind,
        time: float,
        step: int,
        changes: tuple[Change, ...],
        status: Status,
        version: int | None = None,
    ) -> Record:
        record = Record(len(self._records) + 1, kind, time, step, changes, status, version)
        self._records.append(record)
        return record

    def _set(self, number: int, status: Status, applied: dict[int, int] | None = None) -> Record:
        index = self._of_version[number]
        old = self._records[index]
        self._records[index] = replace(old, status=status, applied=old.applied | (applied or {}))
        if status != "accepted":
            self._open.discard(number)
        return self._records[index]

    def _begun(self, number: int) -> bool:
        return bool(self._records[self._of_version[number]].applied)

    def _applied(self, event: Applied) -> list[Record]:
        changed: dict[int, Record] = {}
        for rank, number, step in event.ranks:
            carried = self._carried.get(number, set())
            for earlier in sorted(n for n in self._open if n < number and n not in carried):
                if self._begun(earlier):
                    changed[earlier] = self._set(earlier, "applied")
                elif self._overtaken(earlier, number):
                    changed[earlier] = self._set(earlier, "superseded")
                else:
                    self._carried[number] = carried = carried | {earlier}
            for one in (number, *sorted(carried)):
                if one in self._of_version:
                    before = self._records[self._of_version[one]].applied
                    everywhere = len(before | {rank: step}) >= self._world_size
                    changed[one] = self._set(one, "applied" if everywhere else "accepted", {rank: step})
        return list(changed.values())

    def _overtaken(self, number: int, by: int) -> bool:
        """Has all that a version set been set otherwise before `by`, with which it would have come in force?"""
        versions = [n for n in self._of_version if number < n <= by]
        later = [change for n in versions for change in self._records[self._of_version[n]].changes]
        own = self._records[self._of_version[number]].changes
        return all(any(one.param == mine.param and one.after != mine.after for one in later) for mine in own)

    def _formed(self, event: Formed, time: float) -> list[Record]:
        """What some ranks had begun with ruled all of them: those that are gone can tell no more."""
        before, self._world_size = self._world_size, event.world_size
        if event.cause == "loss":
            begun = [self._set(n, "applied") for n in sorted(self._open) if self._begun(n)]
            return [*begun, *self._replaced(event, before, time)]
        if event.cause == "resize":
            return self._resized(event)
        return self._rolled_back(event)

    def _replaced(self, event: Formed, before: int, time: float) -> list[Record]:
        """Spares came in for who was lost; where the number of ranks has changed, a version tells of it."""
        if event.world_size != before:
            return []
        told = (
            f"{event.lost} of {before} workers lost, others came in; training stood still for {_seconds(event.pause_s)}"
        )
        change = Change(WORLD_SIZE, before, event.world_size, "workers", told)
        return [self._add("formation", time, event.progress.steps, (change,), "applied")]

    def _resized(self, event: Formed) -> list[Record]:
        """Now it is known how long it took."""
        asked = (index for index in reversed(self._of_version.values()) if _resizes(self._records[index]))
        index = next(asked, None)
        if index is None:
            return []
        old = self._records[index]
        cost = f"training stood still for {_seconds(event.pause_s)}"
        changes = tuple(
            replace(one, reason=f"{one.reason}; {cost}") if one.param == WORLD_SIZE else one for one in old.changes
        )
        self._records[index] = replace(old, changes=changes)
        return [self._records[index]]

    def _rolled_back(self, event: Formed) -> list[Record]:
        """Now it is known where the ranks were when they went back."""
        index = self._of_version.get(event.rolled_back)
        if event.left is None or index is None:
            return []
        told = f"rolled back from step {event.left.steps:,} to step {event.progress.steps:,}"
        old = self._records[index]
        changes = tuple(
            replace(one, before=event.left.steps, reason=f"{told}: {one.reason}" if one.reason else told)
            if one.param == ROLLBACK
            else one
            for one in old.changes
        )
        self._records[index] = replace(old, changes=changes)
        return [self._records[index]]

    def _not_rolled_back(self, event: RollbackFailed, time: float) -> list[Record]:
        index = self._of_version.get(event.number)
        asked = [] if index is None else [one for one in self._records[index].changes if one.param == ROLLBACK]
        change = Change(ROLLBACK, None, None, asked[0].by if asked else "", f"the ranks went on: {event.reason}")
        return [self._add("refused", time, event.progress.steps, (change,), "refused")]

    def _told(self, event: Observed, time: float) -> list[Record]:
        """Refusals, notices, faults, and what was decided in shadow."""
        records = []
        step = event.observation.progress.steps
        for outcome in event.outcomes:
            param = subject(outcome.proposal)
            shadow = outcome.policy in event.shadows
            if isinstance(outcome.proposal, Notice) and outcome.refused is None:
                change = Change(param, None, None, outcome.policy, outcome.proposal.reason)
                records.append(self._add("shadow" if shadow else "notice", time, step, (change,), "accepted"))
                continue
            key = f"{outcome.policy}/{param}"
            if outcome.refused is not None and self._refusals.get(key) != outcome.refused:
                reason = f"{outcome.proposal.reason} (refused: {outcome.refused})"
                change = Change(param, None, None, outcome.policy, reason)
                records.append(self._add("shadow" if shadow else "refused", time, step, (change,), "refused"))
            self._refusals[key] = outcome.refused or ""
        for shadowed in event.shadows.values():
            if shadowed.changes:
                records.append(self._add("shadow", time, step, shadowed.changes, "accepted"))
        for policy, message in event.faults.items():
            self._faults[policy] = self._faults.get(policy, 0) + 1
            end = "; it is disabled until it is put anew" if self._faults[policy] == MAX_FAULTS else ""
            change = Change(f"policy {policy}", None, None, policy, f"it failed: {message}{end}")
            records.append(self._add("refused", time, step, (change,), "refused"))
        return records


def _unrounded(change: Change) -> Change:
    """A factor that joins the base may move a value by its last digits, which is no change."""
    match change:
        case Change(before=float(before), after=float(after)) if isclose(before, after, rel_tol=ROUNDING):
            return replace(change, after=before)
    return change


def _resizes(record: Record) -> bool:
    return any(change.param == WORLD_SIZE for change in record.changes)


def _seconds(pause_s: float | None) -> str:
    return "an unknown time" if pause_s is None else f"{pause_s:.2f} s"


def subject(proposal: Proposal) -> str:
    """What a proposal is about."""
    if isinstance(proposal, Notice):
        return "run" if proposal.rank is None else f"rank {proposal.rank}"
    return "run" if isinstance(proposal, Command) else proposal.param


def _described(event: PolicyPut) -> str:
    params = ", ".join(f"{name}={_typed(value)}" for name, value in event.params.items() if value is not None)
    return f"{event.mode}: {event.kind}({params})"


def _typed(value: Any) -> str:
    """As people type it on the command line and on the page: true, [0.5, 0.8], and a word as it is."""
    return value if isinstance(value, str) else json.dumps(value)
