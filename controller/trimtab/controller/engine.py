"""The engine: from an observation or a person's wish to the events that grant it. Pure: no clock, no I/O.

Each function takes a run and returns the events to journal, or raises Refused. The guard rails that hold whatever a
policy says (ownership, bounds, largest ratio, cool-down, pins) stand here and nowhere else.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
    product,
)
from trimtab.controller.observation import Command, Observation, Proposal, Scale, Set
from trimtab.controller.policies import JsonState, build, kinds
from trimtab.controller.run import PolicyEntry, Run, fold
from trimtab.controller.trajectory import Constant, Coupling, LrRule, Progress, Ramp, Scalar, Trajectory

_PROPOSALS: TypeAdapter[tuple[Proposal, ...]] = TypeAdapter(tuple[Proposal, ...])
COMMANDS = ("paused", "stopped", "checkpoints")  # the entries of a version that commands change


# ---- runs and formations -------------------------------------------------------------------------------------------


def create(spec: RunSpec, term: int) -> Created:
    if BATCH not in {p.name for p in spec.parameters}:
        raise Refused("invalid-parameters", "a run needs batch_size", {BATCH: "missing"})
    batching = Batching(spec.world_size, spec.micro_batch, spec.max_micro_batch, _min_accumulation(spec.world_size))
    parameters = {p.name: initial_parameter(p) for p in spec.parameters}
    return Created(spec, Version(1, term, batching, parameters))


def _min_accumulation(world_size: int) -> int:
    return 2 if world_size == 1 else 1


def form(run: Run, term: int, world_size: int, progress: Progress) -> tuple[Event, ...]:
    """Begin a formation of `world_size` ranks at `progress`.

    A run that had ended goes on; one that was only re-formed stays paused, or stopped, if that was asked for.
    """
    draft = Draft(run, term, progress, run.version)
    batching = replace(run.version.batching, world_size=world_size, min_accumulation=_min_accumulation(world_size))
    draft.rebatch(replace(run.version, batching=batching), "workers", f"{world_size} workers")
    if run.state.ended:
        draft.go_on("resume", "the run goes on")
    return (Formed(run.formation + 1, world_size, progress), *draft.events())


def register(
    run: Run,
    term: int,
    specs: Sequence[HyperParameter],
    lr_rule: LrRule,
    dataset_size: int | None,
    look: Callable[[Run], Observation],
    estimator: Mapping[str, Any] | None,
) -> tuple[Event, ...]:
    """Take in what the train function declares, and let the policies speak before the first step: one version.

    What the run already has keeps its value. `look` observes the run with all that is declared.
    """
    registered = Registered(run.spec.lr_rule or run.lr_rule or lr_rule, dataset_size)
    version = _declared(run.version, specs)
    if (lr := version.parameters.get(LR)) and COUPLED not in lr.factors:
        batch = version.parameters[BATCH].spec
        base = version.batching.plan(float(batch.default), *batch.bounds).batch_size
        coupling = Coupling(registered.lr_rule, base, exponent=run.spec.lr_exponent)
        version = version.with_parameter(replace(lr, factors={**lr.factors, COUPLED: coupling}))
    known = replace(fold(run, registered, run.updated), version=version)
    observation = look(known)
    draft = Draft(run, term, observation.progress, version, _noise_scale(observation))
    return (registered, _decide(known, draft, observation, estimator), *draft.events())


def declare(run: Run, term: int, specs: Sequence[HyperParameter]) -> tuple[Event, ...]:
    """Knobs that the script declares while it trains; those that the run already has stay as they are."""
    return Draft(run, term, run.progress, _declared(run.version, specs)).events()


def _declared(version: Version, specs: Sequence[HyperParameter]) -> Version:
    for spec in specs:
        if spec.name not in version.parameters:
            version = version.with_parameter(initial_parameter(spec))
    return version


# ---- a version in the making ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Draft:
    """A version in the making: collects accepted changes, then becomes one event."""

    run: Run
    term: int
    progress: Progress
    version: Version
    noise_scale: float | None = None  # for AdaScale's gain [samples]
    start: Version = field(init=False)  # what the largest ratio is measured from
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)  # param -> (by, reason)
    commands: dict[str, tuple[str, str]] = field(default_factory=dict)  # entry of the version -> (by, reason)

    def __post_init__(self) -> None:
        self.start = self.version

    @property
    def batch_size(self) -> int:
        return self.version.at(self.progress).plan.batch_size

    def put(self, parameter: Parameter, by: str, reason: str, lr_rule: LrRule | None = None) -> None:
        before = self.batch_size
        self.version = self.version.with_parameter(parameter)
        self.notes[parameter.spec.name] = (by, reason)
        self._couple(before, lr_rule)

    def rebatch(self, version: Version, by: str, reason: str) -> None:
        """Another batching, which may round the batch differently."""
        before = self.batch_size
        self.version = version
        if self.batch_size != before:
            self.notes[BATCH] = (by, reason)
            self._couple(before, None)

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
            self.notes.setdefault(LR, (COUPLED, f"{coupling} for batch {before:,} → {after:,}"))

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
                wished = replace(self.version, checkpoints=self.version.checkpoints + 1)
        self._command(wished, by, command.reason)

    def go_on(self, by: str, reason: str) -> None:
        self._command(replace(self.version, paused=False, stopped=False), by, reason)

    def _command(self, wished: Version, by: str, reason: str) -> None:
        for entry in COMMANDS:
            if getattr(wished, entry) != getattr(self.version, entry):
                self.commands[entry] = (by, reason)
        self.version = wished

    def events(self) -> tuple[Event, ...]:
        """The event of the new version; none if nothing has changed."""
        old, new = self.run.version, self.version
        if new == old:
            return ()
        version = replace(new, number=old.number + 1, term=self.term)
        return (Versioned(version, (*self._values_changed(), *self._commands_changed()), self.progress),)

    def _values_changed(self) -> list[Change]:
        before, after = self.run.version.at(self.progress).values, self.version.at(self.progress).values
        new = dict.fromkeys((name for name in after if name not in before), ("script", "declared by the train function"))
        return [Change(name, before.get(name), after[name], *note) for name, note in (new | self.notes).items()]

    def _commands_changed(self) -> list[Change]:
        return [
            Change(entry, getattr(self.run.version, entry), getattr(self.version, entry), *note)
            for entry, note in self.commands.items()
        ]


# ---- policies ------------------------------------------------------------------------------------------------------


def observe(run: Run, term: int, observation: Observation, estimator: Mapping[str, Any] | None) -> tuple[Event, ...]:
    """Ask every active policy, guard what it proposes, and make at most one new version."""
    draft = Draft(run, term, observation.progress, run.version, _noise_scale(observation))
    return (_decide(run, draft, observation, estimator), *draft.events())


def _decide(run: Run, draft: Draft, observation: Observation, estimator: Mapping[str, Any] | None) -> Observed:
    outcomes: list[Outcome] = []
    states: dict[str, Mapping[str, Any]] = {}
    faults: dict[str, str] = {}
    for name, entry in run.policies.items():
        if not entry.active:
            continue
        try:
            state, proposals = _ask(entry, observation)
        except Exception as error:  # a policy is somebody's code: its fault must not stop the others
            faults[name] = f"{type(error).__name__}: {error}"
            continue
        if state != entry.state:
            states[name] = state
        for proposal in proposals:
            outcomes.append(Outcome(name, proposal, _refusal(draft, name, entry, proposal)))
    return Observed(observation, tuple(outcomes), states, faults, estimator)


def _ask(entry: PolicyEntry, observation: Observation) -> tuple[JsonState, tuple[Proposal, ...]]:
    """What the policy answers, as the journal will give it back: anything else it says raises here."""
    state, proposals = entry.policy.decide(entry.state, observation)
    stored = json.loads(json.dumps(state, allow_nan=False))
    if not isinstance(stored, dict):
        raise TypeError(f"a state must be a mapping, got {state!r}")
    return stored, _PROPOSALS.validate_json(_PROPOSALS.dump_json(tuple(proposals), warnings=False), strict=True)


def _refusal(draft: Draft, name: str, entry: PolicyEntry, proposal: Proposal) -> str | None:
    try:
        _admit(draft, name, entry, proposal)
    except Refused as refusal:
        return refusal.message
    return None


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
    new = _set(draft, old, proposal.to) if isinstance(proposal, Set) else _scaled(draft, name, old, proposal.by)
    draft.put(new, name, proposal.reason, proposal.lr_rule)


def _check_cooldown(draft: Draft, name: str, spec: HyperParameter) -> None:
    last = draft.run.changed_at.get(f"{name}/{spec.name}")
    if last is not None and draft.progress.samples - last < spec.cooldown:
        raise Refused("cooling-down", f"{spec.name} rests until sample {last + spec.cooldown:,}")


def _set(draft: Draft, old: Parameter, to: Trajectory) -> Parameter:
    spec = old.spec
    if spec.kind == "choice":
        if not isinstance(to, Constant):
            raise Refused("not-a-number", f"{spec.name} is a choice and has no ramps")
        return replace(old, base=Constant(_checked(spec, to.value)))
    factors = {name: factor_at(f, draft.progress, draft.batch_size) for name, f in old.factors.items()}
    if isinstance(to, Ramp):
        return replace(old, base=_limited(draft, spec, to, product(factors.values())))
    still = product(worth for name, worth in factors.items() if not _moving(old.factors[name], draft.progress))
    if still == 0:
        raise Refused("no-effect", f"a factor of {spec.name} is 0: no base changes its value")
    low, high = spec.bounds
    wanted = Constant(min(max(_number(spec, to), low), high) / still)
    return replace(old, base=_limited(draft, spec, wanted, product(factors.values())))


def _moving(factor: Trajectory | Coupling, progress: Progress) -> bool:
    return isinstance(factor, Ramp) and factor.moving(progress)


def _scaled(draft: Draft, name: str, old: Parameter, by: Trajectory | Coupling) -> Parameter:
    if old.spec.kind == "choice":
        raise Refused("not-a-number", f"{old.spec.name} is a choice and has no factors")
    if isinstance(by, Coupling):
        raise Refused("not-declared", "the coupling to the batch belongs to the run, not to a policy")
    others = [factor_at(f, draft.progress, draft.batch_size) for other, f in old.factors.items() if other != name]
    rest = product([float(old.base.at(draft.progress)), *others])
    return replace(old, factors={**old.factors, name: _limited(draft, old.spec, by, rest)})


def _limited(draft: Draft, spec: HyperParameter, to: Trajectory, rest: float) -> Trajectory:
    """`to`, drawn back so that `to` x `rest` moves the value by at most `max_ratio` in one version.

    There is no limit before the first step, and none for a value that is 0.
    """
    if isinstance(to, Constant):
        to = Constant(_number(spec, to))
    now = float(draft.start.parameters[spec.name].at(draft.progress, draft.start.at(draft.progress).plan.batch_size))
    if spec.max_ratio is None or draft.progress.steps == 0 or now == 0 or rest == 0:
        return to
    low, high = sorted((now / spec.max_ratio, now * spec.max_ratio))
    then = product([float(to.at(draft.progress)), rest])
    if low <= then <= high:
        return to
    if isinstance(to, Ramp):
        raise Refused("too-large", f"{spec.name} would change more than {spec.max_ratio:g} times at once")
    return Constant(min(max(then, low), high) / rest)


def _number(spec: HyperParameter, constant: Constant) -> float:
    if isinstance(constant.value, str):
        raise Refused("not-a-number", f"{spec.name} is a number, got {constant.value!r}")
    return float(constant.value)


def _noise_scale(observation: Observation | None) -> float | None:
    noise = observation.noise if observation else None
    return noise.value or None if noise else None


def put_policy(
    run: Run, term: int, name: str, kind: str, params: Mapping[str, Any], mode: Mode, by: str, reason: str
) -> tuple[Event, ...]:
    """Install or edit a policy; editing keeps its state, another kind begins anew."""
    if not name.isidentifier():
        raise Refused("invalid-parameters", f"a policy's name must be an identifier, got {name!r}", {"name": name})
    if name == COUPLED:
        message = f"the name {name!r} is the run's own; choose another"
        raise Refused("invalid-parameters", message, {"name": message})
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
    if old is None or old.kind == kind:
        return (put,)
    return (put, *_without(run, term, name, by, f"policy {name} is now of kind {kind}; its factor joins the base"))


def _sentence(kind: str, fields: Mapping[str, str]) -> str:
    return f"{kind}: " + "; ".join(f"{field.removeprefix('params.')}: {message}" for field, message in fields.items())


def delete_policy(run: Run, term: int, name: str, by: str, reason: str) -> tuple[Event, ...]:
    """Remove a policy; what its factors are worth now is folded into the bases, so that no value jumps."""
    if name not in run.policies:
        raise Refused("policy-not-found", f"run {run.id} has no policy {name!r}")
    factors = _without(run, term, name, by, f"policy {name} deleted; its factor is folded into the base")
    return (PolicyDeleted(name, by, reason, run.progress), *factors)


def _without(run: Run, term: int, name: str, by: str, reason: str) -> tuple[Event, ...]:
    draft = Draft(run, term, run.progress, run.version)
    for parameter in run.version.parameters.values():
        if name in parameter.factors:
            draft.put(_folded(parameter, name, run.progress), by, reason, "none")
    return draft.events()


def _folded(parameter: Parameter, name: str, progress: Progress) -> Parameter:
    worth = factor_at(parameter.factors[name], progress, 0)  # a policy's factor: it does not depend on the batch
    base = parameter.base
    if isinstance(base, Ramp) and worth > 0:
        base = replace(base, start=product([base.start, worth]), end=product([base.end, worth]))
    else:
        base = Constant(product([float(base.at(progress)), worth]))
    return replace(parameter, base=base, factors={n: f for n, f in parameter.factors.items() if n != name})


# ---- persons -------------------------------------------------------------------------------------------------------


def pin(run: Run, term: int, param: str, value: Scalar | None, by: str, reason: str) -> tuple[Event, ...]:
    """Hold a parameter at `value` (None: at what it is now), whatever the policies say."""
    old = _parameter(run.version, param)
    value = _checked(old.spec, run.version.at(run.progress).values[param] if value is None else value)
    batching = run.version.batching
    if param == BATCH and float(value) < batching.smallest:
        message = f"batch_size must be at least {batching.smallest} with {batching.world_size} workers, got {value}"
        raise Refused("out-of-bounds", message, {"value": message})
    draft = Draft(run, term, run.progress, run.version, _noise_scale(run.observation))
    draft.put(replace(old, pin=Pin(value, by, reason)), by, reason or "pinned")
    return draft.events()


def unpin(run: Run, term: int, param: str, by: str, reason: str) -> tuple[Event, ...]:
    old = _parameter(run.version, param)
    if old.pin is None:
        raise Refused("not-pinned", f"{param} is not pinned")
    draft = Draft(run, term, run.progress, run.version, _noise_scale(run.observation))
    draft.put(replace(old, pin=None), by, reason or "unpinned")
    return draft.events()


def command(run: Run, term: int, wish: Command, by: str) -> tuple[Event, ...]:
    draft = Draft(run, term, run.progress, run.version)
    draft.command(wish, by)
    return draft.events()


def _parameter(version: Version, param: str) -> Parameter:
    if param not in version.parameters:
        known = ", ".join(version.parameters)
        raise Refused(
            "unknown-parameter", f"no hyper-parameter {param!r}; there are {known}", {"param": f"not {known}"}
        )
    return version.parameters[param]


def _checked(spec: HyperParameter, value: Scalar) -> Scalar:
    try:
        return spec.check(value)
    except ValueError as error:
        raise Refused("out-of-bounds", str(error), {"value": str(error)}) from None
