"""A version in the making."""

from dataclasses import dataclass, field, replace

from trimtab.controller import hosted, rollback
from trimtab.controller.errors import Refused
from trimtab.controller.events import ROLLBACK, WORLD_SIZE, Change, Event, Versioned
from trimtab.controller.hyperparameters import BATCH, COUPLED, LR, Parameter, Rollback, Version
from trimtab.controller.observation import Command
from trimtab.controller.run import Checkpoint, Run
from trimtab.controller.sync import SYNC, averages, counted, regrouped, with_options
from trimtab.controller.trajectory import Coupling, LrRule, Progress

COMMANDS = {  # entry of a version -> its name
    "paused": "paused",
    "stopped": "stopped",
    "checkpoints": "checkpoint",
    "decay_from": "decay",
}


@dataclass(slots=True)
class Draft:
    """Collects accepted changes, then becomes one event."""

    run: Run
    term: int
    progress: Progress
    version: Version
    noise_scale: float | None = None  # for AdaScale's gain [samples]
    start: Version = field(init=False)  # what the largest ratio is measured from
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)  # param -> (by, reason)
    said: set[tuple[str, str]] = field(default_factory=set)  # who has had a say on what
    commands: dict[str, tuple[str, str]] = field(default_factory=dict)  # entry of the version -> (by, reason)
    back: Progress | None = None  # the checkpoint that the version goes back to
    resized: str | None = None  # why the number of ranks changes

    def __post_init__(self) -> None:
        self.start = self.version

    @property
    def batch_size(self) -> int:
        return self.version.at(self.progress).plan.batch_size

    def put(self, parameter: Parameter, by: str, reason: str, lr_rule: LrRule | None = None) -> None:
        before = self.batch_size
        self.version = self.version.with_parameter(parameter)
        self.notes[parameter.spec.name] = (by, reason)
        if parameter.spec.name == SYNC:
            self._options(by)
        self._couple(before, lr_rule)

    def _options(self, by: str) -> None:
        """Those of the strategy that has been chosen come with it."""
        known = self.version.parameters.keys()
        self.version = with_options(self.version, self.progress)
        self.notes |= {name: (by, "an option of the strategy") for name in self.version.parameters if name not in known}

    def regroup(self, world_size: int, reason: str | None = None) -> None:
        """Another number of ranks, which may round the batch differently, or scale it."""
        if world_size != self.version.batching.world_size:
            self.resized = reason
        before, scale = self.batch_size, self.run.spec.on_resize == "scale"
        self.version = regrouped(self.version, world_size, scale, self.progress)
        if self.batch_size != before:
            self.notes[BATCH] = ("workers", counted(world_size))
            if not (scale and averages(self.version, self.progress)):
                self._couple(before, None)

    def resize(self, group: int, world_size: int, reason: str) -> None:
        """The group that trains from here on."""
        self.regroup(world_size, reason)
        self.version = replace(self.version, group=group)

    def _couple(self, before: int, rule: LrRule | None) -> None:
        """Bring the learning rate's rule along, in the same version as the batch."""
        after, lr = self.batch_size, self.version.parameters.get(LR)
        coupling = lr.factors.get(COUPLED) if lr else None
        if lr is None or not isinstance(coupling, Coupling) or after == before:
            return
        if rule == "none":
            coupling = coupling.rebased(before, after)
        else:
            rule = rule or coupling.rule
            coupling = coupling if rule == coupling.rule else coupling.under(rule, before)
            coupling = replace(coupling, noise_scale=self.noise_scale)
        self.version = self.version.with_parameter(replace(lr, factors={**lr.factors, COUPLED: coupling}))
        if rule != "none":
            behind = ", behind the pin" if lr.pin is not None else ""
            self.notes.setdefault(LR, (COUPLED, f"{coupling} for batch {before:,} → {after:,}{behind}"))

    def command(self, command: Command, by: str) -> None:
        """Take in a command; one that changes nothing leaves no note."""
        match command.command:
            case "pause":
                wished = replace(self.version, paused=True)
            case "resume":
                wished = replace(self.version, paused=False)
            case "stop":
                wished = replace(self.version, stopped=True)
            case "checkpoint":
                hosted.check(self.run.spec, hosted.CHECKPOINT)
                wished = replace(self.version, checkpoints=self.version.checkpoints + 1)
            case "decay":
                wished = replace(self.version, decay_from=self.version.decay_from or self.progress)
            case "rollback":
                wished = self._back(command, by)
        self._command(wished, by, command.reason)

    def _back(self, command: Command, by: str) -> Version:
        """The version that goes back to a checkpoint: what was decided before it in the same version is void."""
        if self.back is not None:
            raise Refused("rolling-back", f"the run is already going back to step {self.back.steps:,}")
        to = rollback.target(self.run, command.step)
        self.back = Progress(to.step, to.samples)
        parameters = rollback.restored(self.run, self.version, to)
        before, after = self.start.at(self.progress).values, replace(self.version, parameters=parameters).at(self.back)
        lasting = {param: note for param, note in self.notes.items() if self._lasts(note[0])}
        moved = dict.fromkeys(n for n in before if before[n] != after.values[n])
        self.notes = {param: (by, self._as_it_was(param, to)) for param in moved} | lasting
        wish = Rollback(self.run.version.number + 1, to.step, command.skip_data)
        return replace(self.version, parameters=parameters, rollback=wish)

    def _as_it_was(self, param: str, to: Checkpoint) -> str:
        told = f"as it was at step {to.step:,}"
        policies = ", ".join(rollback.adopted(self.run, param, to))
        return f"{told}, with what {policies} had set in shadow by then" if policies else told

    def _lasts(self, policy: str) -> bool:
        return policy in self.run.policies and self.run.policies[policy].policy.lasting

    def go_on(self, by: str, reason: str) -> None:
        """A run that had ended goes on; a roll back that it did not come to is void."""
        made = self.version.rollback if self.run.rolling_back is None else None
        self._command(replace(self.version, paused=False, stopped=False, rollback=made), by, reason)

    def _command(self, wished: Version, by: str, reason: str) -> None:
        for entry in COMMANDS:
            if getattr(wished, entry) != getattr(self.version, entry):
                self.commands[entry] = (by, reason)
        if self.back is not None:
            self.commands.setdefault(ROLLBACK, (by, reason))
        self.version = wished

    def events(self) -> tuple[Event, ...]:
        """The event of the new version; none if nothing has changed."""
        old, new = self.run.version, self.version
        if new is old or new == old:
            return ()
        version = replace(new, number=old.number + 1, term=self.term)
        return (Versioned(version, self.changes(), self.progress),)

    def changes(self) -> tuple[Change, ...]:
        return (*self._values_changed(), *self._commands_changed())

    def _values_changed(self) -> list[Change]:
        before = self.run.version.at(self.progress).values
        after = self.version.at(self.back or self.progress).values
        new = dict.fromkeys(
            (name for name in after if name not in before), ("script", "declared by the train function")
        )
        return [Change(name, before.get(name), after[name], *note) for name, note in (new | self.notes).items()]

    def _commands_changed(self) -> list[Change]:
        entries = [
            (entry, getattr(self.run.version, entry), getattr(self.version, entry))
            for entry in COMMANDS
            if entry in self.commands
        ]
        told = [
            Change(COMMANDS[entry], _shown(before), _shown(after), *self.commands[entry])
            for entry, before, after in entries
            if before != after
        ]
        if self.back is not None:
            told.append(Change(ROLLBACK, self.progress.steps, self.back.steps, *self.commands[ROLLBACK]))
        if self.resized is not None:
            before, after = self.run.version.batching.world_size, self.version.batching.world_size
            told.append(Change(WORLD_SIZE, before, after, "workers", self.resized))
        return told


def _shown(entry: bool | int | Progress | None) -> bool | int:
    """An entry of a version as the audit tells it; a wish to decay is there or not."""
    return entry if isinstance(entry, int) else entry is not None
