"""The engine: from an observation or a person's wish to the events that grant it. Pure: no clock, no I/O.

Each function takes a run and returns the events to journal, or raises Refused. The guard rails that hold whatever a
policy says (ownership, bounds, largest ratio, cool-down, pins) stand here and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.errors import Refused
from trimtab.controller.events import (
    Change,
    Created,
    Event,
    Formed,
    Mode,
    Observed,
    Outcome,
    PolicyDeleted,
    PolicyPut,
    Registered,
    RunSpec,
    Versioned,
)
from trimtab.controller.hyperparameters import (
    BATCH,
    COUPLED,
    LR,
    HyperParameter,
    Parameter,
    Pin,
    Version,
    factor_at,
    initial_parameter,
)
from trimtab.controller.observation import Command, Observation, Proposal, Scale, Set
from trimtab.controller.policies import build, kinds
from trimtab.controller.run import PolicyEntry, Run
from trimtab.controller.trajectory import Constant, Coupling, LrRule, Progress, Ramp, Scalar, Trajectory


def create(spec: RunSpec, term: int) -> Created:
    if BATCH not in {p.name for p in spec.parameters}:
        raise Refused("invalid-parameters", "a run needs batch_size", {BATCH: "missing"})
    batching = Batching(
        spec.world_size, spec.micro_batch, spec.max_micro_batch, min_accumulation=2 if spec.world_size == 1 else 1
    )
    parameters = {p.name: initial_parameter(p) for p in spec.parameters}
    return Created(spec, Version(1, term, batching, parameters))


def register(
    run: Run, term: int, specs: Sequence[HyperParameter], lr_rule: LrRule, dataset_size: int | None
) -> tuple[Event, ...]:
    """Take in what the train function declares; what the run already has keeps its value."""
    rule = run.spec.lr_rule or run.lr_rule or lr_rule
    version = run.version
    for spec in specs:
        if spec.name not in version.parameters:
            version = version.with_parameter(initial_parameter(spec))
    if (lr := version.parameters.get(LR)) and COUPLED not in lr.factors:
        base_batch = version.at(Progress()).plan.batch_size
        coupling = Coupling(rule, base_batch, exponent=run.spec.lr_exponent)
        version = version.with_parameter(replace(lr, factors={**lr.factors, COUPLED: coupling}))
    events: list[Event] = [Registered(rule, dataset_size)]
    if version != run.version:
        draft = Draft(run, term, run.progress, version)
        events += draft.events()
    return tuple(events)


def form(run: Run, term: int, world_size: int, progress: Progress) -> tuple[Event, ...]:
    """Begin a formation of `world_size` ranks at `progress`; a run that was stopped or paused goes on."""
    draft = Draft(run, term, progress, run.version)
    batching = replace(run.version.batching, world_size=world_size, min_accumulation=2 if world_size == 1 else 1)
    if batching != run.version.batching:
        draft.version = replace(draft.version, batching=batching)
        draft.notes[BATCH] = ("workers", f"{world_size} workers")
    for entry in ("stopped", "paused"):
        if getattr(draft.version, entry):
            draft.notes[entry] = ("resume", "the run goes on")
    draft.version = replace(draft.version, stopped=False, paused=False)
    return (Formed(run.formation + 1, world_size, progress), *draft.events())


@dataclass(slots=True)
class Draft:
    """A version in the making: collects accepted changes, then becomes one event."""

    run: Run
    term: int
    progress: Progress
    version: Version
    noise_scale: float | None = None  # for AdaScale's gain [samples]
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)  # param -> (by, reason)

    def put(self, parameter: Parameter, by: str, reason: str, lr_rule: LrRule | None = None) -> None:
        before = self.version.at(self.progress).plan.batch_size
        self.version = self.version.with_parameter(parameter)
        self.notes[parameter.spec.name] = (by, reason)
        after = self.version.at(self.progress).plan.batch_size
        if after != before and (lr := self.version.parameters.get(LR)):
            self._couple(lr, before, after, lr_rule)

    def _couple(self, lr: Parameter, before: int, after: int, rule: LrRule | None) -> None:
        """Bring the learning rate's rule along, in the same version as the batch."""
        coupling = lr.factors.get(COUPLED)
        if not isinstance(coupling, Coupling):
            return
        if rule == "none":  # this change is not to move the learning rate: move the point of reference instead
            coupling = coupling.rebased(before, after)
        else:
            coupling = replace(coupling, rule=rule or coupling.rule, noise_scale=self.noise_scale)
        self.version = self.version.with_parameter(replace(lr, factors={**lr.factors, COUPLED: coupling}))
        if coupling.rule != "none" and rule != "none":
            self.notes.setdefault(LR, (COUPLED, f"{coupling} for batch {before:,} → {after:,}"))

    def events(self) -> tuple[Event, ...]:
        """The event of the new version; none if nothing has changed."""
        old, new = self.run.version, self.version
        if new == old:
            return ()
        before, after = old.at(self.progress).values, new.at(self.progress).values
        changes = [
            Change(name, before.get(name), after[name], *self.notes[name]) for name in self.notes if name in after
        ]
        changes += [
            Change(name, None, after[name], "script", "declared by the train function")
            for name in after
            if name not in before
        ]
        for entry in ("paused", "stopped"):
            if getattr(old, entry) != getattr(new, entry):
                changes.append(Change(entry, getattr(old, entry), getattr(new, entry), *self.notes[entry]))
        if new.checkpoints != old.checkpoints:
            changes.append(Change("checkpoint", None, new.checkpoints, *self.notes["checkpoint"]))
        number = old.number + 1
        return (Versioned(replace(new, number=number, term=self.term), tuple(changes), self.progress),)

    def command(self, command: Command, by: str) -> None:
        note = (by, command.reason)
        match command.command:
            case "pause":
                self.version, self.notes["paused"] = replace(self.version, paused=True), note
            case "resume":
                self.version, self.notes["paused"] = replace(self.version, paused=False), note
            case "stop":
                self.version, self.notes["stopped"] = replace(self.version, stopped=True), note
            case "checkpoint":
                count = self.version.checkpoints + 1
                self.version, self.notes["checkpoint"] = replace(self.version, checkpoints=count), note


def observe(run: Run, term: int, observation: Observation, estimator: Mapping[str, Any] | None) -> tuple[Event, ...]:
    """Ask every active policy, guard what it proposes, and make at most one new version."""
    noise = observation.noise
    draft = Draft(run, term, observation.progress, run.version, noise.value or None if noise else None)
    outcomes: list[Outcome] = []
    states: dict[str, Mapping[str, Any]] = {}
    faults: dict[str, str] = {}
    for name, entry in run.policies.items():
        if not entry.active:
            continue
        try:
            state, proposals = entry.policy.decide(entry.state, observation)
        except Exception as error:  # a policy is somebody's code: its fault must not stop the others
            faults[name] = f"{type(error).__name__}: {error}"
            continue
        if state != entry.state:
            states[name] = state
        for proposal in proposals:
            try:
                _admit(draft, name, entry, proposal)
                outcomes.append(Outcome(name, proposal))
            except Refused as refusal:
                outcomes.append(Outcome(name, proposal, refusal.message))
    return (Observed(observation, tuple(outcomes), states, faults, estimator), *draft.events())


def _admit(draft: Draft, name: str, entry: PolicyEntry, proposal: Proposal) -> None:
    """Put a policy's proposal into the draft, within the guard rails, or raise Refused."""
    if isinstance(proposal, Command):
        draft.command(proposal, name)
        return
    part = "base" if isinstance(proposal, Set) else "factor"
    if entry.policy.writes().get(proposal.param) != part:
        raise Refused("not-declared", f"{name} does not declare that it writes the {part} of {proposal.param}")
    old = _parameter(draft.version, proposal.param)
    if old.pin is not None:
        raise Refused("pinned", f"{proposal.param} is pinned by {old.pin.by}")
    _check_cooldown(draft, name, old.spec)
    if isinstance(proposal, Set):
        new = replace(old, base=_limited(draft, old, proposal.to, lambda base: replace(old, base=base)))
    else:
        new = _scaled(draft, name, old, proposal)
    draft.put(new, name, proposal.reason, proposal.lr_rule)


def _scaled(draft: Draft, name: str, old: Parameter, proposal: Scale) -> Parameter:
    if old.spec.kind == "choice":
        raise Refused("not-a-number", f"{old.spec.name} is a choice and has no factors")
    if isinstance(proposal.by, Coupling):
        raise Refused("not-declared", "the coupling to the batch belongs to the run, not to a policy")

    def with_factor(factor: Trajectory) -> Parameter:
        return replace(old, factors={**old.factors, name: factor})

    return with_factor(_limited(draft, old, proposal.by, with_factor))


def _check_cooldown(draft: Draft, name: str, spec: HyperParameter) -> None:
    last = draft.run.changed_at.get(f"{name}/{spec.name}")
    if last is not None and draft.progress.samples - last < spec.cooldown:
        left = spec.cooldown - (draft.progress.samples - last)
        raise Refused("cooling-down", f"{spec.name} may change again in {left:,} samples")


def _limited(draft: Draft, old: Parameter, to: Trajectory, rebuild: Callable[[Trajectory], Parameter]) -> Trajectory:
    """`to`, drawn back so that the value moves by at most `max_ratio`; before the first step there is no limit."""
    if isinstance(to, Constant) and (isinstance(to.value, str) or old.spec.kind == "choice"):
        _checked(old.spec, to.value)
        return to
    ratio = old.spec.max_ratio
    if ratio is None or draft.progress.steps == 0:
        return to
    batch = draft.version.at(draft.progress).plan.batch_size
    now, then = (float(p.at(draft.progress, batch)) for p in (old, rebuild(to)))
    if now <= 0 or then <= 0 or max(now, then) <= ratio * min(now, then) * (1 + 1e-9):
        return to
    if isinstance(to, Ramp):
        raise Refused(
            "too-large", f"{old.spec.name} would move from {now:.4g} to {then:.4g}, more than {ratio:g} times"
        )
    return Constant(float(to.value) * (now / then) * (ratio if then > now else 1 / ratio))


def put_policy(
    run: Run, term: int, name: str, kind: str, params: Mapping[str, Any], mode: Mode, by: str, reason: str
) -> tuple[Event, ...]:
    """Install or edit a policy; editing keeps its state."""
    if not name.isidentifier():
        raise Refused("invalid-parameters", f"a policy's name must be an identifier, got {name!r}", {"name": name})
    if kind not in kinds():
        known = ", ".join(kinds())
        raise Refused("unknown-policy-kind", f"no policy of kind {kind!r}; there are {known}", {"kind": f"not {known}"})
    try:
        policy = build(kind, params)
    except ValidationError as error:
        fields = {f"params.{'.'.join(map(str, e['loc']))}": e["msg"] for e in error.errors()}
        raise Refused("invalid-parameters", _sentence(kind, fields), fields) from None
    if mode == "active":
        for param, part in policy.writes().items():
            if part == "base" and (owner := run.owner(param, besides=name)):
                raise Refused("base-owned", f"the base of {param} is owned by policy {owner}; delete it or turn it off")
    old = run.policies.get(name)
    put = PolicyPut(name, kind, policy.rule, policy.model_dump(mode="json"), mode, by, reason, run.progress)
    if old is not None and old.kind != kind:
        return (*delete_policy(run, term, name, by, f"replaced by one of kind {kind}"), put)
    return (put,)


def _sentence(kind: str, fields: Mapping[str, str]) -> str:
    return f"{kind}: " + "; ".join(f"{field.removeprefix('params.')}: {message}" for field, message in fields.items())


def delete_policy(run: Run, term: int, name: str, by: str, reason: str) -> tuple[Event, ...]:
    """Remove a policy; what its factors are worth now is folded into the bases, so that no value jumps."""
    if name not in run.policies:
        raise Refused("policy-not-found", f"run {run.id} has no policy {name!r}")
    draft = Draft(run, term, run.progress, run.version)
    for parameter in run.version.parameters.values():
        if name in parameter.factors:
            folded = _folded(parameter, name, run.progress, run.version.at(run.progress).plan.batch_size)
            draft.put(folded, by, f"policy {name} deleted; its factor is folded into the base", "none")
    return (PolicyDeleted(name, by, reason, run.progress), *draft.events())


def _folded(parameter: Parameter, name: str, progress: Progress, batch_size: float) -> Parameter:
    worth = factor_at(parameter.factors[name], progress, batch_size)
    base = parameter.base
    if isinstance(base, Ramp):
        base = replace(base, start=base.start * worth, end=base.end * worth)
    else:
        base = Constant(float(base.value) * worth)
    return replace(parameter, base=base, factors={n: f for n, f in parameter.factors.items() if n != name})


def pin(run: Run, term: int, param: str, value: Scalar | None, by: str, reason: str) -> tuple[Event, ...]:
    """Hold a parameter at `value` (None: at what it is now), whatever the policies say."""
    old = _parameter(run.version, param)
    settings = run.version.at(run.progress)
    value = settings.values[param] if value is None else value
    _checked(old.spec, value)
    draft = Draft(run, term, run.progress, run.version, _noise(run))
    if param == BATCH:
        smallest = run.version.batching.smallest
        if float(value) < smallest:
            message = (
                f"batch_size must be at least {smallest} with {run.version.batching.world_size} workers, got {value}"
            )
            raise Refused("out-of-bounds", message, {"value": message})
    draft.put(replace(old, pin=Pin(value, by, reason)), by, reason or "pinned")
    return draft.events()


def unpin(run: Run, term: int, param: str, by: str, reason: str) -> tuple[Event, ...]:
    old = _parameter(run.version, param)
    if old.pin is None:
        raise Refused("not-pinned", f"{param} is not pinned")
    draft = Draft(run, term, run.progress, run.version, _noise(run))
    draft.put(replace(old, pin=None), by, reason or "unpinned")
    return draft.events()


def command(run: Run, term: int, wish: Command, by: str) -> tuple[Event, ...]:
    draft = Draft(run, term, run.progress, run.version)
    draft.command(wish, by)
    return draft.events()


def _noise(run: Run) -> float | None:
    noise = run.observation.noise if run.observation else None
    return noise.value or None if noise else None


def _parameter(version: Version, param: str) -> Parameter:
    if param not in version.parameters:
        known = ", ".join(version.parameters)
        raise Refused(
            "unknown-parameter", f"no hyper-parameter {param!r}; there are {known}", {"param": f"not {known}"}
        )
    return version.parameters[param]


def _checked(spec: HyperParameter, value: Scalar) -> None:
    try:
        spec.check(value)
    except ValueError as error:
        raise Refused("out-of-bounds", str(error), {"value": str(error)}) from None
