"""Guard rails that look back: oscillation, rest between commands, one say on each thing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from trimtab.controller import engine
from trimtab.controller.events import Event, Observed, RunSpec, decode, encode
from trimtab.controller.guards import REST
from trimtab.controller.history import History
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Command, Horizon, Notice, Observation, Proposal, Reading, Scale, Set
from trimtab.controller.policies import JsonState, Policy
from trimtab.controller.policies.policy import Part
from trimtab.controller.run import MAX_FAULTS, Run, begin, fold
from trimtab.controller.trajectory import Constant, Progress, Ramp
from trimtab.controller.turning import TURNS

LR = HyperParameter(name="lr", default=0.1, min=0.0, max=10.0, max_ratio=100)
PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=8192),
    HyperParameter(name="style", kind="choice", default="sma", choices=("sma", "allreduce")),
)
SPEC = RunSpec(name="r", world_size=2, parameters=PARAMETERS, micro_batch=16, max_micro_batch=64)


class Says(Policy):
    """Proposes what `SAYS` makes of the number of the observation."""

    kind: ClassVar[str] = "says"
    bases: tuple[str, ...] = ("lr", "style")

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return dict.fromkeys(self.bases, "base")

    def initial(self) -> JsonState:
        return {"asked": -1}  # the registration asks too

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        return {"asked": state["asked"] + 1}, SAYS[0](state["asked"] + 1)


SAYS: list[Callable[[int], Sequence[Proposal]]] = []


@pytest.fixture(autouse=True)
def _kinds(install: Any) -> None:
    install(Says)


class Life:
    """A run with one policy."""

    def __init__(self, kind: str = "says", horizon: Horizon | None = None, **params: Any) -> None:
        created = engine.create(SPEC, 1)
        self.run: Run = begin("r", created, 0.0)
        self.history = History()
        self.steps = 0
        self.observed: list[Observed] = []
        self.horizon = horizon
        self.apply(engine.register(self.run, 1, [LR], "sqrt", None, self.look, None))
        self.apply(engine.put_policy(self.run, 1, "p", kind, params, "active", "ann", ""))

    def look(self, run: Run, **more: Any) -> Observation:
        settings = run.version.at(run.progress)
        rising = run.version.rising(run.progress)
        return Observation(run.progress, settings.values, settings.plan, rising, self.horizon, **more)

    def apply(self, events: Sequence[Event]) -> None:
        for event in events:
            self.run = fold(self.run, decode(encode(event)), 1.0)
            self.history.take(event, 1.0)
            self.observed += [event] if isinstance(event, Observed) else []

    def tick(self, **more: Any) -> list[str | None]:
        self.steps += 10
        samples = self.run.progress.samples + 10 * self.run.version.at(self.run.progress).plan.batch_size
        run = self.run.at(Progress(self.steps, samples))
        self.apply(engine.observe(run, 1, self.look(run, **more), None))
        return [outcome.refused for outcome in self.observed[-1].outcomes]

    @property
    def faults(self) -> list[str]:
        return [event.faults["p"] for event in self.observed if event.faults]


@pytest.mark.parametrize(
    "wish",
    [
        lambda n: Set("lr", Constant(0.1 if n % 2 else 0.2), "to and fro"),
        lambda n: Set("lr", Constant(0.1 if n % 4 < 2 else 0.3), "to and fro"),
        lambda n: Set("lr", Ramp(0.1, 0.2 + n % 2, 10**6 + n, 10**6 + n + 1), "to and fro in ramps"),
        lambda n: Set("style", Constant(("sma", "allreduce")[n % 2]), "to and fro"),
    ],
)
def test_a_policy_that_turns_to_and_fro_is_shut_off(wish: Callable[[int], Proposal]) -> None:
    SAYS[:] = [lambda n: [wish(n)]]
    life = Life()
    while not life.run.policies["p"].disabled:
        life.tick()
        assert len(life.observed) < 40
    accepted = [o for event in life.observed for o in event.outcomes if o.refused is None]
    assert len(accepted) >= TURNS
    assert [fault.partition(" ")[2] for fault in life.faults] == [
        f"has turned {TURNS} times within 50 observations: the policy oscillates"
    ] * MAX_FAULTS
    versions = life.run.version.number
    life.tick()
    assert life.run.version.number == versions
    told = [record.changes[0].reason for record in life.history.after(0, 1000) if record.status == "refused"]
    assert told[-1].endswith("it is disabled until it is put anew")
    assert life.run.policies["p"].disabled is not None
    life.apply(engine.put_policy(life.run, 1, "p", "says", {}, "active", "ann", ""))
    assert life.run.policies["p"].disabled is None
    assert life.tick() == [None]  # and it may turn anew


def test_a_policy_that_goes_one_way_is_never_one_that_oscillates() -> None:
    SAYS[:] = [lambda n: [Set("lr", Constant(0.1 * 0.97**n), "down")]]
    life = Life()
    assert all(life.tick() == [None] for _ in range(300))


@pytest.mark.parametrize(
    "wish", [Command("checkpoint", "again"), Command("pause", "again"), Notice("again", 3)], ids=str
)
def test_commands_and_notices_rest(wish: Proposal) -> None:
    SAYS[:] = [lambda n: [wish, wish] if n >= 0 else []]
    life = Life()
    told = [life.tick() for _ in range(3 * REST)]
    assert [n for n, refused in enumerate(told) if refused[0] is None] == [0, REST, 2 * REST]
    assert all(refused[1] is not None for refused in told)
    assert len([r for r in life.history.after(0, 1000) if r.kind == "notice"]) == (3 if isinstance(wish, Notice) else 0)
    assert life.faults == []  # it is refused; that is no fault


def test_a_command_rests_for_itself_and_for_its_policy() -> None:
    SAYS[:] = [lambda n: [Command("checkpoint" if n % 2 else "decay", "why")]]
    life = Life()
    assert [life.tick(), life.tick(), life.tick()] == [
        *([None], [None]),
        [f"a policy may ask for decay once in {REST} observations"],
    ]


def test_one_say_on_each_thing_and_not_too_many() -> None:
    SAYS[:] = [lambda n: [Set("lr", Constant(0.2), "a"), Set("lr", Constant(0.1), "b")] if n else []]
    life = Life()
    life.tick()
    assert life.tick() == [None, "the policy has already had its say on lr"]
    SAYS[:] = [lambda n: [Scale("lr", Constant(float(n)), "many")] * 65]
    life.tick()
    assert life.faults == ["ValueError: more than 64 proposals at once"]


# ---- ours, in normal use ---------------------------------------------------------------------------------------------


def noisy(n: int) -> dict[str, Any]:
    """A loss that falls and wavers, a noise scale that grows and wavers by a fifth, its interval with it."""
    scale = 60 * 1.01**n * (1 + 0.2 * math.sin(2.1 * n))
    noise = Noise(scale, 0.8 * scale, 1.25 * scale, 1.0, scale, 60 * (n + 1), 0)
    loss = 1 + math.exp(-n / 60) + 0.05 * math.sin(1.7 * n)
    step_time = Reading(10 * n, 640 * n, 0.1 + 0.02 * math.sin(n), 0.001, 10)
    readings = {name: (Reading(10 * n, 640 * n, loss, 0.01, 10),) for name in ("loss", "val_loss", "grad_norm")}
    return {"noise": noise, "metrics": readings | {"step_time": (step_time,)}, "rank_times": (0.1, 0.1, 0.13, 0.1)}


OURS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in engine.kinds()),
    ("noise_scale", {"shrink": True}),
    ("noise_scale", {"shrink": True, "first_window": 1, "window": 1}),
    ("plateau", {"patience": 1, "factor": 0.7}),
]


@pytest.mark.parametrize(("kind", "params"), OURS, ids=str)
def test_policies_of_ours_are_not_hit(kind: str, params: dict[str, Any]) -> None:
    life = Life(kind, Horizon(1_000_000), **params)
    for n in range(400):
        life.tick(**noisy(n))
    assert life.faults == []
    assert not [o.refused for event in life.observed for o in event.outcomes if o.refused and "oscillates" in o.refused]
    if kind in ("noise_scale", "plateau", "warmup"):
        assert life.run.version.number > 2, "it did nothing"
