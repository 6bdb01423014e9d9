"""Replay and what-if: the record decides the same again, candidates decide what a hand would, and nothing is hidden."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))  # for `make`, which is a script too

from make import RUN, SCENES, Scene, rules, state

from trimtab.controller.controller import PolicySpec
from trimtab.controller.errors import Refused
from trimtab.controller.events import Created, Event, Observed, Versioned, decode
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import SqliteJournal
from trimtab.controller.metrics import MetricReader
from trimtab.controller.moments import Asking, moments
from trimtab.controller.observation import Command
from trimtab.controller.policies import kinds, sandbox
from trimtab.controller.policies.code import Code
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.recorded import replay_entries, replay_recorded
from trimtab.controller.replay import replay
from trimtab.controller.replayed import MAX_POINTS, NAME, Candidate, Decision, Values
from trimtab.controller.run import begin, fold
from trimtab.controller.state import RunState
from trimtab.controller.stored import Stored
from trimtab.controller.trajectory import Constant, Progress

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.jsonl"))
CUT = Candidate(name="cut", kind="plateau", params={"patience": 0, "factor": 0.5})
MINE = """
from typing import ClassVar
from trimtab.controller.observation import Scale
from trimtab.controller.policies import Policy
from trimtab.controller.trajectory import Constant

class Mine(Policy):
    "Halves the learning rate at every loss above 1.5."
    kind: ClassVar[str] = "mine"
    source: ClassVar[str] = "none: a test"
    def reads(self): return frozenset({"loss"})
    def writes(self): return {"lr": "factor"}
    def initial(self): return {"factor": 1.0}
    def decide(self, state, observation):
        loss = observation.last("loss")
        if loss is None or loss.value < 1.5:
            return state, ()
        half = state["factor"] / 2
        return {"factor": half}, (Scale("lr", Constant(half), "the loss is high"),)
"""


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = SCENES[request.param](tmp_path_factory.mktemp(request.param))
    yield made
    made.controller.close()


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """record(kind={...}, ...) begins a run with these policies."""
    begun: list[Scene] = []

    def start(*given: PolicySpec, **policies: Any) -> Scene:
        path = tmp_path / str(len(begun))
        path.mkdir()
        begun.append(Scene(path, *given, **policies))
        return begun[-1]

    yield start
    for one in begun:
        one.controller.close()


def events(scene: Scene) -> list[Event]:
    return [decode(text) for text in scene.events()]


def whole() -> list[Event]:
    """The golden journal in which everything happens."""
    (path,) = (one for one in GOLDEN if one.stem == "whole")
    return [decode(text) for text in path.read_text().splitlines()[1:]]


def changes(decisions: Sequence[Decision]) -> list[tuple[Any, ...]]:
    return [(one.step, one.policy, one.param, one.before, one.after) for one in decisions]


# ---- the record decides again --------------------------------------------------------------------------------------


def test_a_replay_of_the_record_is_equal_and_twice_the_same(scene: Scene) -> None:
    first, second = replay(events(scene)), replay(events(scene))
    assert first.equal
    assert first.decisions == first.recorded != []
    assert repr(first) == repr(second)  # floats to the last bit
    assert {name: trace.value[-1] for name, trace in first.values.items()}.items() <= state(scene.run)["values"].items()


def test_all_that_policies_decided_is_told(record: Callable[..., Scene]) -> None:
    scene = record(plateau={"patience": 0, "factor": 0.5}, stragglers={"window": 2})
    controller = scene.controller
    controller.put_policy(RUN, "shade", "plateau", {"patience": 0, "factor": 0.1}, "shadow", "ann", "", None)
    scene.step = 400
    scene.tick(val_loss=1.0)
    scene.tick(val_loss=1.0)
    controller.pin(RUN, "lr", 0.01, "ann", "", None)
    for _ in range(3):
        scene.tick(val_loss=1.0)
    replayed = replay(events(scene))
    assert replayed.equal
    told = [(one.step, one.policy, one.param, one.after, one.refused, one.shadow) for one in replayed.decisions]
    assert (440, "stragglers", "rank 1", None, None, False) in told
    assert (440, "plateau", "lr", 0.05, None, False) in told
    assert (440, "shade", "lr", pytest.approx(0.01), None, True) in told
    refusals = [one for one in told if one[4] is not None and one[1] == "plateau"]
    assert refusals == [(460, "plateau", "lr", None, "lr is pinned by ann", False)]  # once, though it lasts


def tampered(what: str, event: Event) -> Event:
    """The event as somebody might have edited it."""
    match what, event:
        case "proposal", Observed(outcomes=(first, *rest)):
            other = replace(first, proposal=replace(first.proposal, reason="because"))
            return replace(event, outcomes=(other, *rest))
        case "state", Observed(states=states) if "plateau" in states:
            return replace(event, states={**states, "plateau": {**states["plateau"], "best": 0.0}})
        case "silence", Observed(outcomes=(_, *_)):
            return replace(event, outcomes=())
        case "version", Versioned(changes=(change, *_)) if change.by == "plateau":
            lr = event.version.parameters["lr"]
            scaled = replace(lr, factors={**lr.factors, "plateau": Constant(0.3)})
            return replace(event, version=event.version.with_parameter(scaled))
        case "change", Versioned(changes=(change, *rest)) if change.by == "plateau":
            return replace(event, changes=(replace(change, after=0.7), *rest))
    return event


@pytest.mark.parametrize("what", ["proposal", "state", "silence", "version", "change"])
def test_a_record_that_was_tampered_with_is_found(record: Callable[..., Scene], what: str) -> None:
    scene = record(plateau={"patience": 1})
    for value in (1.0, 2.0, 2.0, 2.0, 2.0):
        scene.tick(val_loss=value)
    sound = events(scene)
    assert replay(sound).equal
    forged = [tampered(what, event) for event in sound]
    assert forged != sound
    assert not replay(forged).equal


def test_a_tampered_decision_stands_beside_the_true_one(record: Callable[..., Scene]) -> None:
    scene = record(plateau={"patience": 0, "factor": 0.5})
    for _ in range(2):
        scene.tick(val_loss=1.0)
    replayed = replay([tampered("change", event) for event in events(scene)])
    assert changes(replayed.decisions) == [(40, "plateau", "lr", 0.1, 0.05)]
    assert changes(replayed.recorded) == [(40, "plateau", "lr", 0.1, 0.7)]


def test_a_version_is_made_of_the_observation_before_only_if_policies_made_it(record: Callable[..., Scene]) -> None:
    scene = record(plateau={})
    scene.tick(val_loss=1.0)
    scene.controller.register_knob(RUN, HyperParameter(name="mixup", default=0.2, min=0.0))
    scene.controller.pin(RUN, "lr", 0.01, "plateau", "a person of that name", None)
    *_, last = (one for one in moments(events(scene)) if isinstance(one, Asking))
    assert (last.observed.observation.progress.steps, last.versioned) == (20, None)
    assert replay(events(scene)).equal


def test_a_kind_that_came_with_the_job_decides_again(
    record: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LIMITS", sandbox.Limits(answer_s=60, start_s=60))  # a late answer is a fault
    scene = record(PolicySpec(name="", kind="", params={}, code=Code("Mine", "mine.py", MINE)))
    for i in range(3):
        scene.tick(loss=2.0 if i else 1.0)
        if (question := scene.controller._live[RUN].question) is not None:  # its process has not answered yet
            sandbox.done(question.asked, 60)
            scene.controller.expire()
    recorded = replay_entries(scene.store.entries, scene.metrics / f"{RUN}.metrics")
    assert recorded.equal
    assert changes(recorded.decisions) == [(40, "mine", "lr", 0.1, 0.05), (60, "mine", "lr", 0.05, 0.025)]
    again = replay(events(scene), [Candidate(name="two", kind="mine")])
    sandbox.retain(NAME, ())
    assert [one.after for one in again.decisions] == [0.05, 0.025]


def test_an_older_rule_is_named(record: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = record(plateau={})
    scene.tick(val_loss=1.0)
    monkeypatch.setattr(Plateau, "rule", 2)
    with pytest.raises(Refused, match="plateau cannot be run again: it was recorded with rule 1") as refusal:
        replay(events(scene))
    assert refusal.value.code == "cannot-replay"
    assert replay(events(scene), [CUT]).observations == 2  # with candidates the recorded one need not run


def test_a_kind_that_is_gone_is_named(record: Callable[..., Scene]) -> None:
    scene = record(plateau={})
    texts = [text.replace('"kind":"plateau"', '"kind":"gone"') for text in scene.events()]
    with pytest.raises(Refused, match="rule 1 of kind gone, which is not installed here"):
        replay(map(decode, texts))


# ---- golden journals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_journal_folds_and_replays(path: Path) -> None:
    head, *texts = path.read_text().splitlines()
    known, (created, *rest) = json.loads(head), [decode(text) for text in texts]
    assert isinstance(created, Created)
    run = begin(RUN, created, 0.0)
    for event in rest:
        run = fold(run, event, 0.0)
    assert state(run) == known["state"]
    assert rules(texts) == known["rules"]
    if all(kinds()[kind].rule == rule for kind, rule in known["rules"].items()):
        assert replay([created, *rest]).equal
    else:
        with pytest.raises(Refused, match="cannot be run again"):
            replay([created, *rest])


def test_golden_journals_are_there_and_small() -> None:
    assert {path.stem for path in GOLDEN} >= set(SCENES)
    assert all(path.stat().st_size < 100_000 for path in GOLDEN)
    whole = set().union(*(json.loads(path.read_text().splitlines()[0])["rules"] for path in GOLDEN))
    assert whole >= {kind for kind, cls in kinds().items() if cls.__module__.startswith("trimtab.controller.policies.")}


# ---- what if -------------------------------------------------------------------------------------------------------


def test_other_policies_decide_what_a_hand_would(record: Callable[..., Scene]) -> None:
    scene = record(plateau={"patience": 1, "factor": 0.1})
    for value in (1.0, 2.0, 2.0):  # cut at 60: two readings are no better
        scene.tick(val_loss=value)
    scene.controller.pin(RUN, "lr", 0.02, "ann", "", None)
    scene.tick(val_loss=2.0)
    scene.controller.unpin(RUN, "lr", "ann", "", None)
    scene.tick(val_loss=2.0)
    replayed = replay(events(scene), [CUT])
    assert [(one.step, one.before, one.after) for one in replayed.recorded] == [
        (60, 0.1, pytest.approx(0.01)),
        (100, pytest.approx(0.01), pytest.approx(0.001)),
    ]
    made = [(one.step, one.before, one.after, one.refused) for one in replayed.decisions]
    assert made == [
        (40, 0.1, 0.05, None),
        (60, 0.05, 0.025, None),
        (80, 0.02, None, "lr is pinned by ann"),
        (100, 0.025, 0.00625, None),  # its factor counts the cut that was refused
    ]
    assert not replayed.equal


def test_the_recorded_policies_as_candidates_decide_the_same(record: Callable[..., Scene]) -> None:
    chosen: dict[str, dict[str, Any]] = {"noise_scale": {}, "warmup": {"samples": 6400}, "plateau": {"patience": 2}}
    scene = record(**chosen)
    for i in range(20):
        scene.tick(val_loss=max(1.0, 1.2 - i / 10))
    replayed = replay(events(scene), [Candidate(name=kind, kind=kind, params=chosen[kind]) for kind in chosen])
    assert replayed.equal
    assert replayed.values == replay(events(scene)).values
    assert {"noise_scale", "plateau", "warmup", "batch"} == {one.policy for one in replayed.decisions}


def test_a_formation_sets_the_ramps_back_in_a_what_if_too(record: Callable[..., Scene]) -> None:
    scene = record(warmup={"steps": 50})
    for _ in range(4):
        scene.tick()
    version = scene.run.version
    scene.form(Progress(20, 20 * 64))  # as after a crash, from a checkpoint
    assert scene.run.version is version
    scene.tick()
    warmup = Candidate(name="warmup", kind="warmup", params={"steps": 50})
    replayed = replay(events(scene), [warmup])
    assert replayed.equal
    assert replayed.values == replay(events(scene)).values
    assert replayed.values["lr"].value[-1] < 0.1


def test_without_policies_people_alone_move_the_values() -> None:
    replayed = replay(whole(), [])
    assert replayed.decisions == []
    assert set(replayed.values["lr"].value) == {0.1, 0.02}
    assert set(replayed.values["batch_size"].value) == {64}
    assert replayed.values["mixup"].value[-1] == 0.2


def test_a_stop_that_would_have_come_ends_nothing_not_even_a_roll_back_on_record() -> None:
    stop = Candidate(name="stop", kind="early_stop", params={"patience": 1})
    replayed = replay(whole(), [stop, CUT])
    assert replayed.observations == replay(whole()).observations
    assert [one.step for one in replayed.decisions if one.param == "stopped"] == [
        40,
        360,
    ]  # gone on at 400, back to 280
    assert [one.step for one in replayed.recorded if one.param == "rollback"] == [400]


def test_a_roll_back_that_would_have_come_is_told_and_over_at_once() -> None:
    guard = Candidate(name="guard", kind="spike_guard", params={"spikes": 1, "window": 16, "within": 60})
    replayed = replay(whole(), [CUT, guard])
    back, *_ = (one for one in replayed.decisions if one.param == "rollback")
    assert (back.policy, back.refused) == ("guard", None)
    assert any(one.step < back.step and one.policy == "cut" for one in replayed.decisions[-3:])


def test_in_shadow_nothing_moves(record: Callable[..., Scene]) -> None:
    scene = record(plateau={"patience": 50})
    for _ in range(3):
        scene.tick(val_loss=1.0)
    shade = Candidate(name="shade", kind="plateau", params={"patience": 0, "factor": 0.5}, mode="shadow")
    replayed = replay(events(scene), [shade])
    assert [(one.step, one.before, one.after, one.shadow) for one in replayed.decisions] == [
        (40, 0.1, 0.05, True),
        (60, 0.05, 0.025, True),
    ]
    assert set(replayed.values["lr"].value) == {0.1}


@pytest.mark.parametrize("metric", ["loss", "hp/batch_size", "acc"])
def test_a_metric_that_was_not_recorded_comes_from_the_metric_file(record: Callable[..., Scene], metric: str) -> None:
    params = {"metric": metric, "patience": 0, "factor": 0.5}
    asked, unasked = record(early_stop={}, plateau=params), record(early_stop={})
    for scene in (asked, unasked):
        for i in range(6):
            scene.tick(loss=2.0 - (i < 3) * i, acc=0.5 + (i < 2) * i)
        scene.end()
    cut = Candidate(name="plateau", kind="plateau", params=params)
    reader = MetricReader(unasked.metrics / f"{RUN}.metrics")
    replayed = replay(events(unasked), [cut], reader)
    reader.close()
    wanted = replay(events(asked))
    assert replayed.decisions == wanted.decisions != []
    assert replayed.unread == {}
    assert replay(events(unasked), [cut]).unread == {"plateau": [metric]}
    assert replay(events(unasked), [cut]).decisions == []


def test_rank_times_cannot_be_had_afterwards(record: Callable[..., Scene]) -> None:
    scene = record(plateau={})
    for _ in range(3):
        scene.tick(val_loss=1.0)
    reader: Stored = MetricReader(scene.metrics / f"{RUN}.metrics")
    assert replay(events(scene), [Candidate(name="s", kind="stragglers")], reader).unread == {"s": ["rank_times"]}


@pytest.mark.parametrize(
    ("candidates", "code", "field"),
    [
        ([CUT, CUT], "invalid-parameters", "policies.1.name"),
        ([CUT, Candidate(name="a-b", kind="plateau")], "invalid-parameters", "policies.1.name"),
        ([Candidate(name="a", kind="nix")], "unknown-policy-kind", "policies.0.kind"),
        ([Candidate(name="a", kind="plateau", params={"factor": 7})], "invalid-parameters", "policies.0.params.factor"),
    ],
)
def test_candidates_that_cannot_be_put_are_refused(
    record: Callable[..., Scene], candidates: list[Candidate], code: str, field: str
) -> None:
    with pytest.raises(Refused) as refusal:
        replay(events(record()), candidates)
    assert (refusal.value.code, list(refusal.value.fields)) == (code, [field])


def test_two_owners_of_a_base_are_refused(record: Callable[..., Scene]) -> None:
    owners = [Candidate(name=kind, kind=kind) for kind in ("noise_scale", "goodput")]
    with pytest.raises(Refused, match="the base of batch_size is owned by policy noise_scale"):
        replay(events(record()), owners)


# ---- one policy among the others, as they were ---------------------------------------------------------------------


def test_a_policy_that_is_tried_as_it_was_decides_the_same_beside_what_came_and_went(
    record: Callable[..., Scene],
) -> None:
    scene = record(warmup={"steps": 50}, plateau={"patience": 1, "factor": 0.5}, noise_scale={})
    controller = scene.controller
    controller.put_policy(RUN, "twin", "plateau", {"patience": 1, "factor": 0.5}, "active", "ann", "", None)
    for _ in range(4):
        scene.tick(val_loss=1.0)
    controller.put_policy(RUN, "late", "plateau", {"patience": 0, "factor": 0.9}, "active", "ann", "", None)
    for _ in range(4):
        scene.tick(val_loss=1.0)
    controller.put_policy(RUN, "late", "plateau", {"patience": 0, "factor": 0.8}, "shadow", "ann", "", None)
    scene.tick(val_loss=1.0)
    controller.put_policy(RUN, "late", "plateau", {"patience": 0, "factor": 0.8}, "active", "ann", "", None)
    scene.tick(val_loss=1.0)
    controller.delete_policy(RUN, "late", "ann", "", None)
    scene.tick(val_loss=1.0)
    recorded = replay(events(scene))
    assert {"late", "twin", "warmup"} <= {one.policy for one in recorded.decisions}
    for name in ("warmup", "plateau", "noise_scale", "twin"):
        entry = scene.run.policies[name]
        tried = replay(events(scene), Candidate(name=name, kind=entry.kind, params=entry.params))
        assert tried.equal
        assert tried.values == recorded.values


def test_a_policy_that_came_late_is_tried_from_the_start(record: Callable[..., Scene]) -> None:
    scene = record(plateau={"patience": 9})
    scene.tick(val_loss=1.0)
    scene.tick(val_loss=1.0)
    scene.controller.put_policy(RUN, "cut", CUT.kind, CUT.params, "active", "ann", "", None)
    scene.tick(val_loss=1.0)
    scene.tick(val_loss=1.0)
    tried = replay(events(scene), CUT)
    assert [one.step for one in tried.recorded] == [80]  # a first reading is the best
    assert [one.step for one in tried.decisions] == [40, 60, 80]


def test_it_takes_the_base_from_a_policy_of_then(record: Callable[..., Scene]) -> None:
    scene = record(noise_scale={})
    scene.tick()
    scene.controller.delete_policy(RUN, "noise_scale", "ann", "", None)
    scene.tick()
    tried = replay(events(scene), Candidate(name="goodput", kind="goodput"))
    assert {one.policy for one in tried.decisions} <= {"goodput", "batch"}


def test_what_ran_beside_it_and_is_gone_is_named(record: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = record(warmup={}, plateau={})
    scene.tick()
    monkeypatch.setattr(Plateau, "rule", 99)
    with pytest.raises(Refused, match="recorded with rule 1 of kind plateau"):
        replay(events(scene), Candidate(name="warmup", kind="warmup"))
    replay(events(scene), Candidate(name="plateau", kind="plateau"))  # what is tried is the new one


# ---- from disk, and for a controller -------------------------------------------------------------------------------


def test_a_run_on_disk_is_replayed_with_its_metrics(record: Callable[..., Scene]) -> None:
    scene = record(early_stop={})
    for _ in range(3):
        scene.tick()
    scene.end()
    home = scene.metrics.parent
    journal = SqliteJournal(home / "journal.sqlite")
    journal.append(journal.take_over(), 0.0, RUN, scene.events())
    journal.append(1, 0.0, "unmeasured", scene.events()[:2])
    loss = Candidate(name="cut", kind="plateau", params={"metric": "loss", "patience": 0, "threshold": 0.5})
    for _ in range(2):  # with the controller there, then without
        assert replay_recorded(home, RUN).equal
        assert len(replay_recorded(home, RUN, [loss]).decisions) == 2
        journal.close()
    assert replay_recorded(home, "unmeasured").observations == 0
    with pytest.raises(Refused) as refusal:
        replay_recorded(home, "nix")
    assert refusal.value.code == "run-not-found"


def test_trying_a_policy_changes_nothing(record: Callable[..., Scene]) -> None:
    scene = record(plateau={}, warmup={})
    scene.controller.put_policy(RUN, "asleep", "stragglers", {}, "off", "ann", "", None)
    scene.tick(val_loss=1.0)
    before, run = scene.events(), scene.run
    wish = {"patience": 0}
    scene.controller.check_policy(RUN, "plateau", "plateau", wish, "shadow")
    for refused in (("new", "nix", {}), ("a-b", "plateau", {}), ("new", "plateau", {"patience": -1})):
        with pytest.raises(Refused):
            scene.controller.check_policy(RUN, *refused, "active")
    tried = Candidate(name="plateau", kind="plateau", params=wish, mode="shadow")
    replay_entries(scene.store.entries, scene.metrics / f"{RUN}.metrics", tried)
    assert (scene.events(), scene.run) == (before, run)
    scene.end()
    assert scene.run.state is RunState.FINISHED
    scene.controller.check_policy(RUN, "plateau", "plateau", wish, "active")  # of a run that has ended too


def test_many_values_are_thinned() -> None:
    values = Values()
    for step in range(5000):
        values.note(step, {"lr": float(step), "still": 1.0})
    traces = values.traces()
    assert MAX_POINTS / 2 < len(traces["lr"].step) <= MAX_POINTS
    assert (traces["lr"].step[0], traces["lr"].step[-1]) == (0, 4999)
    assert (traces["still"].step, traces["still"].value) == ([0, 4999], [1.0, 1.0])


def test_what_was_level_stays_level_however_much_else_is_thinned() -> None:
    values = Values()
    for step in range(20_000):  # warm-up, pinned for long, decay; a spike and a word on the way
        lr = 0.02 if 9_000 <= step < 15_000 else 1e-6 * step
        values.note(step, {"lr": 5.0 if step == 4_321 else lr, "sync": "sma" if 9_000 <= step < 15_000 else "local"})
    traces = values.traces()
    lr = dict(zip(traces["lr"].step, traces["lr"].value, strict=True))
    assert len(lr) <= MAX_POINTS
    assert [(step, value) for step, value in lr.items() if 9_000 <= step <= 15_000] == [
        (9_000, 0.02),
        (14_999, 0.02),
        (15_000, 1e-6 * 15_000),
    ]
    assert lr[4_321] == 5.0
    assert traces["sync"].step == [0, 8_999, 9_000, 14_999, 15_000, 19_999]


def test_of_a_staircase_with_too_many_stairs_no_long_one_slopes() -> None:
    values = Values()
    for step in range(50_000):  # 2,500 stairs, two of them long
        stair = 0 if step < 10_000 else 1 if 30_000 <= step < 40_000 else 2 + step // 10
        values.note(step, {"lr": stair})
    traces = values.traces()
    lr = dict(zip(traces["lr"].step, traces["lr"].value, strict=True))
    assert len(lr) <= MAX_POINTS
    assert [lr.get(step) for step in (0, 9_999, 30_000, 39_999)] == [0, 0, 1, 1]


def test_what_a_formation_voids_is_gone_from_the_values() -> None:
    values = Values()
    for step, lr in ((0, 0.1), (10, 0.1), (20, 0.2), (30, 0.3)):
        values.note(step, {"lr": lr})
    values.rewind(20)
    values.note(25, {"lr": 0.5})
    assert values.traces()["lr"].step == [0, 10, 20, 25]
    assert values.traces()["lr"].value == [0.1, 0.1, 0.2, 0.5]


def test_a_roll_back_by_hand_goes_back_in_a_what_if_too(record: Callable[..., Scene]) -> None:
    scene = record(early_stop={"patience": 100})
    for i in range(4):
        scene.tick(checkpoint=i == 1, val_loss=1.0)  # cut at 40, 60 and 80, were it there
    scene.controller.command(RUN, Command("rollback", "by hand"), "bob")
    scene.go_back()
    scene.tick(val_loss=1.0)
    replayed = replay(events(scene), [CUT])
    assert [(one.step, one.before, one.after) for one in replayed.decisions] == [
        (40, 0.1, 0.05),
        (60, 0.05, 0.025),
        (80, 0.025, 0.0125),
        (60, 0.1, 0.05),  # the checkpoint was told before the decision of its step
    ]
