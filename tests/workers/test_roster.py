"""Who trains, who is on the way and who forms the next group, as workers come, go and are lost."""

import pytest

from trimtab.workers.roster import Roster, Stage


def fill(roster: Roster, stage: Stage) -> list[str]:
    """Everybody who is missing, at `stage`."""
    added = []
    while missing := list(roster.missing()):
        added += [roster.add(place, stage).name for place in missing]
    return added


def training(workers: int, learners: int = 1, spares: int = 0, least: int = 1) -> Roster:
    """One whose first group has been formed, and whose spares are ready."""
    roster = Roster(workers, learners, spares, least)
    fill(roster, Stage.PLACING)
    roster.call([hand.name for hand in roster.cast()])
    for name in roster.names:
        if roster.stage(name) is Stage.PLACING:
            roster.move(name, Stage.READY)
    return roster


def places(roster: Roster, names: list[str]) -> list[int]:
    return [next(hand.place for hand in roster.cast() if hand.name == name) for name in names]


def test_it_begins_with_everybody_missing_spares_too() -> None:
    roster = Roster(2, learners=2, spares=1)
    assert list(roster.missing()) == [None, None, None]  # three places; who shares one is asked for when it is there
    names = fill(roster, Stage.PLACING)
    assert len(names) == 2 * 2 + 1
    assert len(set(names)) == len(names)
    assert [len(roster.cast()), len(roster.members)] == [4, 0]
    assert places(roster, [hand.name for hand in roster.cast()]) == [1, 1, 2, 2]
    assert roster.surplus() == []


def test_a_group_that_is_complete_is_not_due() -> None:
    roster = training(3, spares=1)
    assert roster.members == ["worker-1", "worker-2", "worker-3"]
    assert list(roster.missing()) == []
    assert roster.due() is None
    assert roster.surplus() == []


@pytest.mark.parametrize("lost", ["worker-1", "worker-2", "worker-3"])
def test_a_loss_is_made_up_for_by_a_spare_at_once_and_the_spare_is_replaced(lost: str) -> None:
    roster = training(3, spares=1)
    left = [name for name in roster.members if name != lost]
    roster.remove(lost)
    assert roster.rallied() == [*left, "worker-4"]
    roster.call([*left, "worker-4"])
    assert list(roster.missing()) == [None]
    assert roster.add(None, Stage.PLACING).name == "worker-5"
    assert roster.cast() == [hand for hand in roster.cast() if hand.name != "worker-5"]
    assert roster.due() is None


def test_without_a_spare_whoever_is_left_goes_on_and_the_newcomer_joins_later() -> None:
    roster = training(3)
    roster.remove("worker-1")
    assert roster.rallied() == ["worker-2", "worker-3"]
    roster.call(["worker-2", "worker-3"])
    [name] = fill(roster, Stage.PLACING)
    assert roster.due() is None  # nobody waits for who has no place
    roster.move(name, Stage.STARTING)
    assert roster.due() is None
    assert roster.rallied() == ["worker-2", "worker-3"]  # as another loss would want it now
    roster.move(name, Stage.READY)
    assert roster.due() == ["worker-2", "worker-3", name]


def test_a_spare_that_is_still_starting_is_waited_for_unless_there_is_a_loss() -> None:
    roster = training(2, spares=1)
    roster.move("worker-3", Stage.STARTING)
    roster.remove("worker-2")
    assert roster.rallied() == ["worker-1"]
    roster.call(["worker-1"])
    assert roster.due() is None
    roster.move("worker-3", Stage.READY)
    assert roster.due() == ["worker-1", "worker-3"]


def test_growing_keeps_the_ranks_of_who_is_there_and_waits_for_all_who_start() -> None:
    roster = training(1)
    roster.want(4, 1)
    names = fill(roster, Stage.PLACING)
    assert len(names) == 3
    for name in names[:2]:
        roster.move(name, Stage.STARTING)
    roster.move(names[0], Stage.READY)
    assert roster.due() is None  # one resize, not two
    roster.move(names[1], Stage.READY)
    assert roster.due() == ["worker-1", *names[:2]]  # the third has no place, and holds up nobody
    roster.call(["worker-1", *names[:2]])
    assert roster.due() is None


def test_a_spare_joins_a_group_that_grows() -> None:
    roster = training(2, spares=1)
    roster.want(3, 1)
    assert roster.due() == ["worker-1", "worker-2", "worker-3"]
    assert list(roster.missing()) == [None]


def test_shrinking_lets_the_last_places_go_and_who_leaves_trains_until_the_next_group() -> None:
    roster = training(4)
    roster.want(2, 1)
    assert list(roster.missing()) == []
    assert roster.surplus() == []  # members leave with the next group
    assert roster.due() == ["worker-1", "worker-2"]
    roster.call(["worker-1", "worker-2"])
    assert roster.members == ["worker-1", "worker-2"]
    assert [roster.stage(name) for name in ("worker-3", "worker-4")] == [Stage.LEAVING] * 2
    assert roster.surplus() == []
    assert roster.due() is None
    roster.remove("worker-3")
    roster.remove("worker-4")
    assert roster.names == ["worker-1", "worker-2"]


def test_who_leaves_is_no_help_when_the_group_grows_again() -> None:
    roster = training(2)
    roster.want(1, 1)
    roster.call(["worker-1"])
    roster.want(2, 1)
    assert list(roster.missing()) == [None]
    [name] = fill(roster, Stage.READY)
    assert roster.due() == ["worker-1", name]


def test_newcomers_that_are_no_longer_wanted_are_surplus_the_least_advanced_first() -> None:
    roster = training(1)
    roster.want(4, 1)
    waits, starts, ready = fill(roster, Stage.PLACING)
    roster.move(starts, Stage.STARTING)
    roster.move(ready, Stage.READY)
    roster.want(2, 1)
    assert set(roster.surplus()) == {waits, starts}
    for name in roster.surplus():
        roster.remove(name)
    assert roster.due() == ["worker-1", ready]
    roster.want(1, 1)
    assert roster.surplus() == [ready]


def test_spares_stay_when_the_group_shrinks() -> None:
    roster = training(4, spares=2)
    roster.want(2, 1)
    assert roster.surplus() == []
    roster.call(["worker-1", "worker-2"])
    assert list(roster.missing()) == []


def test_learners_share_places() -> None:
    roster = training(2)
    roster.want(2, 2)
    assert list(roster.missing()) == [1, 2]
    fill(roster, Stage.READY)
    group = roster.due()
    assert group == ["worker-1", "worker-2", "worker-3", "worker-4"]
    assert places(roster, group) == [1, 2, 1, 2]
    roster.call(group)
    roster.want(2, 1)
    assert roster.due() == ["worker-1", "worker-2"]
    assert list(roster.missing()) == []


def test_learners_and_places_change_in_one_group() -> None:
    roster = training(2, learners=2)
    roster.want(1, 3)
    assert list(roster.missing()) == [1]
    [name] = fill(roster, Stage.READY)
    group = roster.due()
    assert group is not None
    assert places(roster, group) == [1, 1, 1]
    assert group[-1] == name


def test_members_stand_in_the_order_of_their_ranks() -> None:
    roster = training(2, learners=2)
    group = [hand.name for hand in roster.cast()]
    assert places(roster, group) == [1, 1, 2, 2]
    roster.call(group)
    assert roster.members == group  # else who stays does not keep its order in the next group


def test_a_lost_learner_is_sought_at_its_own_place() -> None:
    roster = training(2, learners=2)
    roster.remove("worker-1")
    assert list(roster.missing()) == [1]


def test_a_spare_stands_on_a_place_of_its_own_with_one_worker_whatever_the_learners() -> None:
    roster = training(1, learners=2, spares=1)
    assert roster.members == ["worker-1", "worker-3"]
    for name in roster.members:
        roster.remove(name)  # the whole device is gone
    assert roster.rallied() == ["worker-2"]
    roster.call(["worker-2"])
    assert list(roster.missing()) == [2, None]  # its second learner, and another spare


def test_places_that_the_cluster_takes_away_are_left_when_others_are_there() -> None:
    roster = training(2)
    assert roster.evacuate(1)
    assert not roster.evacuate(1)  # no news
    assert list(roster.missing()) == [None]
    [name] = fill(roster, Stage.PLACING)
    roster.move(name, Stage.READY)
    assert roster.due() == ["worker-2", name]
    roster.call(["worker-2", name])
    assert roster.stage("worker-1") is Stage.LEAVING


def test_a_spare_takes_over_from_a_place_that_is_taken_away() -> None:
    roster = training(2, spares=1)
    roster.evacuate(2)
    assert roster.due() == ["worker-1", "worker-3"]
    assert list(roster.missing()) == [None]


def test_where_all_places_are_taken_away_one_member_hands_over_what_it_has_learned() -> None:
    roster = training(2)
    roster.evacuate(1)
    roster.evacuate(2)
    assert roster.due() is None  # nobody else is there yet
    first, second = fill(roster, Stage.PLACING)
    roster.move(first, Stage.READY)
    roster.move(second, Stage.READY)
    assert roster.due() == ["worker-1", first, second]
    roster.call(["worker-1", first, second])
    assert roster.due() == [first, second]


def test_who_is_left_of_places_that_are_all_taken_away_goes_on() -> None:
    roster = training(2)
    roster.evacuate(1)
    roster.evacuate(2)
    roster.remove("worker-1")
    assert roster.rallied() == ["worker-2"]


def test_a_group_that_is_too_small_is_not_formed() -> None:
    roster = training(3, least=3)
    roster.remove("worker-2")
    assert roster.rallied() is None
    [name] = fill(roster, Stage.STARTING)
    assert roster.due() is None
    roster.move(name, Stage.READY)
    assert roster.rallied() == ["worker-1", "worker-3", name]


def test_names_are_never_used_twice_and_new_places_neither() -> None:
    roster = training(2)
    roster.remove("worker-2")
    assert roster.add(None, Stage.PLACING) == type(roster.cast()[0])("worker-3", 3, Stage.PLACING)
    assert "worker-2" not in roster
    assert "worker-3" in roster


def test_who_was_to_leave_is_called_back_where_the_smaller_group_did_not_come_about() -> None:
    roster = training(3)
    roster.want(1, 1)
    roster.call(["worker-1"])
    roster.remove("worker-1")
    assert roster.members == []
    roster.recall()
    assert roster.members == ["worker-2", "worker-3"]
    assert roster.rallied() == ["worker-2"]
