"""Replay: policies decide again over the recorded observations of a run. Pure: no clock, no I/O.

Without candidates each decision on record is made again, from the state that the run had then: its outcomes, what the
policies remember and the version must be those recorded, to the bit. What people did (pins, commands, edits of
policies), declarations, formations and roll backs are taken as recorded. With candidates see `what_if`.

A fault of a third-party policy's process, a late answer say, need not come again: such a run may not replay equal.
"""

from collections.abc import Iterable

from trimtab.controller.events import Created, Event, Formed, Observed, PolicyPut
from trimtab.controller.moments import Asking, moments
from trimtab.controller.replayed import NAME, Decisions, Known, Replayed, Tried, Values
from trimtab.controller.run import Run, begin, fold, require_installed
from trimtab.controller.stored import NOTHING, Stored
from trimtab.controller.what_if import WhatIf


def replay(events: Iterable[Event], tried: Tried | None = None, stored: Stored = NOTHING) -> Replayed:
    """The run whose `events` these are, decided again: by the policies on record, or with others tried.

    Raises Refused for a policy on record that cannot be run again, and for candidates that cannot be put.
    """
    again = Check() if tried is None else WhatIf(tried, stored)
    for moment in moments(events):
        again.take(moment)
    return again.replayed()


class Check:
    """The run as it was; each decision is made once more beside it."""

    run: Run  # from `Created` on, which comes first

    def __init__(self) -> None:
        self._equal = True
        self._observations = 0
        self._made, self._recorded = Decisions(), Decisions()
        self._values = Values()
        self._known = Known()

    def take(self, moment: Event | Asking) -> None:
        match moment:
            case Asking():
                self._ask(moment)
                return
            case Created():
                self.run = begin(NAME, moment, 0.0)
                return
            case Formed():
                self._values.rewind(moment.progress.steps)
            case Observed():
                self._values.seen(moment.observation)
        self.run = fold(self.run, moment, 0.0)
        if isinstance(moment, PolicyPut):
            require_installed(self.run, moment)

    def _ask(self, asking: Asking) -> None:
        observation = asking.observed.observation
        made, recorded = asking.again(self.run, lambda _: observation), asking.events
        self._equal &= made == recorded
        self._observations += 1
        self._made.add(made)
        self._recorded.add(recorded)
        self._values.after(made)
        self._known.add(observation)
        for event in recorded:
            self.run = fold(self.run, event, 0.0)

    def replayed(self) -> Replayed:
        return Replayed(
            observations=self._observations,
            decisions=self._made.found,
            recorded=self._recorded.found,
            values=self._values.traces(),
            unread=self._known.missing({name: entry.policy.reads() for name, entry in self.run.policies.items()}),
            equal=self._equal,
        )
