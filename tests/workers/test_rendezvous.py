"""Members that come together at the driver's door, late, in vain, or no longer wanted: threads over a real store."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from trimtab.workers.group import Group
from trimtab.workers.rendezvous import Departed, Doorkeeper, Membership, Rendezvous
from trimtab.workers.reunion import Reunion

WAIT_S = 20.0
MOMENT_S = 0.1  # long enough for many looks at the door


@pytest.fixture
def door() -> Doorkeeper:
    return Doorkeeper("127.0.0.1")


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def member(door: Doorkeeper, name: str) -> Rendezvous:
    return Rendezvous(door.address, name)


def come(one: Rendezvous, after: int = 0) -> list[Membership]:
    """The groups that it is called into until it has met one."""
    called = []
    while True:
        called.append(one.next(called[-1].number if called else after))
        if one.meet(called[-1]):
            return called


def still_waits(future: "Future[object]") -> bool:
    time.sleep(MOMENT_S)
    return not future.done()


def test_members_know_their_rank_and_meet(door: Doorkeeper, crowd: ThreadPoolExecutor) -> None:
    assert door.name(["a", "b", "c"]) == 1
    came = [crowd.submit(come, member(door, name)) for name in "cab"]
    found = [future.result(WAIT_S) for future in came]
    assert found == [[Membership(1, rank, ("a", "b", "c"))] for rank in (2, 0, 1)]
    assert [groups[0].size for groups in found] == [3, 3, 3]
    assert door.absent(["a", "b", "c"]) == []


def test_a_late_member_is_waited_for(door: Doorkeeper, crowd: ThreadPoolExecutor) -> None:
    door.name(["a", "late"])
    first = crowd.submit(come, member(door, "a"))
    assert still_waits(first)
    assert door.absent(["a", "late"]) == ["late"]
    assert come(member(door, "late"))[0].rank == 1
    assert first.result(WAIT_S)[0].rank == 0


def test_a_member_that_never_comes_is_left_behind_when_the_next_group_is_named(
    door: Doorkeeper, crowd: ThreadPoolExecutor
) -> None:
    door.name(["a", "never", "b"])
    came = [crowd.submit(come, member(door, name)) for name in "ab"]
    assert all(still_waits(future) for future in came)
    assert door.absent(["a", "never", "b"]) == ["never"]
    assert door.name(["a", "b"]) == 2
    for rank, future in enumerate(came):
        assert [(g.number, g.rank, g.size) for g in future.result(WAIT_S)] == [(1, 2 * rank, 3), (2, rank, 2)]
    assert door.absent(["a", "b"]) == []


def test_groups_named_in_quick_succession_are_passed_over(door: Doorkeeper) -> None:
    for _ in range(5):
        door.name(["a", "nobody"])
    door.name(["a"])
    assert come(member(door, "a")) == [Membership(6, 0, ("a",))]


def test_a_group_is_entered_once(door: Doorkeeper, crowd: ThreadPoolExecutor) -> None:
    door.name(["a"])
    one = member(door, "a")
    assert come(one)[0].number == 1
    again = crowd.submit(come, one, 1)
    assert still_waits(again)
    door.name(["a"])
    assert again.result(WAIT_S) == [Membership(2, 0, ("a",))]


def test_who_was_a_member_and_is_not_called_departs(door: Doorkeeper, crowd: ThreadPoolExecutor) -> None:
    door.name(["a", "b"])
    members = [member(door, name) for name in "ab"]
    for future in [crowd.submit(come, one) for one in members]:
        future.result(WAIT_S)
    going = crowd.submit(come, members[1], 1)
    assert still_waits(going)
    door.name(["a"])
    with pytest.raises(Departed, match="b is no longer needed"):
        going.result(WAIT_S)
    assert come(members[0], 1) == [Membership(2, 0, ("a",))]


def test_who_waits_at_the_door_and_is_not_called_again_departs(door: Doorkeeper, crowd: ThreadPoolExecutor) -> None:
    door.name(["a", "b", "never"])
    going = crowd.submit(come, member(door, "b"))
    assert still_waits(going)
    door.name(["a"])
    with pytest.raises(Departed):
        going.result(WAIT_S)


def test_a_train_function_cannot_catch_its_departure_by_mistake() -> None:
    assert not issubclass(Departed, Exception)


def test_a_newcomer_waits_through_groups_that_it_is_no_member_of(door: Doorkeeper, crowd: ThreadPoolExecutor) -> None:
    door.name(["a"])
    waits = crowd.submit(come, member(door, "new"))
    assert still_waits(waits)
    door.name(["a", "b"])
    assert still_waits(waits)
    door.name(["a", "new"])
    assert come(member(door, "a"))[-1].number == 3
    assert waits.result(WAIT_S) == [Membership(3, 1, ("a", "new"))]


def arrived(one: Rendezvous) -> None:
    """What it has told is at the store: that answers on the same line only after it."""
    one.store.check(["any"])


def test_what_members_tell_is_told_of_the_newest_group_only(door: Doorkeeper) -> None:
    number = door.name(["a"])
    one = member(door, "a")
    assert not door.complained()
    assert not door.stepped()
    one.stepped(number)
    one.complain(number)
    arrived(one)
    assert door.complained()
    assert door.stepped()
    door.name(["a"])
    assert not door.complained()
    assert not door.stepped()
    one.complain(number)  # late
    arrived(one)
    assert not door.complained()
    assert door.absent(["a"]) == ["a"]


def test_members_that_come_and_go_by_chance_all_end_in_the_last_group(door: Doorkeeper) -> None:
    """Eight members, thirty groups named at any moment, each of some of them: who is left out departs for good."""
    names = [f"m{i}" for i in range(8)]
    ended: dict[str, int] = {}

    def live(name: str) -> None:
        one, at = member(door, name), 0
        try:
            while at < 30:
                at = come(one, at)[-1].number
        except Departed:
            at = -1
        ended[name] = at

    threads = [threading.Thread(target=live, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    door.name(names)
    until = time.monotonic() + WAIT_S
    while door.absent(names):
        assert time.monotonic() < until
    for number in range(1, 30):
        door.name(names[: 8 - number // 6])
        time.sleep(0.002 * (number % 5))
    for thread in threads:
        thread.join(WAIT_S)
    assert len(ended) == 8, "somebody waits for ever"
    assert [ended[name] for name in names[:4]] == [30] * 4
    assert [ended[name] for name in names[4:]] == [-1] * 4


def test_a_group_that_is_given_up_is_aborted_once_for_backends_that_would_wait_on() -> None:
    door = Doorkeeper("127.0.0.1")
    aborted = threading.Event()

    class Waiting(Group):
        def abort(self) -> None:
            assert not aborted.is_set()
            aborted.set()

    reunion, ended = Reunion(Rendezvous(door.address, "a"), "cpu:gloo,cuda:nccl", lambda: None), threading.Event()
    reunion._group = Waiting(1, 0, 2, None)
    watch = threading.Thread(target=reunion.watch, args=(ended,), daemon=True)
    watch.start()
    door.name(["a", "b"])
    door.name(["a", "b", "c"])  # for a resize: nobody is lost
    assert not aborted.wait(0.3)
    door.name(["a"], lost=True)
    assert aborted.wait(10)
    ended.set()
    watch.join(10)
