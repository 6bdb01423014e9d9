"""Policies that say whatever they like: values stay finite and within bounds, and every guard rail holds."""

import math
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.controller import engine
from trimtab.controller.errors import Refused
from trimtab.controller.events import Event, Observed, RunSpec, Versioned, decode, encode
from trimtab.controller.guards import REST
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.observation import Command, Notice, Observation, Proposal, Scale, Set, topic
from trimtab.controller.policies import JsonState, Policy
from trimtab.controller.policies.policy import Part
from trimtab.controller.run import MAX_FAULTS, Run, begin, fold
from trimtab.controller.trajectory import Constant, Coupling, Progress, Ramp, Table
from trimtab.controller.turning import TURNS, WINDOW, wanted

EXAMPLES = 2000 if os.environ.get("TRIMTAB_LONG") == "1" else 40
TICKS = 80
STEP = 128  # [samples] a tick
PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=8192),
    HyperParameter(name="style", kind="choice", default="sma", choices=("sma", "allreduce")),
    HyperParameter(name="free", default=1.0, max_ratio=None),
    HyperParameter(name="near", default=1.0, min=-3.0, max=5.0, max_ratio=1.5),
    HyperParameter(name="count", kind="integer", default=3, min=0),
    HyperParameter(name="calm", default=1.0, cooldown=1000),
    HyperParameter(name="held", default=2.0),
)
LR = HyperParameter(name="lr", default=0.1, min=0.0, max=10.0)
SPEC = RunSpec(name="r", world_size=2, parameters=PARAMETERS, micro_batch=16, max_micro_batch=64)
NAMES = [p.name for p in PARAMETERS] + ["lr"]
WILD: tuple[Any, ...] = (math.nan, math.inf, -math.inf, 2**70, True, "\ud800", None, [], {}, b"x", object())
EXTREME: tuple[Any, ...] = (1e308, -1e308, 5e-324, 0, 0.0, -0.0, -1.0, 1e9, 2**53, "", "pair")
TAME: tuple[Any, ...] = (0.3, 0.9, 1.0, 1.1, 2.0, 3, 64, 200, "allreduce", "sma")


class Wild(Policy):
    """Says what its random generator thinks of next."""

    kind: ClassVar[str] = "wild"
    name: str
    parts: Mapping[str, Part]

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return self.parts

    def initial(self) -> JsonState:
        return {}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        return Liar.present.answer(self.parts, state, observation)


class Liar:
    """What wild policies say: mostly what could be, so that much is accepted, now and then what cannot."""

    present: ClassVar["Liar"]

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def answer(self, parts: Mapping[str, Part], state: Any, observation: Observation) -> Any:
        mood = self.random.random()
        if mood < 0.01:
            raise self.random.choice((ValueError("\ud800"), RecursionError(), KeyError(3), MemoryError()))
        if mood < 0.02:
            return self.random.choice((None, 3, (state,), (state, 5), (math.nan, ()), ({1: object()}, ()), ([], ())))
        if mood < 0.03:
            return {"x": math.inf}, ()
        many = 200 if mood < 0.04 else self.random.randrange(4)
        return {"n": self.random.random()}, [self.proposal(parts, observation) for _ in range(many)]

    def proposal(self, parts: Mapping[str, Part], observation: Observation) -> Any:
        kind = self.random.random()
        if kind < 0.1:
            return forced(
                Command, command=self.one(*("checkpoint", "pause", "resume", "decay") * 5, "dance"), reason="why"
            )
        if kind < 0.15:
            return forced(Notice, reason=self.one(*("why",) * 20, "\ud800", 3), rank=self.one(None, 1, 2))
        honest = parts and self.random.random() < 0.8
        param = self.random.choice(list(parts)) if honest else self.one(*NAMES * 3, "nowhere", 3)
        to, rule = self.trajectory(observation), self.one(*(None, "none", "linear") * 10, "cubic")
        if (parts.get(param) if honest else self.one("base", "factor")) == "base":
            return forced(Set, param=param, to=to, reason="why", lr_rule=rule)
        return forced(Scale, param=param, by=to, reason="why", lr_rule=rule)

    def trajectory(self, observation: Observation) -> Any:
        kind, now = self.random.random(), observation.progress.samples
        if kind < 0.6:
            return forced(Constant, value=self.value())
        if kind < 0.8:
            begin = self.one(*(now, 0, now + 500) * 10, -1)
            shape, unit = self.one("linear", "cosine", "sqrt", "exponential"), self.one("samples", "steps")
            ends = {"start": self.value(), "end": self.value()}
            return forced(Ramp, **ends, begin=begin, until=begin + self.one(*(1, 1000) * 10, 0), unit=unit, shape=shape)
        if kind < 0.9:
            marks, values = (0, now, now + 300), tuple(self.value() for _ in range(3))
            return forced(Table, marks=marks, values=values, unit="samples", interpolation=self.one("step", "linear"))
        if kind < 0.95:
            return forced(Coupling, rule="linear", base_batch=self.value(), noise_scale=None, exponent=1.0, scale=1.0)
        return self.one(*WILD) if kind < 0.96 else forced(Constant, value=self.value())

    def value(self) -> Any:
        kind = self.random.random()
        return self.one(*(WILD if kind < 0.01 else EXTREME if kind < 0.2 else TAME))

    def one(self, *choices: Any) -> Any:
        return self.random.choice(choices)


def forced(cls: type, **values: Any) -> Any:
    """An instance past all its checks, as somebody could make it who means harm."""
    made = object.__new__(cls)
    for name, field in cls.__dataclass_fields__.items():
        object.__setattr__(made, name, values.get(name, field.default))
    return made


@pytest.fixture(autouse=True)
def _kinds(install: Any) -> None:
    install(Wild)


class Life:
    """A run of wild policies; whatever they say, `check` holds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        created = engine.create(SPEC, 1)
        self.run: Run = begin("r", created, 0.0)
        self.apply(engine.register(self.run, 1, [LR], "sqrt", None, look, None))
        self.apply(engine.pin(self.run, 1, "held", 2.0, "ann", "by hand"))
        self.changed: dict[tuple[str, str], int] = {}
        self.told: dict[tuple[str, str], int] = {}
        self.observations = 0
        self.accepted = 0

    def apply(self, events: Sequence[Event]) -> None:
        for event in events:
            assert decode(encode(event)) == event
            self.run = fold(self.run, event, 1.0)

    def put(self, name: str) -> None:
        """Put a policy, anew or for the first time, on parts that are drawn; it may be refused."""
        params = self.random.sample(NAMES, 4)
        parts = {param: self.random.choice(("base", "factor", "factor")) for param in params}
        with suppress(Refused):
            config = {"name": name, "parts": parts}
            self.apply(engine.put_policy(self.run, 1, name, "wild", config, "active", "ann", ""))
            self.told = {key: at for key, at in self.told.items() if key[0] != name}

    def tick(self, step: int) -> None:
        before = self.run.at(Progress(step, STEP * step))
        events = engine.observe(before, 1, look(before), None)
        observed = events[0]
        assert isinstance(observed, Observed)
        self.check_outcomes(before, observed)
        for version in (event for event in events if isinstance(event, Versioned)):
            self.check_ratio(before, version)
        self.apply(events)
        self.check_values(step)
        self.check_owners()
        self.observations += 1

    def check_outcomes(self, run: Run, observed: Observed) -> None:
        now = observed.observation.progress.samples
        for outcome in observed.outcomes:
            proposal = outcome.proposal
            if outcome.refused is not None:
                continue
            self.accepted += 1
            if isinstance(proposal, Command | Notice):
                key = (outcome.policy, topic(proposal))
                assert self.observations - self.told.get(key, -REST) >= REST
                self.told[key] = self.observations
                continue
            key = (outcome.policy, proposal.param)
            spec = run.version.parameters[proposal.param].spec
            assert proposal.param != "held"
            assert key not in self.changed or now - self.changed[key] >= max(spec.cooldown, 1)
            self.changed[key] = now
            assert wanted(proposal) is not None

    def check_ratio(self, run: Run, versioned: Versioned) -> None:
        progress = versioned.progress
        then, now = run.version.at(progress).values, versioned.version.at(progress).values
        for name in ("near", "calm"):
            ratio, old, new = run.version.parameters[name].spec.max_ratio, float(then[name]), float(now[name])
            if ratio is not None and old != 0 and progress.steps:
                low, high = sorted((old / ratio, old * ratio))
                assert low - 1e-9 * abs(low) <= new <= high + 1e-9 * abs(high), (name, old, new)

    def check_values(self, step: int) -> None:
        assert self.run.version.parameters["held"].at(Progress(step, 0), 1) == 2.0
        for ahead in (0, 1, 7, 10**6, 2**40):
            settings = self.run.version.at(Progress(step + ahead, STEP * (step + ahead)))
            for name, value in settings.values.items():
                spec = self.run.version.parameters[name].spec
                spec.check(value)  # finite, of its kind, within its bounds
            assert settings.plan.batch_size >= 2

    def check_owners(self) -> None:
        owners: dict[str, list[str]] = defaultdict(list)
        for name, entry in self.run.policies.items():
            for param, part in entry.policy.writes().items():
                if part == "base":
                    owners[param].append(name)
        assert all(len(names) <= 1 for names in owners.values())
        for parameter in self.run.version.parameters.values():
            assert parameter.factors.keys() <= {"batch", *self.run.policies}
        for turning in self.run.turnings.values():
            recent = [turn for turn in turning.turns if self.run.observations - turn < WINDOW]
            assert len(recent) <= TURNS


def look(run: Run) -> Observation:
    settings = run.version.at(run.progress)
    return Observation(run.progress, settings.values, settings.plan)


ACCEPTED: list[int] = []


@given(st.integers(0, 2**32))
@example(0)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
def test_whatever_policies_say_the_guard_rails_hold(seed: int) -> None:
    Liar.present = Liar(seed)
    life = Life(seed)
    for step in range(TICKS):
        if step % 5 == 0:
            for name in ("a", "b", "c"):
                life.put(name)
        life.tick(step)
    assert all(entry.faults <= MAX_FAULTS for entry in life.run.policies.values())
    ACCEPTED.append(life.accepted)


def test_much_was_accepted() -> None:
    """Else the test above says nothing."""
    assert sum(ACCEPTED) > 30 * len(ACCEPTED)
