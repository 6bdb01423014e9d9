"""The engine: from an observation or a person's wish to the events that grant it. Pure: no clock, no I/O.

Each function takes a run and returns the events to journal, or raises Refused. The guard rails that hold whatever a
policy says stand in `guards` and nowhere else.
"""

import copy
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trimtab.controller import hosted
from trimtab.controller.batching import Batching, min_accumulation
from trimtab.controller.draft import Draft
from trimtab.controller.errors import Refused
from trimtab.controller.events import (
    Created,
    Event,
    Formed,
    Mode,
    Observed,
    Outcome,
    PolicyDeleted,
    PolicyGiven,
    PolicyPut,
    Registered,
    RunSpec,
    Shadow,
    Stated,
)
from trimtab.controller.guards import OSCILLATES, admit, adopt, checked, find
from trimtab.controller.hyperparameters import (
    BATCH,
    COUPLED,
    LR,
    HyperParameter,
    Pin,
    Version,
    folded,
    initial_parameter,
)
from trimtab.controller.observation import Command, Observation, Proposal
from trimtab.controller.policies import JsonState, Policy, build, kinds, strangers
from trimtab.controller.policies.code import Code, Facts
from trimtab.controller.policies.sandbox import Fault, Sandboxed, described, sandboxed
from trimtab.controller.records import Branch, Regrouped
from trimtab.controller.run import PolicyEntry, Run, fold
from trimtab.controller.shadow import seen
from trimtab.controller.sync import counted, measures_noise, with_options
from trimtab.controller.trajectory import Coupling, LrRule, Progress, Scalar

_PROPOSALS: TypeAdapter[tuple[Proposal, ...]] = TypeAdapter(tuple[Proposal, ...])
_ATOMS = frozenset({bool, int, float, str, type(None)})  # what need not be copied
MOST = 64  # proposals of one policy at once
TOLD = 1000  # characters of an exception that are kept
UNKNOWN = "extra_forbidden"  # pydantic's name for a field that there is not


# ---- runs and formations -------------------------------------------------------------------------------------------


def create(spec: RunSpec, term: int) -> Created:
    if BATCH not in {p.name for p in spec.parameters}:
        raise Refused("invalid-parameters", "a run needs batch_size", {BATCH: "missing"})
    fixed = bool(spec.host)
    least = 1 if fixed else min_accumulation(spec.world_size)
    batching = Batching(spec.world_size, spec.micro_batch, spec.max_micro_batch, least, fixed)
    version = Version(1, term, batching, {p.name: initial_parameter(p) for p in spec.parameters})
    return Created(spec, with_options(version, Progress()))


def form(run: Run, term: int, world_size: int, progress: Progress, rolled_back: int = 0) -> tuple[Event, ...]:
    """Begin a formation of `world_size` ranks at `progress`, in new processes.

    A run that had ended goes on; one that was only re-formed stays paused, or stopped, if that was asked for.
    """
    draft = Draft(run, term, progress, run.version)
    draft.regroup(world_size)
    if run.state.ended:
        draft.go_on("resume", "the run goes on")
    return (Formed(run.formation + 1, world_size, progress, rolled_back), *draft.events())


def resize(run: Run, term: int, group: int, world_size: int, reason: str) -> tuple[Event, ...]:
    """The workers of `group` are ready: under the version that says so all ranks form it, at one step."""
    draft = Draft(run, term, run.progress, run.version)
    draft.resize(group, world_size, reason)
    return draft.events()


def regroup(run: Run, term: int, formation: int, of: Regrouped) -> tuple[Event, ...]:
    """The ranks have formed another group in place."""
    at = run.at(of.progress)
    draft = Draft(at, term, of.progress, run.version)
    lost = f"{of.lost} of {run.version.batching.world_size} workers lost; training stood still for {of.pause_s:.2f} s"
    draft.regroup(of.world_size, lost if of.cause == "loss" else None)
    formed = Formed(formation, of.world_size, of.progress, run.rolled_back, None, of.cause, of.pause_s, of.lost)
    return (formed, *draft.events())


def branch(run: Run, formation: int, of: Branch) -> tuple[Event, ...]:
    """The ranks went back in place: the next formation has begun."""
    told = f"rolled back from step {of.left.steps:,} to step {of.progress.steps:,}"
    formed = Formed(formation, run.version.batching.world_size, of.progress, of.number, of.left)
    return (formed, Stated(run.state, told))


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


# ---- policies ------------------------------------------------------------------------------------------------------


def observe(run: Run, term: int, observation: Observation, estimator: Mapping[str, Any] | None) -> tuple[Event, ...]:
    """Ask every policy, guard what it proposes, and make at most one new version of what the active ones say."""
    draft = Draft(run, term, observation.progress, run.version, _noise_scale(observation))
    return (_decide(run, draft, observation, estimator), *draft.events())


def _decide(run: Run, draft: Draft, observation: Observation, estimator: Mapping[str, Any] | None) -> Observed:
    outcomes: list[Outcome] = []
    states: dict[str, Mapping[str, Any]] = {}
    faults: dict[str, str] = {}
    shadows: dict[str, Shadow] = {}
    for name, entry in run.policies.items():
        if not entry.asked:
            continue
        here, shown = (draft, observation) if entry.active else _in_shadow(run, draft, name, entry, observation)
        try:
            state, proposals = _ask(entry, shown)
        except Exception as error:  # a policy is somebody's code: its fault must not stop the others
            faults[name] = _told(error)
            continue
        if state != entry.state:
            states[name] = state
        for proposal in proposals:
            refusal = _refusal(here, name, entry, proposal)
            outcomes.append(Outcome(name, proposal, refusal.message if refusal else None))
            if refusal and refusal.code == OSCILLATES:
                faults[name] = refusal.message
        if proposals and not entry.active:
            shadows[name] = Shadow(entry.overlay.after(here.start, here.version, name), here.changes())
    return Observed(observation, tuple(outcomes), states, faults, estimator, shadows)


def shown(run: Run, name: str, observation: Observation) -> Observation:
    """The observation as the policy `name` gets to see it: one in shadow sees what it would have made of the run."""
    entry = run.policies[name]
    version = run.version if entry.active else entry.overlay.over(run.version, name)
    return observation if version is run.version else seen(observation, version)


def _in_shadow(
    run: Run, draft: Draft, name: str, entry: PolicyEntry, observation: Observation
) -> tuple[Draft, Observation]:
    """What a policy in shadow decides on: its would-be version, and the moment as it would be with that."""
    version = entry.overlay.over(draft.start, name)
    if version is not draft.start:
        observation = seen(observation, version)
    return Draft(replace(run, version=version), draft.term, draft.progress, version, draft.noise_scale), observation


def _ask(entry: PolicyEntry, observation: Observation) -> tuple[JsonState, tuple[Proposal, ...]]:
    """What the policy answers, as the journal will give it back: anything else it says raises here."""
    given = _copied(entry.state)
    state, proposals = entry.policy.decide(given, observation)
    said = tuple(islice(proposals, MOST + 1))
    if len(said) > MOST:
        raise ValueError(f"more than {MOST} proposals at once")
    return (
        entry.state if state is given and given == entry.state else _stored(state),
        _PROPOSALS.validate_json(_PROPOSALS.dump_json(said, warnings=False)) if said else (),
    )


def _stored(state: Any) -> JsonState:
    """A state as JSON gives it back; a plain one need not go there."""
    stored = state
    if not _plain(state):
        stored = json.loads(json.dumps(state, allow_nan=False, ensure_ascii=False).encode())
    if not isinstance(stored, dict):
        raise TypeError(f"a state must be a mapping, got {stored!r}")
    return stored


def _copied(value: Any) -> Any:
    """A deep copy, in a tenth of the time for what JSON is made of."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {key: one if type(one) in _ATOMS else _copied(one) for key, one in value.items()}
    if kind is list:
        return [one if type(one) in _ATOMS else _copied(one) for one in value]
    return copy.deepcopy(value)


def _plain(value: Any) -> bool:
    """Is it sure that JSON gives back the very same?"""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and key.isascii() and _plain(one) for key, one in value.items())
    if kind is int:
        return bool(value.bit_length() < 64)
    if kind is float:
        return math.isfinite(value)
    if kind is str:
        return bool(value.isascii())
    if kind is list:
        return all(map(_plain, value))
    return kind is bool or value is None


def _told(error: Exception) -> str:
    """What was raised, as text that can be stored whatever its author put into it."""
    text = str(error) if isinstance(error, Fault) else "".join(traceback.format_exception_only(error)).strip()
    return text[:TOLD].encode(errors="replace").decode()


def _refusal(draft: Draft, name: str, entry: PolicyEntry, proposal: Proposal) -> Refused | None:
    try:
        admit(draft, name, entry, proposal)
    except Refused as refusal:
        return refusal
    return None


def _noise_scale(observation: Observation | None) -> float | None:
    noise = observation.noise if observation else None
    return noise.value or None if noise else None


def put_policy(
    run: Run, term: int, name: str, kind: str, params: Mapping[str, Any], mode: Mode, by: str, reason: str
) -> tuple[Event, ...]:
    """Install or edit a policy; editing keeps its state, another kind begins anew.

    What a policy has set in shadow comes into force when it becomes active: its state counts on that, as a warm-up's,
    which is set once, or a plateau's, whose next cut multiplies the last. Commands that it would have given do not.
    A factor that the policy no longer writes is folded into the base.
    """
    if not name.isidentifier():
        raise Refused("invalid-parameters", f"a policy's name must be an identifier, got {name!r}", {"name": name})
    if name == COUPLED:
        message = f"the name {name!r} is the run's own; choose another"
        raise Refused("invalid-parameters", message, {"name": message})
    policy = _built(run, name, kind, params)
    for param in policy.writes():
        hosted.check(run.spec, param)
    rule, chosen, facts = _as_put(policy)
    if "noise_scale" in policy.reads() and not measures_noise(run.version, run.progress):
        message = (
            f"{kind} reads the gradient noise scale, and replicas that train apart have none: set noise_every, so that "
            "it is measured now and then, or choose sync=allreduce"
        )
        raise Refused("no-noise-scale", message, {"kind": message})
    if mode == "active":
        for param, part in policy.writes().items():
            if part == "base" and (owner := run.owner(param, besides=name)):
                raise Refused("base-owned", f"the base of {param} is owned by policy {owner}; delete it or turn it off")
    old = run.policies.get(name)
    put = PolicyPut(name, kind, rule, chosen, mode, by, reason, run.progress, facts)
    if old is None:
        return (put,)
    draft = Draft(run, term, run.progress, run.version)
    if old.kind != kind:
        _fold_in(draft, name, by, f"policy {name} is now of kind {kind}; its factor joins the base")
        return (put, *draft.events())
    scaled = frozenset(param for param, part in policy.writes().items() if part == "factor")
    _fold_in(draft, name, by, f"policy {name} no longer scales it; its factor joins the base", besides=scaled)
    if mode == "active" and old.rule == rule:
        adopt(draft, name, old.overlay, by)
    return (put, *draft.events())


def give(run: Run, code: Code, by: str) -> tuple[Event, ...]:
    """Take in a policy's class that came with the job, as a kind of this run."""
    try:
        description = described(code, {})
    except Fault as fault:
        raise Refused("invalid-parameters", str(fault), {"policies": str(fault)}) from fault
    kind = description.about.kind
    if kind in run.given and run.given[kind].code == code:
        return ()
    if kind in {*kinds(), *strangers(), *run.given}:
        message = f"{code.file}: there is already a kind of policy {kind!r}; name yours otherwise"
        raise Refused("invalid-parameters", message, {"policies": message})
    return (PolicyGiven(kind, code, code.sha256, description, by),)


def _as_put(policy: Policy) -> tuple[int, Mapping[str, Any], Facts | None]:
    if isinstance(policy, Sandboxed):
        return policy.number, policy.params, policy.facts
    return policy.rule, policy.model_dump(mode="json"), None


def _built(run: Run, name: str, kind: str, params: Mapping[str, Any]) -> Policy:
    if kind not in kinds():
        return _foreign(run, name, kind, params)
    try:
        policy = build(kind, params)
        policy.reads(), policy.writes(), policy.initial()
    except ValidationError as error:
        known = ", ".join(kinds()[kind].model_fields)
        fields = {
            f"params.{'.'.join(map(str, e['loc']))}": f"unknown; there are {known}"
            if e["type"] == UNKNOWN
            else e["msg"]
            for e in error.errors()
        }
        raise Refused("invalid-parameters", _sentence(kind, fields), fields) from None
    except Exception as error:
        raise Refused("invalid-parameters", f"a policy of kind {kind} fails at once: {_told(error)}") from error
    return policy


def _foreign(run: Run, name: str, kind: str, params: Mapping[str, Any]) -> Policy:
    """A policy that runs in a process of its own, which is asked what it makes of `params`."""
    code = run.code(kind)
    if code is None:
        known = ", ".join([*kinds(), *strangers(), *run.given])
        raise Refused(
            "unknown-policy-kind", f"no policy of kind {kind!r}; there are {known}", {"kind": f"there are {known}"}
        )
    try:
        known_as = described(code, params)
    except Fault as fault:
        raise Refused("invalid-parameters", f"a policy of kind {kind} fails at once: {_told(fault)}") from fault
    if known_as.facts is None:
        fields = {f"params.{field}": message for field, message in known_as.invalid.items()}
        raise Refused("invalid-parameters", _sentence(kind, fields), fields)
    if known_as.about.kind != kind:
        message = f"the entry point {kind!r} names a policy of kind {known_as.about.kind!r}; make them equal"
        raise Refused("invalid-parameters", message)
    return sandboxed(run.id, name, code, known_as.about.rule, known_as.params, known_as.facts)


def _sentence(kind: str, fields: Mapping[str, str]) -> str:
    return f"{kind}: " + "; ".join(f"{field.removeprefix('params.')}: {message}" for field, message in fields.items())


def delete_policy(run: Run, term: int, name: str, by: str, reason: str) -> tuple[Event, ...]:
    """Remove a policy; what its factors are worth now is folded into the bases, so that no value jumps."""
    if name not in run.policies:
        raise Refused("policy-not-found", f"run {run.id} has no policy {name!r}")
    draft = Draft(run, term, run.progress, run.version)
    _fold_in(draft, name, by, f"policy {name} deleted; its factor is folded into the base")
    return (PolicyDeleted(name, by, reason, run.progress), *draft.events())


def _fold_in(draft: Draft, name: str, by: str, reason: str, besides: frozenset[str] = frozenset()) -> None:
    """Leave no parameter, `besides` some, a factor of the policy."""
    for param, parameter in draft.start.parameters.items():
        if name in parameter.factors and param not in besides:
            draft.put(folded(parameter, name, draft.progress), by, reason, "none")


# ---- persons -------------------------------------------------------------------------------------------------------


def pin(run: Run, term: int, param: str, value: Scalar | None, by: str, reason: str) -> tuple[Event, ...]:
    """Hold a parameter at `value` (None: at what it is now), whatever the policies say."""
    old = find(run.version, param)
    value = checked(old.spec, run.version.at(run.progress).values[param] if value is None else value)
    batching = run.version.batching
    if param == BATCH and float(value) < batching.smallest:
        message = f"batch_size must be at least {batching.smallest} with {counted(batching.world_size)}, got {value}"
        raise Refused("out-of-bounds", message, {"value": message})
    draft = Draft(run, term, run.progress, run.version, _noise_scale(run.observation))
    draft.put(replace(old, pin=Pin(value, by, reason)), by, reason or "pinned")
    plan = draft.version.at(run.progress).plan
    if param == BATCH and plan.batch_size != value:
        cut = f"{plan.accumulation:,} × {plan.micro_batch:,} on each of {counted(plan.world_size)}"
        draft.notes[BATCH] = (by, f"{reason or 'pinned'}; {value:,} becomes {plan.batch_size:,}: {cut}")
    return draft.events()


def unpin(run: Run, term: int, param: str, by: str, reason: str) -> tuple[Event, ...]:
    old = find(run.version, param)
    if old.pin is None:
        raise Refused("not-pinned", f"{param} is not pinned")
    draft = Draft(run, term, run.progress, run.version, _noise_scale(run.observation))
    draft.put(replace(old, pin=None), by, reason or "unpinned")
    return draft.events()


def command(run: Run, term: int, wish: Command, by: str) -> tuple[Event, ...]:
    if wish.command == "decay" and not any(one.asked and one.policy.heeds_decay for one in run.policies.values()):
        raise Refused(
            "no-decay",
            f"no policy of run {run.id} waits for the word to decay; a schedule of shape wsd does: put one, or give "
            "that shape to the one that is there",
        )
    draft = Draft(run, term, run.progress, run.version)
    draft.command(wish, by)
    return draft.events()
