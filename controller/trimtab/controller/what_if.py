"""What-if: other policies decide over the recorded observations, from the start of the run. Pure: no clock, no I/O.

Several candidates take the place of all recorded policies. A single one takes its own place only: the others are put,
edited and deleted when they were on record. What people did (pins, commands), declarations, formations and roll backs
are taken as recorded.

The limit: the observations are those of the run as it was. Values in force that a policy reads are the would-be ones;
measurements are not, since nobody knows what the loss or the noise would have been. So the first decision that differs
from the record is sound, and the further a what-if goes on from there, the less its later ones say. A stop that would
have come ends nothing, and a roll back brings values back, not observations.
"""

from dataclasses import replace

from trimtab.controller import engine
from trimtab.controller.draft import Draft
from trimtab.controller.errors import Refused
from trimtab.controller.events import (
    Created,
    Event,
    Formed,
    Observed,
    PolicyDeleted,
    PolicyGiven,
    PolicyPut,
    RollbackFailed,
    Versioned,
)
from trimtab.controller.hyperparameters import Version, initial_parameter
from trimtab.controller.moments import Asking
from trimtab.controller.observation import Command, Observation
from trimtab.controller.replayed import NAME, Candidate, Decisions, Known, Replayed, Tried, Values
from trimtab.controller.run import Run, begin, fold, require_installed
from trimtab.controller.shadow import seen
from trimtab.controller.stored import Readings, Stored

BY = "what-if"
UNREADABLE = frozenset({"noise_scale", "rank_times"})  # what a policy may read that is no metric


class WhatIf:
    """The run as it would have been, beside the run as it was."""

    run: Run  # from `Created` on, which comes first
    recorded: Run

    def __init__(self, tried: Tried, stored: Stored) -> None:
        self._alone = not isinstance(tried, Candidate)
        self._candidates = [tried] if isinstance(tried, Candidate) else tried
        self._names = {one.name for one in self._candidates}
        self._put = False
        self._observations = 0
        self._made, self._recorded = Decisions(), Decisions()
        self._values = Values()
        self._known = Known()
        self._readings = Readings(stored)
        self._still: tuple[Version, Observation] | None = None

    def take(self, moment: Event | Asking) -> None:
        if isinstance(moment, Created):
            self.run = self.recorded = begin(NAME, moment, 0.0)
            return
        if not self._put and not isinstance(moment, PolicyGiven):
            self._put_candidates()
        match moment:
            case Asking():
                self._ask(moment)
            case Observed():
                shown = self._seen(self.run, moment.observation)
                self._values.seen(shown)
                self._fold(replace(moment, observation=shown))
            case Versioned():
                self._transfer(moment)
            case Formed():
                self._form(moment)
            case PolicyPut():
                self._put_as_recorded(moment)
            case PolicyDeleted():
                self._delete_as_recorded(moment)
            case RollbackFailed():
                pass  # here they have other numbers
            case _:
                self._fold(moment)
        for event in moment.events if isinstance(moment, Asking) else (moment,):
            self.recorded = fold(self.recorded, event, 0.0)
        if self.recorded.rolling_back is None:
            self._roll_back_is_over()

    def replayed(self) -> Replayed:
        if not self._put:
            self._put_candidates()
        made, recorded = self._made.found, self._recorded.found
        return Replayed(
            observations=self._observations,
            decisions=made,
            recorded=recorded,
            values=self._values.traces(),
            unread=self._known.missing({name: entry.policy.reads() for name, entry in self.run.policies.items()}),
            equal=made == recorded,
        )

    def _fold(self, *events: Event) -> None:
        for event in events:
            self.run = fold(self.run, event, 0.0)

    def _put_candidates(self) -> None:
        """As if the run had been created with them, once the files that came with its job are known."""
        self._put = True
        for i, one in enumerate(self._candidates):
            if one.name in self.run.policies:
                message = f"policy {one.name} is given twice; name them apart"
                raise Refused("invalid-parameters", message, {f"policies.{i}.name": message})
            try:
                term = self.run.version.term
                self._fold(*engine.put_policy(self.run, term, one.name, one.kind, one.params, one.mode, BY, ""))
            except Refused as error:
                fields = {f"policies.{i}.{name}": message for name, message in error.fields.items()}
                raise Refused(error.code, error.message, fields) from None

    def _put_as_recorded(self, put: PolicyPut) -> None:
        if self._alone:
            return
        policies = self.run.policies
        if put.name in self._names:
            if put.name not in self.recorded.policies:  # policies decide in the order in which they came
                last = {put.name: policies[put.name]}
                self.run = replace(self.run, policies={n: e for n, e in policies.items() if n not in last} | last)
            return
        run, term = self.run.at(put.progress), self.run.version.term
        try:
            self._fold(*engine.put_policy(run, term, put.name, put.kind, put.params, put.mode, put.by, put.reason))
        except Refused as error:
            if error.code != "base-owned":  # by the candidate, which is there instead
                raise
        else:
            require_installed(self.run, put)

    def _delete_as_recorded(self, deleted: PolicyDeleted) -> None:
        if not self._alone and deleted.name in self.run.policies and deleted.name not in self._names:
            run, term = self.run.at(deleted.progress), self.run.version.term
            self._fold(*engine.delete_policy(run, term, deleted.name, deleted.by, deleted.reason))

    # ---- what the candidates decide -------------------------------------------------------------------------------

    def _ask(self, asking: Asking) -> None:
        observation = asking.observed.observation
        made = asking.again(self.run, lambda run: self._seen(run, observation))
        self._observations += 1
        self._made.add(made)
        self._recorded.add(asking.events)
        self._values.after(made)
        self._readings.passed(observation.progress.steps)
        for event in made:
            if isinstance(event, Observed):
                self._known.add(event.observation)
        self._fold(*made)
        if asking.versioned is not None:
            self._go_back(asking.versioned)

    def _seen(self, run: Run, observation: Observation) -> Observation:
        """The recorded moment as it would have been: the values in force, and the metrics that are asked for."""
        shown = self._in_force(run.version, observation)
        lacking = run.reads - self.recorded.reads - UNREADABLE
        if not lacking:
            return shown
        metrics, nonfinite = dict(observation.metrics), dict(observation.nonfinite)
        for name in lacking:
            readings, lost = self._readings.of(name, observation.progress.steps)
            if readings:
                metrics[name] = readings
            if lost:
                nonfinite[name] = lost
        return replace(shown, metrics=metrics, nonfinite=nonfinite)

    def _in_force(self, version: Version, observation: Observation) -> Observation:
        """`seen`, which takes long, once only for a version that no ramp moves any more."""
        if self._still is None or self._still[0] is not version:
            shown = seen(observation, version)
            self._still = (version, shown) if version.still(observation.progress) else None
            return shown
        _, last = self._still
        return replace(observation, values=last.values, plan=last.plan, rising=last.rising, decay_from=last.decay_from)

    # ---- what is taken as recorded --------------------------------------------------------------------------------

    def _transfer(self, event: Versioned) -> None:
        """Make of the would-be version what somebody, no policy, made of the one on record."""
        before, after = self.recorded.version, event.version
        draft = Draft(self.run, after.term, event.progress, self.run.version)
        if after.batching.world_size != before.batching.world_size:
            draft.regroup(after.batching.world_size)
        draft.version = replace(draft.version, group=after.group)
        for name, parameter in after.parameters.items():
            if name not in draft.version.parameters:
                draft.version = draft.version.with_parameter(initial_parameter(parameter.spec))
            if name not in before.parameters or parameter.pin != before.parameters[name].pin:
                draft.put(replace(draft.version.parameters[name], pin=parameter.pin), BY, "")
        draft.version = replace(
            draft.version,
            paused=after.paused if after.paused != before.paused else draft.version.paused,
            stopped=after.stopped if after.stopped != before.stopped else draft.version.stopped,
            decay_from=draft.version.decay_from or after.decay_from,
            checkpoints=draft.version.checkpoints + after.checkpoints - before.checkpoints,
        )
        self._fold(*draft.events())
        self._go_back(event)

    def _go_back(self, event: Versioned) -> None:
        """Whoever asked for a roll back on record, person or policy: the ranks went back."""
        wish = event.version.rollback
        if wish is not None and wish.number == event.version.number:
            self._roll_back_is_over()
            run = replace(self.run, version=replace(self.run.version, stopped=False))
            again = Command("rollback", "", wish.step, wish.skip_data)
            self._fold(*engine.command(run, event.version.term, again, BY))

    def _form(self, event: Formed) -> None:
        self._fold(replace(event, rolled_back=self.run.rolled_back))
        self._values.rewind(event.progress.steps)
        self._readings.rewind(event.progress.steps)
        self._still = None  # the progress goes back, perhaps to where a ramp still moved

    def _roll_back_is_over(self) -> None:
        """Versions have other numbers here, so no rank's report is about one of them."""
        if (wish := self.run.rolling_back) is not None:
            self._fold(RollbackFailed(wish.number, self.run.progress, BY))
