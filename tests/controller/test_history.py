from dataclasses import replace
from itertools import pairwise

from trimtab.controller.batching import Batching
from trimtab.controller.events import (
    WORLD_SIZE,
    Applied,
    Cause,
    Change,
    Formed,
    Observed,
    Outcome,
    PolicyDeleted,
    PolicyPut,
    Stated,
    Told,
    Versioned,
)
from trimtab.controller.history import History, Record
from trimtab.controller.hyperparameters import HyperParameter, Version, initial_parameter
from trimtab.controller.observation import Command, Notice, Observation, Set
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Constant, Progress

BATCH = HyperParameter(name="batch_size", kind="integer", default=8, min=1)
FIRST = Version(1, 1, Batching(2, 4, 4), {"batch_size": initial_parameter(BATCH)})


def filled(*numbers: int) -> History:
    history = History()
    for number in numbers:
        change = Change("lr", 0.1, 0.1 * number, "ann", "")
        history.take(Versioned(replace(FIRST, number=number), (change,), Progress(number, 8 * number)), float(number))
    return history


def statuses(history: History) -> dict[int | None, str]:
    return {record.version: record.status for record in history.after(0, 1000) if record.kind == "version"}


def test_a_version_is_accepted_then_applied_by_each_rank() -> None:
    history = filled(2)
    assert statuses(history) == {2: "accepted"}
    history.take(Applied(((0, 2, 11),)), 3.0)
    (record,) = history.take(Applied(((1, 2, 11),)), 3.0)
    assert record == Record(1, "version", 2.0, 2, record.changes, "applied", 2, {0: 11, 1: 11})
    assert history.after(0, 10) == [record]


def test_a_version_is_applied_when_all_ranks_of_the_formation_run_with_it() -> None:
    history = filled(2, 3)
    history.take(Formed(1, 2, Progress()), 2.0)
    history.take(Applied(((0, 2, 11), (0, 3, 12))), 3.0)
    assert statuses(history) == {2: "applied", 3: "accepted"}  # who begins with 3 has seen that all began with 2
    history.take(Applied(((1, 2, 11),)), 3.0)
    assert statuses(history) == {2: "applied", 3: "accepted"}
    assert history.after(0, 1)[0].applied == {0: 11, 1: 11}
    history.take(Stated(RunState.FINISHED), 4.0)
    assert statuses(history) == {2: "applied", 3: "applied"}


def test_what_a_later_version_brings_along_is_applied_with_it() -> None:
    """As a switch of strategy, whose group brings a version of its own."""
    history = filled(2)
    moved = (Change("sync", "allreduce", "local", "ann", ""),)
    history.take(Versioned(replace(FIRST, number=3), moved, Progress(3, 24)), 3.0)
    grown = (Change(WORLD_SIZE, 1, 2, "workers", ""), Change("lr", 0.2, 0.3, "batch", ""))
    history.take(Versioned(replace(FIRST, number=4), grown, Progress(4, 32)), 4.0)
    history.take(Formed(1, 2, Progress()), 2.0)
    history.take(Applied(((0, 4, 11),)), 5.0)
    assert statuses(history) == {2: "superseded", 3: "accepted", 4: "accepted"}
    history.take(Applied(((1, 4, 11),)), 5.0)
    assert statuses(history) == {2: "superseded", 3: "applied", 4: "applied"}
    assert history.after(1, 1)[0].applied == {0: 11, 1: 11}
    assert history.waits() == frozenset()


def test_a_version_that_is_skipped_is_superseded() -> None:
    history = filled(2, 3, 4)
    changed = history.take(Applied(((0, 3, 11),)), 3.0)
    assert {record.version for record in changed} == {2, 3}
    assert statuses(history) == {2: "superseded", 3: "applied", 4: "accepted"}
    history.take(Applied(((1, 3, 11), (1, 4, 12))), 3.0)
    assert statuses(history) == {2: "superseded", 3: "applied", 4: "applied"}


def test_what_a_later_version_leaves_as_it_was_set_is_applied_with_it() -> None:
    history = filled(2)
    steps = ("allreduce", "local", "allreduce", "allreduce")  # the last one: the pin is taken off
    for number, (before, after) in enumerate(pairwise(steps), start=3):
        change = Change("sync", before, after, "ann", "")
        history.take(Versioned(replace(FIRST, number=number), (change,), Progress(number, 8 * number)), float(number))
    history.take(Applied(((0, 5, 11),)), 6.0)
    assert statuses(history) == {2: "applied", 3: "superseded", 4: "applied", 5: "applied"}


def test_what_rounding_alone_has_moved_is_not_told_as_moved() -> None:
    history = History()
    folded = Change("lr", 4.701412568559716e-09, 4.701412568559717e-09, "ann", "its factor joins the base")
    moved = Change("momentum", 0.9, 0.900000001, "ann", "")
    entry = Change("paused", False, True, "ann", "")
    (record,) = history.take(Versioned(replace(FIRST, number=2), (folded, moved, entry), Progress()), 2.0)
    assert record.changes == (replace(folded, after=folded.before), moved, entry)


def test_what_no_rank_came_to_is_unapplied_until_the_run_goes_on() -> None:
    history = filled(2, 3)
    history.take(Applied(((0, 2, 11),)), 3.0)
    history.take(Stated(RunState.RUNNING), 3.0)
    assert statuses(history)[3] == "accepted"
    history.take(Stated(RunState.LOST), 3.0)
    assert statuses(history) == {2: "applied", 3: "unapplied"}
    history.take(Applied(((0, 3, 20),)), 3.0)
    assert statuses(history)[3] == "applied"


def test_a_version_of_before_the_history_is_no_matter() -> None:
    assert filled().take(Applied(((0, 1, 1),)), 3.0) == []


def sizes(history: History) -> list[tuple[str, object, object, str]]:
    """What is told of the number of ranks."""
    found = [(record, change) for record in history.after(0, 100) for change in record.changes]
    return [(r.kind, c.before, c.after, c.reason) for r, c in found if c.param == WORLD_SIZE]


def in_place(formation: int, size: int, cause: Cause, lost: int = 0) -> Formed:
    return Formed(formation, size, Progress(20, 160), cause=cause, pause_s=0.312, lost=lost)


def test_a_resize_is_told_again_with_its_pause() -> None:
    history = filled(2)
    history.take(Formed(1, 2, Progress()), 2.0)
    wish = Change(WORLD_SIZE, 2, 3, "workers", "2 → 3 workers")
    (asked,) = history.take(Versioned(replace(FIRST, number=3), (wish,), Progress(10, 80)), 3.0)
    (told,) = history.take(in_place(2, 3, "resize"), 4.0)
    assert (told.id, told.version) == (asked.id, 3)
    assert told.changes == (replace(wish, reason="2 → 3 workers; training stood still for 0.31 s"),)


def test_who_is_lost_and_replaced_at_once_is_told_without_a_version() -> None:
    history = filled()
    history.take(Formed(1, 3, Progress()), 2.0)
    (told,) = history.take(in_place(2, 3, "loss", lost=1), 3.0)
    assert (told.kind, told.version, told.status, told.step) == ("formation", None, "applied", 20)
    reason = "1 of 3 workers lost, others came in; training stood still for 0.31 s"
    assert sizes(history) == [("formation", 3, 3, reason)]


def test_a_loss_settles_what_the_lost_can_no_longer_tell() -> None:
    history = filled(2, 3)
    history.take(Formed(1, 2, Progress()), 2.0)
    history.take(Applied(((0, 2, 11),)), 3.0)
    assert statuses(history) == {2: "accepted", 3: "accepted"}
    (settled,) = history.take(in_place(2, 1, "loss", lost=1), 3.0)
    assert (settled.version, settled.status, settled.applied) == (2, "applied", {0: 11})
    assert statuses(history) == {2: "applied", 3: "accepted"}
    history.take(Applied(((0, 3, 21),)), 3.0)
    assert statuses(history) == {2: "applied", 3: "applied"}


def observed(refused: str | None, step: int = 1, **faults: str) -> Observed:
    observation = Observation(Progress(step, step), {}, FIRST.batching.plan(8))
    outcome = Outcome("a", Set("lr", Constant(0.1), "why"), refused)
    return Observed(observation, (outcome,), {}, faults)


def test_a_refusal_is_told_once() -> None:
    history = filled()
    (record,) = history.take(observed("pinned by ann", 5), 1.0)
    assert (record.kind, record.status, record.step) == ("refused", "refused", 5)
    assert record.changes[0].reason == "why (refused: pinned by ann)"
    assert history.take(observed("pinned by ann", 6), 1.0) == []
    assert len(history.take(observed("pinned by bob", 7), 1.0)) == 1
    assert history.take(observed(None, 8), 1.0) == []
    assert len(history.take(observed("pinned by bob", 9), 1.0)) == 1
    assert len(history) == 3


def test_a_fault_and_a_refused_command_are_told() -> None:
    history = filled()
    records = history.take(observed(None, 5, bad="ValueError: x"), 1.0)
    assert [r.changes[0].reason for r in records] == ["it failed: ValueError: x"]
    event = replace(observed(None), outcomes=(Outcome("a", Command("stop", "nan"), "no"),))
    assert [r.changes[0].param for r in history.take(event, 1.0)] == ["run"]


def test_changes_of_policies_are_told() -> None:
    history = filled()
    params = {"metric": "loss", "instead": None, "shrink": True, "marks": [0.5, 0.8]}
    history.take(PolicyPut("a", "plateau", 1, params, "active", "ann", "try"), 1.0)
    history.take(PolicyDeleted("a", "bob"), 1.0)
    told = [(r.kind, r.status, r.changes[0].param, r.changes[0].after, r.changes[0].by) for r in history.after(0, 9)]
    assert told == [  # in force with the controller's next tick: no rank has to take anything up
        ("policy", "applied", "policy a", "active: plateau(metric=loss, shrink=true, marks=[0.5, 0.8])", "ann"),
        ("policy", "applied", "policy a", "deleted", "bob"),
    ]
    assert [r.id for r in history.after(1, 9)] == [2]


def test_notices_are_told_each_time() -> None:
    history = filled()
    outcomes = (Outcome("a", Notice("rank 1 is slow", rank=1)), Outcome("a", Notice("look")))
    event = replace(observed(None, 5), outcomes=outcomes)
    records = [*history.take(event, 1.0), *history.take(event, 2.0)]
    assert [(r.kind, r.status, r.step, r.changes[0].param) for r in records] == 2 * [
        ("notice", "accepted", 5, "rank 1"),
        ("notice", "accepted", 5, "run"),
    ]
    assert records[0].changes[0] == Change("rank 1", None, None, "a", "rank 1 is slow")


def test_what_the_driver_tells_of_the_workers_is_kept() -> None:
    history = filled()
    (record,) = history.take(Told("no room for another", Progress(7, 70)), 1.0)
    assert (record.kind, record.step) == ("notice", 7)
    assert record.changes == (Change("run", None, None, "workers", "no room for another"),)
