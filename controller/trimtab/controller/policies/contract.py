"""The contract that every policy passes, ours and a stranger's: `check_policy` in a test of yours."""

import copy
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.hyperparameters import BATCH, LR
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Command, Horizon, Notice, Observation, Proposal, Reading
from trimtab.controller.policies.policy import JsonState, Policy
from trimtab.controller.trajectory import Progress, Scalar

__all__ = ["check_description", "check_policy", "sample_observations"]

EXTREMES = (0.0, -1.0, 5e-324, 1e-30, 1e30, -1e308, 1e308)


def check_policy(policy: Policy, observations: Sequence[Observation] | None = None) -> None:
    """Raise AssertionError, saying what is wrong, unless `policy` keeps the contract.

    A policy says what it is, where its rule comes from and what each of its parameters means; its parameters survive
    JSON. Its decisions are a pure function of state and observation, its state is JSON, and it proposes finite
    values for what it declares to write only, each with a reason of one sentence, whatever it is shown.
    `observations` replaces the varied sequence that the check makes up itself.
    """
    check_description(type(policy))
    _check_config(policy)
    state = policy.initial()
    for observation in sample_observations(policy) if observations is None else observations:
        state, proposals = _check_decision(policy, state, observation)
        for proposal in proposals:
            _check_proposal(policy, proposal)


def sample_observations(policy: Policy, count: int = 120, seed: int = 0) -> Sequence[Observation]:
    """A made-up run: readings come and go, the batch grows, the learning rate moves, extremes and blanks between."""
    rng, others = random.Random(seed), random.Random(seed + 1)
    written = {name: 0.5 for name in policy.writes() if name not in (BATCH, LR)}
    noises = _noises(rng)
    observations = []
    for tick in range(count):
        values: dict[str, Scalar] = {LR: rng.choice((0.1, 0.1, 0.01)), **written}
        plan = Batching(4, 8, 32).plan(rng.choice((32, 64, 256)))
        observations.append(
            Observation(
                progress=Progress(10 * tick, 640 * tick),
                values={} if tick % 17 == 0 else {BATCH: plan.batch_size, **values},
                plan=plan,
                rising=frozenset({LR}) if tick in range(5, 15) else frozenset(),
                horizon=rng.choice((None, Horizon(100_000), Horizon(1000, "steps"))),
                dataset_size=None if tick % 29 == 0 else 50_000,
                decay_from=None if tick < 70 else Progress(690, 44_160),
                metrics={name: _readings(rng, tick) for name in sorted(policy.reads()) if rng.random() < 0.7},
                nonfinite={name: others.randrange(1, 4) for name in sorted(policy.reads()) if others.random() < 0.03},
                noise=next(noises) if tick % 7 else None,
                rank_times=_rank_times(others, tick),
            )
        )
    return observations


def _readings(rng: random.Random, tick: int) -> tuple[Reading, ...]:
    """No, one or several readings: falling, then flat, now and then extreme."""
    centre = max(0.1, 2 - tick / 20)
    values = (rng.choice(EXTREMES) if rng.random() < 0.1 else rng.gauss(centre, 0.01) for _ in range(rng.randrange(4)))
    return tuple(Reading(10 * tick + i, 640 * tick, value, 0.01, 10) for i, value in enumerate(values))


def _rank_times(rng: random.Random, tick: int) -> tuple[float, ...]:
    """Of four ranks, now and then of five or none known; one of them is slow for half of the run."""
    if tick % 19 == 0:
        return ()
    times = [rng.choice(EXTREMES[:5]) if rng.random() < 0.02 else rng.uniform(0.1, 0.11) for _ in range(4)]
    times[2] *= 3 if 30 <= tick < 90 else 1
    return (*times, 0.1) if tick % 23 == 0 else tuple(times)


def _noises(rng: random.Random) -> Iterator[Noise]:
    """Estimates in spells: defined, undefined, without bounds, extreme; after each round the estimator begins anew."""
    while True:
        estimates = 0
        for value in (None, 800.0, 20.0, 20_000.0, *EXTREMES):
            likely = value if value is not None and value >= 0 else None
            bound = None if rng.random() < 0.2 else 0.8 * (likely or 500.0)
            for _ in range(8):
                estimates += rng.choice((0, 7, 60))
                high = None if likely is None or rng.random() < 0.1 else min(1.2 * likely, 1e308)
                yield Noise(likely, bound, high, -0.1 if likely is None else 1.0, likely or 1.0, estimates, skipped=2)


def check_description(cls: type[Policy]) -> None:
    """Raise AssertionError unless the class says what it is, where its rule comes from and what its parameters mean."""
    name = cls.__name__
    kind = getattr(cls, "kind", None)
    _require(isinstance(kind, str) and kind.isidentifier(), f"{name}.kind must be an identifier, got {kind!r}")
    _require(isinstance(cls.rule, int) and cls.rule >= 1, f"{name}.rule must be at least 1, got {cls.rule!r}")
    _require(bool(cls.source.strip()), f"{name}.source must name the paper or code that the rule comes from")
    _require(bool((cls.__dict__.get("__doc__") or "").strip()), f"{name} needs a docstring: it is the kind's help text")
    _require(cls.model_config.get("frozen") is True, f"{name}'s configuration must be frozen")
    schema = cls.model_json_schema()
    json.dumps(schema, allow_nan=False)
    for param, field in schema.get("properties", {}).items():
        _require(bool(field.get("description", "").strip()), f"{name}.{param} needs a description")


def _check_config(policy: Policy) -> None:
    cls = type(policy)
    params = policy.model_dump(mode="json")
    again = cls.model_validate(json.loads(json.dumps(params, allow_nan=False)))
    _require(again == policy, f"parameters must survive JSON: {policy!r} came back as {again!r}")
    for name in params:
        try:
            setattr(policy, name, getattr(policy, name))
        except ValidationError:
            continue
        raise AssertionError(f"{cls.__name__}.{name} could be assigned; the configuration must be frozen")


def _check_decision(
    policy: Policy, state: JsonState, observation: Observation
) -> tuple[JsonState, tuple[Proposal, ...]]:
    stored = _through_json(state, policy)
    seen = copy.deepcopy(observation)
    after, proposals = policy.decide(state, observation)
    _require(state == stored, f"decide must not change the state it is given: {stored} became {state}")
    _require(observation == seen, f"decide must not change the observation: {seen} became {observation}")
    again = policy.decide(stored, seen)
    _require(
        (again[0], tuple(again[1])) == (after, tuple(proposals)),
        f"the same state and observation gave {(after, proposals)} and then {again}",
    )
    _through_json(after, policy)
    return after, tuple(proposals)


def _through_json(state: JsonState, policy: Policy) -> JsonState:
    try:
        stored: JsonState = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{type(policy).__name__}'s state must be JSON ({error}), got {state!r}") from error
    _require(stored == state, f"the state must survive JSON (lists, string keys): {state!r} came back as {stored!r}")
    return stored


def _check_proposal(policy: Policy, proposal: Proposal) -> None:
    reason = proposal.reason
    _require(bool(reason.strip()) and "\n" not in reason, f"a reason is one sentence, got {reason!r} in {proposal}")
    _require(all(map(_finite, _leaves(asdict(proposal)))), f"a proposal holds finite values only, got {proposal}")
    if isinstance(proposal, Command | Notice):
        return
    part = "base" if proposal.action == "set" else "factor"
    declared = policy.writes()
    _require(
        declared.get(proposal.param) == part, f"{proposal} is for a {part}; writes() declares only {dict(declared)}"
    )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
