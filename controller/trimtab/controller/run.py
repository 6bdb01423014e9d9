"""A run's state as the fold of its events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import ValidationError

from trimtab.controller.events import (
    Applied,
    Created,
    Event,
    Formed,
    Mode,
    Observed,
    PolicyDeleted,
    PolicyPut,
    Registered,
    RunSpec,
    Stated,
    Versioned,
)
from trimtab.controller.hyperparameters import Pin, Version
from trimtab.controller.observation import Horizon, Observation, Proposal
from trimtab.controller.policies import JsonState, Policy, build
from trimtab.controller.policies.policy import Part
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import LrRule, Progress

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
    last_reason: str | None = None

    @property
    def active(self) -> bool:
        return self.mode == "active" and self.faults < MAX_FAULTS


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

    @property
    def horizon(self) -> Horizon | None:
        if self.spec.epochs is not None and self.dataset_size is not None:
            return Horizon(self.spec.epochs * self.dataset_size)
        return self.spec.horizon

    def at(self, progress: Progress) -> "Run":
        """The same run seen at a later progress, which the journal learns with the next observation."""
        return replace(self, progress=progress)

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
    run = replace(run, updated=time)
    match event:
        case Stated():
            return replace(run, state=event.state, state_reason=event.reason)
        case Formed():
            return replace(run, formation=event.formation, progress=event.progress)
        case Registered():
            return replace(run, lr_rule=event.lr_rule, dataset_size=event.dataset_size)
        case PolicyPut():
            return replace(run, policies={**run.policies, event.name: _entry(run.policies.get(event.name), event)})
        case PolicyDeleted():
            return replace(run, policies={n: e for n, e in run.policies.items() if n != event.name})
        case Observed():
            return _observed(run, event)
        case Versioned():
            moved = _pins(event.version) != _pins(run.version)
            return replace(run, version=event.version, pins_revision=run.pins_revision + moved)
        case Applied():
            return replace(run, applied_version=max(run.applied_version, *(version for _, version, _ in event.ranks)))
        case Created():
            raise ValueError(f"run {run.id} was created twice")


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


def _build(event: PolicyPut) -> Policy:
    """The policy that was put, or Absent where its kind is no longer installed, or by now has another rule."""
    try:
        policy = build(event.kind, event.params)
    except (KeyError, ValidationError):
        return Absent()
    return policy if policy.rule == event.rule else Absent()


def _entry(old: PolicyEntry | None, event: PolicyPut) -> PolicyEntry:
    policy = _build(event)
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
    )


def _observed(run: Run, event: Observed) -> Run:
    policies = dict(run.policies)
    for name, state in event.states.items():
        policies[name] = replace(policies[name], state=state)
    for name in event.faults:
        policies[name] = replace(policies[name], faults=policies[name].faults + 1)
    changed_at = dict(run.changed_at)
    for outcome in event.outcomes:
        policies[outcome.policy] = replace(policies[outcome.policy], last_reason=outcome.proposal.reason)
        if outcome.refused is None and outcome.proposal.action != "command":
            changed_at[f"{outcome.policy}/{outcome.proposal.param}"] = event.observation.progress.samples
    return replace(
        run,
        policies=policies,
        changed_at=changed_at,
        observation=event.observation,
        progress=event.observation.progress,
        estimator=event.estimator,
    )
