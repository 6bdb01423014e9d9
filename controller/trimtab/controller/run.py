"""A run's state as the fold of its events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from trimtab.controller.errors import Refused
from trimtab.controller.events import (
    Applied,
    Cause,
    Checkpointed,
    Created,
    Event,
    Formed,
    Linked,
    Mode,
    Observed,
    PolicyDeleted,
    PolicyGiven,
    PolicyPut,
    Registered,
    RollbackFailed,
    RunSpec,
    Stated,
    Told,
    Versioned,
)
from trimtab.controller.hyperparameters import Pin, Rollback, Version
from trimtab.controller.observation import Command, Horizon, Notice, Observation, Proposal, Scale, Set, topic
from trimtab.controller.policies import JsonState, Policy, build, strangers
from trimtab.controller.policies.code import Code
from trimtab.controller.policies.policy import Part
from trimtab.controller.policies.sandbox import Fault, Sandboxed, described, sandboxed
from trimtab.controller.shadow import NOTHING, Overlay
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import LrRule, Progress, Scalar
from trimtab.controller.turning import Turning, wanted

T = TypeVar("T")
MAX_RECOVERIES = 100  # that are remembered of a run, the newest
MAX_FAULTS = 3  # a policy that raised this often is not asked again until it is put anew


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy as installed in a run, with what it remembers."""

    kind: str
    rule: int
    params: Mapping[str, Any]
    mode: Mode
    revision: int
    policy: Policy
    state: JsonState
    faults: int = 0
    last_fault: str = ""
    last_reason: str | None = None
    overlay: Overlay = NOTHING  # what it would have set in shadow, until it becomes active

    @property
    def disabled(self) -> str | None:
        """Why it is no longer asked, if it is not."""
        if self.faults < MAX_FAULTS:
            return None
        return f"it has failed {self.faults} times, the last time: {self.last_fault}; put it anew to enable it"

    @property
    def active(self) -> bool:
        return self.mode == "active" and self.faults < MAX_FAULTS

    @property
    def asked(self) -> bool:
        """Is it shown what happens? A policy in shadow is, and decides, but nothing comes of it."""
        return self.mode != "off" and self.faults < MAX_FAULTS


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is kept, with what a roll back to it brings back here.

    `version`, `policies` and `estimator` are of the moment at which the controller heard of it, so they belong
    together: the values that policies had set, and what they remember of it.
    """

    step: int
    samples: int
    version: Version
    policies: Mapping[str, PolicyEntry]
    estimator: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """A formation after the first: why it was made, and what it cost."""

    formation: int
    cause: Cause
    step: int  # from which training goes on
    world_size: int
    lost: int  # ranks
    pause_s: float | None  # how long training stood still; None where nobody could measure it
    redone: int  # steps back to a checkpoint, as far as they were known of
    time: float  # unix seconds


@dataclass(frozen=True, slots=True)
class Run:
    """The state of one run; only `fold` makes a new one."""

    id: str
    spec: RunSpec
    created: float  # unix seconds
    updated: float
    version: Version
    state: RunState = RunState.PENDING
    state_reason: str = ""
    job: str = ""  # the submission id of the job of Ray's that trains it, or did last; "": none
    formation: int = 0
    progress: Progress = field(default_factory=Progress)  # as of the last observation or formation
    lr_rule: LrRule | None = None
    dataset_size: int | None = None
    policies: Mapping[str, PolicyEntry] = field(default_factory=dict)
    observation: Observation | None = None
    estimator: Mapping[str, Any] | None = None
    applied_version: int = 0  # the highest that a rank has run with
    pins_revision: int = 1
    changed_at: Mapping[str, int] = field(default_factory=dict)  # "policy/param" -> samples, for cool-downs
    checkpoints: tuple[Checkpoint, ...] = ()  # oldest first
    rolled_back: int = 0  # number of the newest roll back that is over, made or failed
    given: Mapping[str, PolicyGiven] = field(default_factory=dict)  # kinds of policies that came with the job
    observations: int = 0  # how many there were
    turnings: Mapping[str, Turning] = field(default_factory=dict)  # by "policy/param"
    told_at: Mapping[str, int] = field(default_factory=dict)  # "policy/command" -> observation, for their cool-down
    recoveries: tuple[Recovery, ...] = ()  # newest last

    @property
    def horizon(self) -> Horizon | None:
        if self.spec.epochs is not None and self.dataset_size is not None:
            return Horizon(self.spec.epochs * self.dataset_size)
        return self.spec.horizon

    @property
    def decay_from(self) -> Progress | None:
        """Where a person or a policy first asked for the decay to begin."""
        return self.version.decay_from

    @property
    def rolling_back(self) -> Rollback | None:
        """The roll back that was accepted and is not yet made."""
        wish = self.version.rollback
        return wish if wish is not None and wish.number > self.rolled_back else None

    def remembers(self, name: str, of: Checkpoint) -> bool:
        """Was the policy `name` there, of the same kind and rule, when the checkpoint was made?"""
        old, new = of.policies.get(name), self.policies.get(name)
        return old is not None and new is not None and (old.kind, old.rule) == (new.kind, new.rule)

    def code(self, kind: str) -> Code | None:
        """The code of a kind that is not Trimtab's own; None where there is no such kind (any more)."""
        if kind in self.given:
            return self.given[kind].code
        entry = strangers().get(kind)
        return Code(entry.value) if entry is not None else None

    def at(self, progress: Progress) -> "Run":
        """The same run seen at a later progress, which the journal learns with the next observation."""
        return replace(self, progress=progress)

    @property
    def reads(self) -> frozenset[str]:
        """The metrics that its policies read."""
        return frozenset(name for entry in self.policies.values() if entry.asked for name in entry.policy.reads())

    def would_be(self, name: str, progress: Progress) -> Mapping[str, Scalar]:
        """The values that the policy `name` would have made of what it writes; none unless it decides in shadow."""
        entry = self.policies[name]
        if entry.active or not entry.asked:
            return {}
        values = entry.overlay.over(self.version, name).at(progress).values
        theirs = entry.policy.writes().keys() | entry.overlay.held.keys()
        return {param: value for param, value in values.items() if param in theirs}

    def owner(self, param: str, besides: str | None = None) -> str | None:
        """The policy, other than `besides`, that owns the base of `param`."""
        return next(
            (
                name
                for name, entry in self.policies.items()
                if name != besides and entry.mode == "active" and entry.policy.writes().get(param) == "base"
            ),
            None,
        )


def begin(run_id: str, event: Created, time: float) -> Run:
    return Run(run_id, event.spec, time, time, event.version)


def fold(run: Run, event: Event, time: float) -> Run:
    """The run after `event`; the only place where its state changes."""
    if isinstance(event, Observed):  # most events are: no second copy
        return _observed(run, event, time)
    run = replace(run, updated=time)
    match event:
        case Linked():
            return replace(run, job=event.job)
        case Stated():
            return replace(run, state=event.state, state_reason=event.reason)
        case Formed():
            return replace(
                run,
                formation=event.formation,
                progress=event.progress,
                checkpoints=tuple(one for one in run.checkpoints if one.step <= event.progress.steps),
                rolled_back=max(run.rolled_back, event.rolled_back),
                recoveries=_recovered(run, event, time),
            )
        case Registered():
            return replace(run, lr_rule=event.lr_rule, dataset_size=event.dataset_size)
        case PolicyPut():
            return _afresh(run, event.name, {**run.policies, event.name: _entry(run, event)})
        case PolicyDeleted():
            return _afresh(run, event.name, {n: e for n, e in run.policies.items() if n != event.name})
        case PolicyGiven():
            return replace(run, given={**run.given, event.kind: event})
        case Versioned():
            moved = _pins(event.version) != _pins(run.version)
            run = replace(run, version=event.version, pins_revision=run.pins_revision + moved)
            wish = event.version.rollback
            return _gone_back(run, wish) if wish is not None and wish.number == event.version.number else run
        case Applied():
            return replace(run, applied_version=max(run.applied_version, *(version for _, version, _ in event.ranks)))
        case Checkpointed():
            return replace(run, checkpoints=_kept(run, event))
        case RollbackFailed():
            return replace(run, rolled_back=max(run.rolled_back, event.number))
        case Told():
            return run
        case Created():
            raise ValueError(f"run {run.id} was created twice")


def _recovered(run: Run, event: Formed, time: float) -> tuple[Recovery, ...]:
    if event.formation == 1:
        return ()
    cause: Cause = "rollback" if event.left is not None else event.cause
    left = event.left or run.progress
    new = Recovery(
        formation=event.formation,
        cause=cause,
        step=event.progress.steps,
        world_size=event.world_size,
        lost=event.lost,
        pause_s=event.pause_s,
        redone=max(0, left.steps - event.progress.steps),
        time=time,
    )
    return (*run.recoveries, new)[-MAX_RECOVERIES:]


def _kept(run: Run, event: Checkpointed) -> tuple[Checkpoint, ...]:
    new = Checkpoint(event.step, event.samples, run.version, run.policies, run.estimator)
    known = {new.step: new} | {one.step: one for one in run.checkpoints}
    return tuple(known[step] for step in sorted(known) if step in event.kept)


def _gone_back(run: Run, wish: Rollback) -> Run:
    """What policies remember returns with the checkpoint, as in `rollback` the values do."""
    to = next(one for one in run.checkpoints if one.step == wish.step)
    policies = dict(run.policies)
    for name, entry in run.policies.items():
        if entry.policy.lasting:
            continue
        if run.remembers(name, to):
            overlay = NOTHING if entry.mode == "active" else to.policies[name].overlay
            policies[name] = replace(entry, state=to.policies[name].state, overlay=overlay)
        else:
            policies[name] = replace(entry, state=entry.policy.initial(), overlay=NOTHING)
    changed_at = {key: samples for key, samples in run.changed_at.items() if samples <= to.samples}
    return replace(run, policies=policies, changed_at=changed_at, estimator=to.estimator)


def _pins(version: Version) -> Mapping[str, Pin]:
    return {name: p.pin for name, p in version.parameters.items() if p.pin is not None}


class Absent(Policy):
    """Stands for a policy that this installation cannot run as it was put; it proposes nothing."""

    kind: ClassVar[str] = "absent"

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {}

    def initial(self) -> JsonState:
        return {}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        return state, ()


def require_installed(run: Run, put: PolicyPut) -> None:
    """Raise Refused where the policy would be asked again, and is not installed as it was put."""
    entry = run.policies[put.name]
    if entry.asked and not _same_rule(entry.policy, put):
        told = f"it was recorded with rule {put.rule} of kind {put.kind}, which is not installed here"
        raise Refused("cannot-replay", f"policy {put.name} cannot be run again: {told}", {put.name: told})


def _same_rule(policy: Policy, put: PolicyPut) -> bool:
    if isinstance(policy, Sandboxed):
        try:
            return described(policy.code, put.params).about.rule == put.rule
        except Fault:
            return False
    return not isinstance(policy, Absent) and policy.rule == put.rule


def _build(run: Run, event: PolicyPut) -> Policy:
    """The policy that was put, or Absent where its kind is no longer installed, or by now has another rule."""
    if event.facts is not None:
        code = run.code(event.kind)
        return Absent() if code is None else sandboxed(run.id, event.name, code, event.rule, event.params, event.facts)
    try:
        policy = build(event.kind, event.params)
    except (KeyError, ValidationError):
        return Absent()
    return policy if policy.rule == event.rule else Absent()


def _afresh(run: Run, name: str, policies: Mapping[str, PolicyEntry]) -> Run:
    """The policy was put or deleted: what it did before is no longer held against it."""
    mine = f"{name}/"
    return replace(
        run,
        policies=policies,
        turnings={key: turning for key, turning in run.turnings.items() if not key.startswith(mine)},
        told_at={key: at for key, at in run.told_at.items() if not key.startswith(mine)},
    )


def _entry(run: Run, event: PolicyPut) -> PolicyEntry:
    old = run.policies.get(event.name)
    policy = _build(run, event)
    kept = old is not None and (old.kind, old.rule) == (event.kind, event.rule)
    return PolicyEntry(
        kind=event.kind,
        rule=event.rule,
        params=event.params,
        mode=event.mode,
        revision=old.revision + 1 if old else 1,
        policy=policy,
        state=old.state if old and kept else policy.initial(),
        last_reason=old.last_reason if old and kept else None,
        overlay=old.overlay if old and kept and event.mode != "active" else NOTHING,
    )


def _altered(one: T, **changes: Any) -> T:
    """`dataclasses.replace` without its checks, in half the time: most of what is folded goes through here."""
    new: T = object.__new__(type(one))
    for name in one.__slots__:  # type: ignore[attr-defined]
        object.__setattr__(new, name, changes[name] if name in changes else getattr(one, name))
    return new


def _observed(run: Run, event: Observed, time: float) -> Run:
    policies = dict(run.policies)
    for name, state in event.states.items():
        policies[name] = _altered(policies[name], state=state)
    for name, shadow in event.shadows.items():
        policies[name] = replace(policies[name], overlay=shadow.overlay)
    for name, message in event.faults.items():
        policies[name] = replace(policies[name], faults=policies[name].faults + 1, last_fault=message)
    changed_at, turnings, told_at = dict(run.changed_at), dict(run.turnings), dict(run.told_at)
    for outcome in event.outcomes:
        policies[outcome.policy] = replace(policies[outcome.policy], last_reason=outcome.proposal.reason)
        if outcome.refused is None and isinstance(outcome.proposal, Set | Scale):
            key = f"{outcome.policy}/{outcome.proposal.param}"
            changed_at[key] = event.observation.progress.samples
            if (value := wanted(outcome.proposal)) is not None:
                turnings[key] = turnings.get(key, Turning(value)).after(value, run.observations)
        elif outcome.refused is None and isinstance(outcome.proposal, Command | Notice):
            told_at[f"{outcome.policy}/{topic(outcome.proposal)}"] = run.observations
    return _altered(
        run,
        updated=time,
        policies=policies,
        changed_at=changed_at,
        observations=run.observations + 1,
        turnings=turnings,
        told_at=told_at,
        observation=event.observation,
        progress=event.observation.progress,
        estimator=event.estimator,
    )
