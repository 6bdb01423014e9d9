"""The engine: from an observation or a person's wish to the events that grant it. Pure: no clock, no I/O.

Each function takes a run and returns the events to journal, or raises Refused. The guard rails that hold whatever a
policy says stand in `guards` and nowhere else.
"""

import copy
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trimtab.controller.batching import Batching
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
    PolicyPut,
    Registered,
    RunSpec,
)
from trimtab.controller.guards import admit, checked, find
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
from trimtab.controller.observation import Command, Observation, Proposal
from trimtab.controller.policies import JsonState, Policy, build, kinds
from trimtab.controller.run import PolicyEntry, Run, fold
from trimtab.controller.trajectory import Constant, Coupling, LrRule, Progress, Ramp, Scalar, product

_PROPOSALS: TypeAdapter[tuple[Proposal, ...]] = TypeAdapter(tuple[Proposal, ...])
TOLD = 1000  # characters of an exception that are kept


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
            faults[name] = _told(error)
            continue
        if state != entry.state:
            states[name] = state
        for proposal in proposals:
            outcomes.append(Outcome(name, proposal, _refusal(draft, name, entry, proposal)))
    return Observed(observation, tuple(outcomes), states, faults, estimator)


def _ask(entry: PolicyEntry, observation: Observation) -> tuple[JsonState, tuple[Proposal, ...]]:
    """What the policy answers, as the journal will give it back: anything else it says raises here."""
    state, proposals = entry.policy.decide(copy.deepcopy(entry.state), observation)
    stored = json.loads(json.dumps(state, allow_nan=False, ensure_ascii=False).encode())
    if not isinstance(stored, dict):
        raise TypeError(f"a state must be a mapping, got {stored!r}")
    return stored, _PROPOSALS.validate_json(_PROPOSALS.dump_json(tuple(proposals), warnings=False))


def _told(error: Exception) -> str:
    """What was raised, as text that can be stored whatever its author put into it."""
    text = "".join(traceback.format_exception_only(error)).strip()
    return text[:TOLD].encode(errors="replace").decode()


def _refusal(draft: Draft, name: str, entry: PolicyEntry, proposal: Proposal) -> str | None:
    try:
        admit(draft, name, entry, proposal)
    except Refused as refusal:
        return refusal.message
    return None


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
    policy = _built(kind, params)
    if mode == "active":
        for param, part in policy.writes().items():
            if part == "base" and (owner := run.owner(param, besides=name)):
                raise Refused("base-owned", f"the base of {param} is owned by policy {owner}; delete it or turn it off")
    old = run.policies.get(name)
    put = PolicyPut(name, kind, policy.rule, policy.model_dump(mode="json"), mode, by, reason, run.progress)
    if old is None or old.kind == kind:
        return (put,)
    return (put, *_without(run, term, name, by, f"policy {name} is now of kind {kind}; its factor joins the base"))


def _built(kind: str, params: Mapping[str, Any]) -> Policy:
    try:
        policy = build(kind, params)
        policy.reads(), policy.writes(), policy.initial()
    except ValidationError as error:
        fields = {f"params.{'.'.join(map(str, e['loc']))}": e["msg"] for e in error.errors()}
        raise Refused("invalid-parameters", _sentence(kind, fields), fields) from None
    except Exception as error:
        raise Refused("invalid-parameters", f"a policy of kind {kind} fails at once: {_told(error)}") from error
    return policy


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
    if isinstance(base, Ramp) and not (base.shape == "exponential" and min(base.start, base.end) * worth <= 0):
        base = replace(base, start=product([base.start, worth]), end=product([base.end, worth]))
    else:
        base = Constant(product([float(base.at(progress)), worth]))
    return replace(parameter, base=base, factors={n: f for n, f in parameter.factors.items() if n != name})


# ---- persons -------------------------------------------------------------------------------------------------------


def pin(run: Run, term: int, param: str, value: Scalar | None, by: str, reason: str) -> tuple[Event, ...]:
    """Hold a parameter at `value` (None: at what it is now), whatever the policies say."""
    old = find(run.version, param)
    value = checked(old.spec, run.version.at(run.progress).values[param] if value is None else value)
    batching = run.version.batching
    if param == BATCH and float(value) < batching.smallest:
        message = f"batch_size must be at least {batching.smallest} with {batching.world_size} workers, got {value}"
        raise Refused("out-of-bounds", message, {"value": message})
    draft = Draft(run, term, run.progress, run.version, _noise_scale(run.observation))
    draft.put(replace(old, pin=Pin(value, by, reason)), by, reason or "pinned")
    return draft.events()


def unpin(run: Run, term: int, param: str, by: str, reason: str) -> tuple[Event, ...]:
    old = find(run.version, param)
    if old.pin is None:
        raise Refused("not-pinned", f"{param} is not pinned")
    draft = Draft(run, term, run.progress, run.version, _noise_scale(run.observation))
    draft.put(replace(old, pin=None), by, reason or "unpinned")
    return draft.events()


def command(run: Run, term: int, wish: Command, by: str) -> tuple[Event, ...]:
    draft = Draft(run, term, run.progress, run.version)
    draft.command(wish, by)
    return draft.events()
