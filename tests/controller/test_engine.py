import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.controller import engine
from trimtab.controller.errors import Refused
from trimtab.controller.events import Change, Event, Mode, Observed, RunSpec, Stated, Versioned, decode, encode
from trimtab.controller.hyperparameters import HyperParameter, Version
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Command, Observation, Proposal, Scale, Set
from trimtab.controller.policies import JsonState, Policy
from trimtab.controller.policies.policy import Part
from trimtab.controller.run import MAX_FAULTS, Run, begin, fold
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Constant, Coupling, Curve, LrRule, Progress, Ramp, Table, Trajectory

LR = HyperParameter(name="lr", default=0.1, min=0.0, max=10.0)
PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=8192),
    HyperParameter(name="style", kind="choice", default="sma", choices=("sma", "allreduce")),
    HyperParameter(name="free", default=1.0, max_ratio=None),
    HyperParameter(name="count", kind="integer", default=3),
    HyperParameter(name="calm", default=1.0, cooldown=1000),
)
SPEC = RunSpec(name="r", world_size=2, parameters=PARAMETERS, micro_batch=16, max_micro_batch=64)


class Says(Policy):
    """Proposes what stands in `SAYS` for its `key`, in turn."""

    kind: ClassVar[str] = "says"
    key: str = "a"
    bases: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {**dict.fromkeys(self.bases, "base"), **dict.fromkeys(self.factors, "factor")}

    def initial(self) -> JsonState:
        return {"asked": 0}

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
        said = SAYS[self.key][state["asked"]] if state["asked"] < len(SAYS.get(self.key, ())) else []
        if isinstance(said, Exception):
            raise said
        if isinstance(said, dict):
            return said, []
        return {"asked": state["asked"] + 1}, said


class Other(Says):
    """The same under another kind."""

    kind: ClassVar[str] = "other"


SAYS: dict[str, list[Any]] = {}


@pytest.fixture(autouse=True)
def _kinds(install: Any) -> None:
    install(Says, Other)
    SAYS.clear()


class Life:
    """A run that is driven by events alone; each goes through the journal's JSON."""

    def __init__(self, spec: RunSpec = SPEC, rule: LrRule = "sqrt") -> None:
        created = engine.create(spec, 1)
        self.run: Run = begin("r", created, 0.0)
        self.versions: list[Version] = [created.version]
        self.observed: Observed | None = None
        self.apply(engine.register(self.run, 1, [LR], rule, None, lambda run: look(run), None))

    def apply(self, events: Sequence[Event]) -> Sequence[Event]:
        for event in events:
            assert decode(encode(event)) == event
            self.run = fold(self.run, event, 1.0)
            if isinstance(event, Versioned):
                assert event.version.number == self.versions[-1].number + 1
                assert event.version.parameters.keys() >= self.versions[-1].parameters.keys()
                self.versions.append(event.version)
            if isinstance(event, Observed):
                self.observed = event
        return events

    def policy(self, name: str, said: Sequence[Any] = (), kind: str = "says", **params: Any) -> None:
        SAYS[name] = list(said)
        self.apply(engine.put_policy(self.run, 1, name, kind, {"key": name, **params}, "active", "ann", ""))

    def tick(self, step: int = 1, noise: Noise | None = None) -> list[str | None]:
        """One observation; why each proposal was refused (None: it was not)."""
        run = self.run.at(Progress(step, 64 * step))
        self.apply(engine.observe(run, 1, replace(look(run), noise=noise), None))
        assert self.observed is not None
        return [outcome.refused for outcome in self.observed.outcomes]

    def value(self, param: str) -> Any:
        return self.run.version.at(self.run.progress).values[param]


def look(run: Run) -> Observation:
    settings = run.version.at(run.progress)
    return Observation(run.progress, settings.values, settings.plan, horizon=run.horizon, decay_from=run.decay_from)


def say(param: str, to: Any, by: bool = False, lr_rule: LrRule | None = None) -> Proposal:
    trajectory: Trajectory = to if isinstance(to, Curve) else Constant(to)
    return Scale(param, trajectory, "why", lr_rule) if by else Set(param, trajectory, "why", lr_rule)


# ---- ownership -----------------------------------------------------------------------------------------------------


def test_a_base_has_one_owner_until_it_is_deleted_or_off() -> None:
    life = Life()
    life.policy("a", bases=["lr"])
    with pytest.raises(Refused, match="owned by policy a") as refused:
        life.policy("b", bases=["lr"])
    assert refused.value.code == "base-owned"
    life.policy("b", factors=["lr"])
    life.policy("a", bases=["lr", "free"])
    life.apply(engine.put_policy(life.run, 1, "a", "says", {"bases": ["lr"]}, "off", "ann", ""))
    life.policy("c", bases=["lr"])
    with pytest.raises(Refused, match="owned by policy c"):
        life.policy("a", bases=["lr"])
    life.apply(engine.delete_policy(life.run, 1, "c", "ann", ""))
    life.policy("a", bases=["lr"])
    assert life.run.owner("lr") == "a"


def test_a_policy_that_was_shut_off_for_its_faults_still_owns_its_base() -> None:
    life = Life()
    life.policy("a", [ValueError("x")], bases=["lr"])
    for step in range(1, 5):
        life.tick(step)
    with pytest.raises(Refused, match="owned by policy a"):
        life.policy("b", bases=["lr"])


def test_undeclared_writes_are_refused() -> None:
    life = Life()
    life.policy("a", [[say("lr", 0.2), say("free", 2.0, by=True), say("free", 2.0)]], bases=["free"])
    refused = life.tick()
    assert refused[0] == "a does not declare that it writes the base of lr"
    assert refused[1] == "a does not declare that it writes the factor of free"
    assert refused[2] is None
    assert (life.value("lr"), life.value("free")) == (pytest.approx(0.1), 2.0)


def test_a_name_that_cannot_be_is_refused() -> None:
    life = Life()
    for name in ("batch", "no name", ""):
        with pytest.raises(Refused, match="name") as refused:
            life.policy(name)
        assert refused.value.code == "invalid-parameters"
        assert "name" in refused.value.fields


def test_a_bad_policy_is_refused_with_its_fields() -> None:
    life = Life()
    with pytest.raises(Refused) as refused:
        engine.put_policy(life.run, 1, "a", "says", {"bases": 3, "x": 1}, "active", "ann", "")
    assert refused.value.fields.keys() == {"params.bases", "params.x"}
    with pytest.raises(Refused, match="no policy of kind 'nope'"):
        engine.put_policy(life.run, 1, "a", "nope", {}, "active", "ann", "")


# ---- bounds, ratio, cool-down, pins --------------------------------------------------------------------------------


def test_a_value_stays_in_its_bounds_and_so_does_the_base_that_is_set() -> None:
    life = Life()
    life.policy("a", [[say("batch_size", 1e9), say("style", "allreduce")], [say("batch_size", -5)]], bases=ALL)
    assert life.tick(0) == [None, None]
    assert (life.value("batch_size"), life.value("style")) == (8192, "allreduce")
    assert life.run.version.parameters["batch_size"].base == Constant(8192.0)
    life.tick(0)
    assert life.value("batch_size") == 2


ALL = ["lr", "batch_size", "style", "free", "count", "calm"]


@pytest.mark.parametrize(
    ("param", "to", "why"),
    [
        ("style", "pair", "style must be one of sma, allreduce"),
        ("style", 3, "style must be one of"),
        ("style", Ramp(0.0, 1.0, 0, 9), "style is a choice and has no ramps"),
        ("lr", "high", "lr is a number, got high"),
        ("nope", 1.0, "no hyper-parameter nope"),
    ],
)
def test_what_cannot_be_set_is_refused(param: str, to: Any, why: str) -> None:
    life = Life()
    life.policy("a", [[say(param, to)]], bases=[*ALL, "nope"])
    (refused,) = life.tick()
    assert refused is not None
    assert why in refused
    assert len(life.versions) == 2


def test_a_choice_has_no_factors_and_the_coupling_is_the_runs_own() -> None:
    life = Life()
    life.policy(
        "a", [[say("style", 2.0, by=True), Scale("lr", Coupling("linear", 64), "why")]], factors=["style", "lr"]
    )
    first, second = life.tick()
    assert first == "style is a choice and has no factors"
    assert second == "the coupling to the batch belongs to the run, not to a policy"


@pytest.mark.parametrize("by", [False, True])
def test_a_constant_is_drawn_back_to_the_largest_ratio(by: bool) -> None:
    life = Life()
    life.policy("a", [[say("lr", to, by)] for to in (5.0, 1e-9)], bases=[] if by else ["lr"], factors=["lr"] * by)
    assert life.tick(1) == [None]
    assert life.value("lr") == pytest.approx(0.5 if by else 1.0)
    before = life.value("lr")
    life.tick(2)
    assert life.value("lr") == pytest.approx(before / 10)


def test_the_ratio_counts_from_the_last_version_however_it_is_cut_up() -> None:
    life = Life()
    life.policy("a", [[say("lr", 5.0, by=True), say("lr", 50.0, by=True)]], factors=["lr"])
    life.policy("b", [[say("lr", 8.0, by=True)]], factors=["lr"])
    life.tick()
    assert life.value("lr") == pytest.approx(1.0)


def test_the_ratio_holds_at_the_bounds_too() -> None:
    life = Life()
    life.policy("a", [[say("lr", 4.0, by=True)], [say("lr", 1e6, by=True)], [say("lr", 1e-6, by=True)]], factors=["lr"])
    life.tick(1)
    life.tick(2)
    assert life.value("lr") == pytest.approx(4.0)
    life.tick(3)
    assert life.value("lr") == pytest.approx(0.4)


@pytest.mark.parametrize("to", [0.0, -3.0])
def test_a_policy_cannot_switch_the_learning_rate_off_at_once(to: float) -> None:
    life = Life()
    life.policy("a", [[say("lr", to, by=True)]], factors=["lr"])
    life.tick()
    assert life.value("lr") == pytest.approx(0.01)


def test_a_ramp_that_jumps_is_refused_and_told_alike_every_time() -> None:
    life = Life()
    steep, gentle = Ramp(0.001, 1.0, 0, 10_000), Ramp(0.2, 1.0, 64, 10_000)
    life.policy("a", [[say("lr", steep, by=True)]] * 2 + [[say("lr", gentle, by=True)]], factors=["lr"])
    first, second = life.tick(1), life.tick(2)
    assert first == second == ["lr would change more than 10 times at once"]
    assert life.tick(1) == [None]
    assert life.value("lr") == pytest.approx(0.02)


def test_there_is_no_largest_ratio_before_the_first_step_or_where_none_is_declared() -> None:
    life = Life()
    life.policy("a", [[say("lr", Ramp(0.0, 1.0, 0, 640), by=True)], [say("free", 1e6)]], bases=["free"], factors=["lr"])
    assert life.tick(0) == [None]
    assert life.value("lr") == 0
    assert life.tick(5) == [None]
    assert life.value("free") == 1e6


def test_a_parameter_rests_for_its_cool_down() -> None:
    life = Life()
    life.policy("a", [[say("calm", 2.0 + i)] for i in range(4)], bases=["calm"])
    assert life.tick(1) == [None]
    assert life.tick(2) == life.tick(3) == ["calm rests until sample 1,064"]
    assert life.tick(17) == [None]
    assert life.value("calm") == 5.0


def test_a_pin_beats_policies_until_it_is_taken_away() -> None:
    life = Life()
    life.policy("a", [[say("lr", 0.2)], [say("lr", 0.3)]], bases=["lr"])
    life.apply(engine.pin(life.run, 1, "lr", 0.05, "ann", ""))
    assert life.tick(1) == ["lr is pinned by ann"]
    assert life.value("lr") == 0.05
    life.apply(engine.unpin(life.run, 1, "lr", "ann", ""))
    assert life.value("lr") == pytest.approx(0.1)
    assert life.tick(2) == [None]
    with pytest.raises(Refused, match="not pinned"):
        engine.unpin(life.run, 1, "lr", "ann", "")


@pytest.mark.parametrize(
    ("param", "value"), [("lr", 11.0), ("lr", True), ("batch_size", 1), ("batch_size", 64.5), ("style", "x"), ("x", 1)]
)
def test_a_pin_out_of_bounds_is_refused(param: str, value: Any) -> None:
    with pytest.raises(Refused):
        engine.pin(Life().run, 1, param, value, "ann", "")


def test_a_pin_at_what_is_keeps_the_value_and_its_type() -> None:
    life = Life()
    life.apply(engine.pin(life.run, 1, "count", None, "ann", ""))
    life.apply(engine.pin(life.run, 1, "batch_size", 128.0, "ann", ""))
    assert (life.value("count"), life.value("batch_size")) == (3, 128)
    pin = life.run.version.parameters["batch_size"].pin
    assert pin is not None
    assert type(pin.value) is int


# ---- what Set means ------------------------------------------------------------------------------------------------


def test_set_means_the_value_wanted_whatever_factors_stand_still() -> None:
    life = Life()
    life.policy("plateau", [[say("batch_size", 4.0, by=True)]], factors=["batch_size"])
    life.policy("noise", [[], [say("batch_size", 512)]], bases=["batch_size"])
    life.tick(1)
    assert life.value("batch_size") == 256
    life.tick(2)
    assert life.value("batch_size") == 512
    assert life.run.version.parameters["batch_size"].base == Constant(128.0)


def test_what_is_set_during_a_warm_up_is_reached_at_its_end() -> None:
    life = Life()
    life.policy("warmup", [[say("lr", Ramp(0.2, 1.0, 0, 640), by=True)]], factors=["lr"])
    life.policy("schedule", [[], [say("lr", 0.3)]], bases=["lr"])
    life.tick(0)
    life.tick(1)
    values = [life.run.version.at(Progress(s, 64 * s)).values["lr"] for s in (1, 10, 99)]
    assert values == pytest.approx([0.3 * 0.28, 0.3, 0.3])


def test_a_base_under_a_factor_of_zero_cannot_be_set() -> None:
    life = Life()
    life.policy("zero", [[say("free", 0.0, by=True)]], factors=["free"])
    life.policy("a", [[], [say("free", 2.0)]], bases=["free"])
    life.tick(1)
    assert life.tick(2) == ["a factor of free is 0: no base changes its value"]


# ---- the learning rate follows the batch ---------------------------------------------------------------------------


def noise(value: float) -> Noise:
    return Noise(value, value / 2, value * 2, 1.0, value, 100, 0)


@pytest.mark.parametrize(
    ("rule", "gain"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0), ("adascale", (1000 / 64 + 1) / (1000 / 256 + 1))]
)
def test_the_learning_rate_follows_in_the_same_version(rule: LrRule, gain: float) -> None:
    life = Life(rule=rule)
    life.policy("a", [[say("batch_size", 256)], [say("batch_size", 64)]], bases=["batch_size"])
    for step, expected in ((1, 0.1 * gain), (2, 0.1)):
        before = len(life.versions)
        life.tick(step, noise(1000))
        assert len(life.versions) == before + 1
        assert life.value("lr") == pytest.approx(expected)


@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_the_exponent_is_the_runs(exponent: float) -> None:
    life = Life(replace(SPEC, lr_exponent=exponent, lr_rule="linear"))
    life.policy("a", [[say("batch_size", 256)]], bases=["batch_size"])
    life.tick()
    assert life.value("lr") == pytest.approx(0.1 * 4**exponent)


def test_a_proposal_may_leave_the_learning_rate() -> None:
    life = Life(rule="linear")
    life.policy(
        "a", [[say("batch_size", 128, lr_rule="none")], [say("batch_size", 256)], [say("batch_size", 64)]],
        bases=["batch_size"],
    )  # fmt: skip
    lrs = []
    for step in (1, 2, 3):
        life.tick(step)
        lrs.append(life.value("lr"))
    assert lrs == pytest.approx([0.1, 0.2, 0.05])


def test_a_proposals_own_rule_counts_from_the_batch_where_it_begins() -> None:
    life = Life(rule="none")
    changes: list[tuple[int, LrRule | None]] = [(256, None), (512, "linear"), (1024, "sqrt")]
    life.policy("a", [[say("batch_size", batch, lr_rule=rule)] for batch, rule in changes], bases=["batch_size"])
    lrs = []
    for step in (1, 2, 3):
        life.tick(step)
        lrs.append(life.value("lr"))
    assert lrs == pytest.approx([0.1, 0.2, 0.2 * math.sqrt(2)])


def test_adascale_may_leave_the_learning_rate_at_any_batch() -> None:
    life = Life(rule="adascale")
    changes = [(16, None), (1024, "none"), (64, None)]
    life.policy("a", [[say("batch_size", b, lr_rule=r)] for b, r in changes], bases=["batch_size"])  # type: ignore[arg-type]
    life.tick(0, noise(10))
    before = life.value("lr")
    life.tick(0, noise(10))
    assert life.value("lr") == pytest.approx(before)
    life.tick(0, noise(10))
    assert 0 < life.value("lr") < before


def test_a_pin_of_the_batch_brings_the_learning_rate_along_and_tells_so() -> None:
    life = Life(rule="linear")
    (event,) = life.apply(engine.pin(life.run, 1, "batch_size", 128, "ann", "try"))
    assert isinstance(event, Versioned)
    assert [(c.param, c.after, c.by) for c in event.changes] == [
        ("batch_size", 128, "ann"),
        ("lr", pytest.approx(0.2), "batch"),
    ]
    assert "batch 64 → 128" in event.changes[1].reason


def test_a_pinned_batch_that_the_ranks_cannot_make_tells_what_becomes_of_it() -> None:
    life = Life(rule="none")
    (event,) = life.apply(engine.pin(life.run, 1, "batch_size", 65, "ann", ""))
    assert isinstance(event, Versioned)
    (change,) = event.changes
    assert change.after == life.value("batch_size") != 65
    assert change.reason == "pinned; 65 becomes 64: 1 × 32 on each of 2 workers"


def test_a_factor_that_changes_behind_a_pin_says_so() -> None:
    life = Life(rule="linear")
    life.apply(engine.pin(life.run, 1, "lr", 0.03, "ann", ""))
    (event,) = life.apply(engine.pin(life.run, 1, "batch_size", 128, "ann", "try"))
    assert isinstance(event, Versioned)
    coupled = event.changes[1]
    assert (coupled.param, coupled.before, coupled.after, coupled.by) == ("lr", 0.03, 0.03, "batch")
    assert coupled.reason.endswith("batch 64 → 128, behind the pin")


def test_a_group_of_another_size_may_round_the_batch_and_the_learning_rate_follows() -> None:
    life = Life(rule="linear")
    events = life.apply(engine.form(life.run, 1, 100, Progress(5, 320)))
    versioned = events[-1]
    assert isinstance(versioned, Versioned)
    assert life.value("batch_size") == 100
    assert life.value("lr") == pytest.approx(0.1 * 100 / 64)
    assert [c.param for c in versioned.changes] == ["batch_size", "lr"]


def test_the_base_batch_is_the_declared_one_even_under_a_pin() -> None:
    created = engine.create(SPEC, 1)
    run = begin("r", created, 0.0)
    for event in engine.pin(run, 1, "batch_size", 256, "ann", ""):
        run = fold(run, event, 0.0)
    for event in engine.register(run, 1, [LR], "linear", None, look, None):
        run = fold(run, event, 0.0)
    assert run.version.at(Progress()).values["lr"] == pytest.approx(0.4)


# ---- deletion and editing ------------------------------------------------------------------------------------------


LINEAR = Table((0, 1000, 6400), (0.2, 0.4, 0.3))
STEPS = Table((0, 1000, 6400), (0.2, 0.4, 0.3), "samples", "step")


@pytest.mark.parametrize("factor", [0.5, Ramp(0.2, 1.0, 0, 6400), Ramp(0.2, 1.0, 0, 6400, shape="exponential"), LINEAR])
@pytest.mark.parametrize(
    "base", [0.2, Ramp(0.1, 0.3, 0, 6400), Ramp(0.1, 0.3, 0, 6400, shape="exponential"), LINEAR, STEPS]
)
def test_deleting_a_policy_moves_no_value(base: Any, factor: Any) -> None:
    life = Life()
    life.policy("owner", [[say("lr", base)]], bases=["lr"])
    life.policy("factor", [[say("lr", factor, by=True), say("batch_size", 2.0, by=True)]], factors=["lr", "batch_size"])
    life.tick(0)
    life.tick(30)
    before = dict(life.run.version.at(life.run.progress).values)
    life.apply(engine.delete_policy(life.run, 1, "factor", "ann", ""))
    assert life.run.version.at(life.run.progress).values == pytest.approx(before)
    assert life.run.version.parameters["lr"].factors.keys() == {"batch"}
    assert life.run.policies.keys() == {"owner"}


def test_a_base_that_is_a_table_goes_on_when_a_factor_is_folded_into_it() -> None:
    life = Life()
    life.policy("owner", [[say("lr", STEPS)]], bases=["lr"])
    life.policy("factor", [[say("lr", 0.5, by=True)]], factors=["lr"])
    life.tick(0)
    life.apply(engine.delete_policy(life.run, 1, "factor", "ann", ""))
    base = life.run.version.parameters["lr"].base
    assert base == Table((0, 1000, 6400), (0.1, 0.2, 0.15), "samples", "step")


def test_a_factor_that_an_edited_policy_no_longer_writes_joins_the_base() -> None:
    life = Life()
    life.policy("a", [[say("lr", 0.5, by=True), say("free", 0.25, by=True)]], factors=["lr", "free"])
    life.tick(1)
    life.apply(engine.put_policy(life.run, 1, "a", "says", {"factors": ["free"], "bases": ["lr"]}, "active", "ann", ""))
    lr, free = life.run.version.parameters["lr"], life.run.version.parameters["free"]
    assert (lr.base, lr.factors.keys()) == (Constant(0.05), {"batch"})
    assert free.factors == {"a": Constant(0.25)}
    assert (life.value("lr"), life.value("free")) == pytest.approx((0.05, 0.25))


def test_a_factor_of_zero_can_be_deleted_under_any_base() -> None:
    life = Life()
    exponential = Ramp(0.1, 0.3, 0, 6400, shape="exponential")
    life.policy("a", [[say("lr", exponential), say("lr", 0.0, by=True)]], bases=["lr"])
    life.policy("b", [[say("lr", 0.0, by=True)]], factors=["lr"])
    life.tick(0)
    life.apply(engine.delete_policy(life.run, 1, "b", "ann", ""))
    assert life.value("lr") == 0


def test_editing_keeps_the_state_and_another_kind_begins_anew() -> None:
    life = Life()
    life.policy("a", [[say("lr", 0.5, by=True)], []], factors=["lr"])
    life.tick(1)
    life.apply(engine.put_policy(life.run, 1, "a", "says", {"key": "b", "factors": ["lr"]}, "active", "ann", ""))
    assert life.run.policies["a"].state == {"asked": 1}
    assert life.run.policies["a"].revision == 2
    life.apply(engine.put_policy(life.run, 1, "a", "other", {}, "active", "ann", ""))
    entry = life.run.policies["a"]
    assert (entry.kind, entry.state, entry.revision) == ("other", {"asked": 0}, 3)
    assert life.value("lr") == pytest.approx(0.05)
    assert life.run.version.parameters["lr"].factors.keys() == {"batch"}


def test_a_policy_that_is_off_is_not_asked_and_keeps_its_factor() -> None:
    life = Life()
    life.policy("a", [[say("lr", 0.5, by=True)], [say("lr", 0.25, by=True)]], factors=["lr"])
    life.tick(1)
    life.apply(engine.put_policy(life.run, 1, "a", "says", {"key": "a", "factors": ["lr"]}, "off", "ann", ""))
    life.tick(2)
    assert life.value("lr") == pytest.approx(0.05)


# ---- faults --------------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


RUBBISH: list[Any] = [
    ValueError("x" * 100_000 + "\ud800"),
    Unspeakable(),
    [None],
    [3],
    ["stop"],
    None,
    [Set("lr", Constant([1]), "why")],  # type: ignore[arg-type]
    [Set("lr", 0.1, "why")],  # type: ignore[arg-type]
    [Set("lr", Constant(0.1), "\ud800")],
    [Set("lr", Constant(0.1), 7)],  # type: ignore[arg-type]
    [Set(["lr"], Constant(0.1), "why")],  # type: ignore[arg-type]
    [Command("explode", "why")],  # type: ignore[arg-type]
    {"asked": math.nan},
    {"asked": {1, 2}},
    {"asked": "\ud800"},
]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=range(len(RUBBISH)))
def test_a_fault_stops_nobody_else_and_three_shut_the_policy_off(rubbish: Any) -> None:
    life = Life()
    life.policy("bad", [rubbish], bases=["lr"])
    life.policy("good", [[say("free", 2.0 + i)] for i in range(5)], bases=["free"])
    for step in range(1, 6):
        assert life.tick(step) == [None]
        assert life.observed is not None
        assert bool(life.observed.faults) == (step <= MAX_FAULTS)
    assert not life.run.policies["bad"].active
    assert life.value("free") == 6.0
    life.policy("bad", [], bases=["lr"])
    assert life.run.policies["bad"].active


def test_a_policy_cannot_change_its_recorded_state_behind_the_journals_back() -> None:
    class Scribbles(Says):
        kind: ClassVar[str] = "says"

        def decide(self, state: Any, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:  # noqa: ARG002
            state["asked"] += 1
            return state, []

    life = Life()
    life.policy("a")
    entry = life.run.policies["a"]
    run = replace(life.run, policies={"a": replace(entry, policy=Scribbles())})
    (observed,) = engine.observe(run, 1, look(run), None)
    assert isinstance(observed, Observed)
    assert observed.states == {"a": {"asked": 1}}
    assert entry.state == {"asked": 0}


# ---- commands, registration, formations ----------------------------------------------------------------------------


def test_commands_are_entries_of_a_version() -> None:
    life = Life()
    for wish in ("pause", "pause", "resume", "checkpoint", "checkpoint", "stop"):
        life.apply(engine.command(life.run, 1, Command(wish, "because"), "ann"))  # type: ignore[arg-type]
    version = life.run.version
    assert (version.number, version.paused, version.stopped, version.checkpoints) == (7, False, True, 2)


def test_the_first_wish_to_decay_counts_and_comes_through_the_journal() -> None:
    life = Life()
    life.apply(engine.put_policy(life.run, 1, "wsd", "schedule", {"shape": "wsd"}, "active", "ann", ""))
    assert life.run.decay_from is None
    life.run = life.run.at(Progress(7, 448))
    (event,) = life.apply(engine.command(life.run, 1, Command("decay", "enough"), "ann"))
    assert isinstance(event, Versioned)
    assert event.changes == (Change("decay", False, True, "ann", "enough"),)
    assert life.run.decay_from == Progress(7, 448)
    life.run = life.run.at(Progress(9, 576))
    assert engine.command(life.run, 1, Command("decay", "again"), "bob") == ()
    assert life.run.decay_from == Progress(7, 448)
    old = json.loads(encode(event))
    del old["version"]["decay_from"]  # as an earlier version wrote it
    again = decode(json.dumps(old))
    assert isinstance(again, Versioned)
    assert again.version == replace(event.version, decay_from=None)


@pytest.mark.parametrize(("shape", "mode"), [("cosine", "active"), ("wsd", "off")])
def test_a_wish_to_decay_that_no_policy_would_heed_is_refused(shape: str, mode: Mode) -> None:
    life = Life()
    life.apply(engine.put_policy(life.run, 1, "curve", "schedule", {"shape": shape}, mode, "ann", ""))
    with pytest.raises(Refused, match="a schedule of shape wsd does") as refusal:
        engine.command(life.run, 1, Command("decay", "enough"), "ann")
    assert refusal.value.code == "no-decay"
    life.apply(engine.put_policy(life.run, 1, "curve", "schedule", {"shape": "wsd"}, "shadow", "ann", ""))
    assert life.apply(engine.command(life.run, 1, Command("decay", "enough"), "ann"))


@pytest.mark.parametrize("told_by", ["a person", "a policy"])
def test_a_schedule_begins_its_decay_where_it_was_told_to(told_by: str) -> None:
    life = Life()
    life.apply(engine.put_policy(life.run, 1, "wsd", "schedule", {"shape": "wsd", "decay": 0.5}, "active", "ann", ""))
    life.policy("a", [[]] if told_by == "a person" else [[], [Command("decay", "it is flat")]])
    life.tick(1)
    life.tick(100)
    if told_by == "a person":
        life.apply(engine.command(life.run, 1, Command("decay", "enough"), "ann"))
    life.tick(102)
    factor = life.run.version.parameters["lr"].factors["wsd"]
    assert factor == Ramp(1.0, 0.0, 6400, 6400 + 6400 - 64, shape="sqrt")
    assert life.run.decay_from == Progress(100, 6400)
    assert life.tick(110) == []


def test_a_command_tells_what_it_changed() -> None:
    life = Life()
    (event,) = engine.command(life.run, 1, Command("pause", "lunch"), "ann")
    assert isinstance(event, Versioned)
    (change,) = event.changes
    assert (change.param, change.before, change.after, change.by, change.reason) == (
        "paused", False, True, "ann", "lunch",
    )  # fmt: skip
    again = decode(encode(event))
    assert isinstance(again, Versioned)
    assert again.changes[0].after is True


@pytest.mark.parametrize("value", ["5", 5, 5.0, True])
def test_a_changes_values_keep_their_types_in_the_journal(value: Any) -> None:
    event = Versioned(Life().run.version, (Change("x", value, value, "ann", ""),), Progress())
    again = decode(encode(event))
    assert isinstance(again, Versioned)
    assert again == event
    assert type(again.changes[0].before) is type(again.changes[0].after) is type(value)


def test_a_policy_may_command_and_change_in_one_version() -> None:
    life = Life()
    life.policy("a", [[Command("stop", "diverged"), say("lr", 0.05), Command("pause", "x"), Command("resume", "y")]],
                bases=["lr"])  # fmt: skip
    before = len(life.versions)
    life.tick(1)
    assert len(life.versions) == before + 1
    assert life.run.version.stopped
    assert life.value("lr") == pytest.approx(0.05)


def test_registering_declares_and_decides_in_one_version() -> None:
    life = Life()
    assert [v.number for v in life.versions] == [1, 2]
    created = engine.create(SPEC, 1)
    run = begin("r", created, 0.0)
    SAYS["a"] = [[say("lr", Ramp(0.0, 1.0, 0, 100), by=True), say("batch_size", 128)]]
    params = {"key": "a", "factors": ["lr"], "bases": ["batch_size"]}
    for event in engine.put_policy(run, 1, "a", "says", params, "active", "start", ""):
        run = fold(run, event, 0.0)
    events = engine.register(run, 1, [LR], "linear", 5000, look, None)
    versions = [event for event in events if isinstance(event, Versioned)]
    assert [v.version.number for v in versions] == [2]
    assert {c.param: c.by for c in versions[0].changes} == {"lr": "a", "batch_size": "a"}
    assert versions[0].version.at(Progress(1, 100)).values["lr"] == pytest.approx(0.2)


def test_registering_again_keeps_what_the_run_has() -> None:
    life = Life()
    life.apply(engine.pin(life.run, 1, "lr", 0.7, "ann", ""))
    number = life.run.version.number
    again = HyperParameter(name="lr", default=0.9)
    life.apply(engine.register(life.run, 1, [again], "adascale", 10, look, None))
    assert (life.run.version.number, life.value("lr"), life.run.lr_rule) == (number, 0.7, "sqrt")


def test_a_knob_may_come_late_and_moves_no_revision_of_the_pins() -> None:
    life = Life()
    revision = life.run.pins_revision
    (event,) = life.apply(engine.declare(life.run, 1, [HyperParameter(name="mixup", default=0.2), LR]))
    assert isinstance(event, Versioned)
    assert [(c.param, c.before, c.after, c.by) for c in event.changes] == [("mixup", None, 0.2, "script")]
    assert life.run.pins_revision == revision
    assert engine.declare(life.run, 1, [LR]) == ()


def test_a_new_formation_of_an_ended_run_goes_on() -> None:
    life = Life()
    life.apply(engine.command(life.run, 1, Command("stop", "enough"), "ann"))
    life.apply([Stated(RunState.STOPPED)])
    life.apply(engine.form(life.run, 1, 2, Progress(5, 320)))
    assert not life.run.version.stopped
    assert (life.run.formation, life.run.progress) == (1, Progress(5, 320))


@pytest.mark.parametrize("wish", ["stop", "pause"])
def test_a_lost_worker_does_not_undo_what_a_person_asked_for(wish: Any) -> None:
    life = Life()
    life.apply(engine.command(life.run, 1, Command(wish, "please"), "ann"))
    life.apply([Stated(RunState.RECOVERING)])
    life.apply(engine.form(life.run, 1, 2, Progress(5, 320)))
    assert life.run.version.stopped or life.run.version.paused


def test_a_rank_alone_takes_two_micro_batches() -> None:
    life = Life()
    life.apply(engine.form(life.run, 1, 1, Progress()))
    assert life.run.version.at(Progress()).plan.accumulation == 2
    life.apply(engine.form(life.run, 1, 4, Progress()))
    assert life.run.version.at(Progress()).plan.batch_size == 64


def test_a_run_needs_a_batch_size() -> None:
    with pytest.raises(Refused, match="batch_size"):
        engine.create(replace(SPEC, parameters=(LR,)), 1)
    with pytest.raises(ValueError, match="lr_exponent"):
        replace(SPEC, lr_exponent=math.nan)


# ---- whatever policies say -----------------------------------------------------------------------------------------

names = st.sampled_from([*ALL, "nope"])
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -1.0, 1e300, -1e300, 5e-324, 1e-9])
constants = st.builds(Constant, numbers | st.integers(-(10**20), 10**20) | st.sampled_from(["sma", "allreduce", "x"]))
shapes = st.sampled_from(["linear", "cosine", "sqrt", "exponential"])


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    begin = draw(st.integers(0, 2000))
    start, end, shape = draw(numbers), draw(numbers), draw(shapes)
    if shape == "exponential":
        start, end = abs(start) or 1.0, abs(end) or 1.0
    return Ramp(
        start, end, begin, begin + draw(st.integers(1, 2000)), draw(st.sampled_from(["samples", "steps"])), shape
    )


@st.composite
def tables(draw: st.DrawFn) -> Table:
    marks = sorted(draw(st.sets(st.integers(0, 2000), min_size=2, max_size=5)))
    values = draw(st.lists(numbers, min_size=len(marks), max_size=len(marks)))
    unit, interpolation = draw(st.sampled_from(["samples", "steps"])), draw(st.sampled_from(["step", "linear"]))
    return Table(tuple(marks), tuple(values), unit, interpolation)


rules = st.none() | st.sampled_from(get_args(LrRule))
couplings = st.builds(Coupling, st.sampled_from(get_args(LrRule)), st.integers(1, 1000))
sets = st.builds(Set, names, constants | ramps() | tables(), st.just("why"), rules)
scales = st.builds(Scale, names, constants | ramps() | tables() | couplings, st.just("why"), rules)
commands = st.builds(Command, st.sampled_from(["pause", "resume", "stop", "checkpoint", "decay"]), st.just("why"))
answers = st.lists(sets | scales | commands, max_size=4) | st.sampled_from(RUBBISH)
parts = st.lists(st.sampled_from(ALL), max_size=6, unique=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_policy_can_leave_the_guard_rails(data: st.DataObject) -> None:
    life = Life(rule=data.draw(st.sampled_from(get_args(LrRule))))
    for name in "abc":
        bases = data.draw(parts)
        with suppress(Refused):  # the base has an owner
            said = data.draw(st.lists(answers, min_size=3, max_size=8))
            life.policy(name, said, bases=bases, factors=list(set(ALL) - set(bases)))
    for tick in range(8):
        step = tick * data.draw(st.integers(0, 20))
        before = {name: p.at(Progress(step, 64 * step), 64) for name, p in life.run.version.parameters.items()}
        number = life.run.version.number
        life.tick(step, data.draw(st.none() | st.builds(noise, st.floats(1e-9, 1e9))))
        assert life.run.version.number - number in (0, 1)
        _sound(life.run.version)
        if step:
            _gentle(life.run.version, before, Progress(step, 64 * step))
        if data.draw(st.booleans()) and life.run.policies:
            life.apply(
                engine.delete_policy(life.run, 1, data.draw(st.sampled_from(sorted(life.run.policies))), "ann", "")
            )
            _sound(life.run.version)


def _sound(version: Version) -> None:
    for step in (0, 1, 7, 50, 500, 10**6):
        settings = version.at(Progress(step, 64 * step))
        for name, value in settings.values.items():
            spec = version.parameters[name].spec
            assert spec.check(value) == value
    for parameter in version.parameters.values():
        writers = [name for name in parameter.factors if name not in {"a", "b", "c", "batch"}]
        assert not writers


def _gentle(version: Version, before: Mapping[str, Any], progress: Progress) -> None:
    for name, parameter in version.parameters.items():
        ratio, old, new = parameter.spec.max_ratio, before[name], parameter.at(progress, 64)
        if ratio is None or isinstance(old, str) or old <= 0 or name == "lr":  # lr: the batch moves it, too
            continue
        assert isinstance(new, float | int)
        assert old / ratio - 0.51 <= new <= old * ratio + 0.51


def test_a_parameter_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    life = Life()
    with pytest.raises(Refused, match="plateau: patiense: unknown; there are metric, mode, factor, patience, ") as told:
        engine.put_policy(life.run, 1, "p", "plateau", {"patiense": 5}, "active", "eve", "")
    assert list(told.value.fields) == ["params.patiense"]
