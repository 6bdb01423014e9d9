"""The groups of a formation over workers that only say what is to be told of them."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trimtab.workers import groups
from trimtab.workers.crew import Left, News, Parked, Placed
from trimtab.workers.groups import Groups, Wanted
from trimtab.workers.roster import Hand, Roster


class Crew:
    """There is room for `room` workers; newcomers are ready at once."""

    def __init__(self, tell: Any, room: int = 99) -> None:
        self._tell = tell
        self._room = room
        self.dismissed: list[str] = []

    def place(self, hand: Hand) -> None:
        self._room -= 1
        if self._room >= 0:
            self._tell(Placed(hand.name))

    def start(self, name: str, _train: Any, assignment: Any) -> None:
        if assignment.joins:
            self._tell(Parked(name))

    def dismiss(self, name: str) -> None:
        self.dismissed.append(name)

    def ping(self, _name: str) -> "Future[Any]":
        answered: Future[Any] = Future()
        answered.set_result(None)
        return answered

    def on_draining_nodes(self) -> Sequence[int]:
        return ()


class Door:
    """All come to the first group's, and only newcomers to the next."""

    def __init__(self) -> None:
        self.named: list[list[str]] = []

    def name(self, members: Sequence[str], lost: bool = False) -> int:
        assert not lost
        self.named.append(list(members))
        return len(self.named)

    def absent(self, members: Sequence[str]) -> list[str]:
        return [one for one in members if len(self.named) > 1 and one in self.named[0]]

    def complained(self) -> bool:
        return False

    def stepped(self) -> bool:
        return True


Called = list[tuple[Any, ...]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """What the controller is called with; the groups of the test lose no time."""
    heard: Called = []
    monkeypatch.setattr(groups, "call", lambda *told, **_: heard.append(told))
    monkeypatch.setattr(groups, "TICK_S", 0.01)
    monkeypatch.setattr(groups, "replace", lambda one, **changes: SimpleNamespace(**vars(one) | changes))
    return heard


def formation(crew: Crew, door: Door, news: "queue.Queue[News | Wanted]") -> Groups:
    """Of one worker at first."""
    plan: Any = SimpleNamespace(run="r", train=None, max_failures=3)
    return Groups(plan, Roster(1), cast(Any, crew), cast(Any, door), cast(Any, SimpleNamespace(joins=False)), news)


@pytest.mark.usefixtures("called")
def test_a_newcomer_called_at_the_last_step_waits_for_nobody() -> None:
    news: queue.Queue[News | Wanted] = queue.Queue()
    crew, door = Crew(news.put), Door()
    ended: list[str | None] = []
    thread = threading.Thread(target=lambda: ended.append(formation(crew, door, news).run()), daemon=True)
    thread.start()
    news.put(Wanted(2, 1))
    while len(door.named) < 2:
        assert thread.is_alive()
        thread.join(0.01)
    news.put(Left("worker-1", "ended"))  # it trained to the end before it saw the group that was named
    thread.join(10)
    assert door.named == [["worker-1"], ["worker-1", "worker-2"]]
    assert (ended, crew.dismissed) == ([None], ["worker-1", "worker-2"])


def test_who_asks_for_more_than_there_is_room_for_is_told_once(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROOM_S", 0.05)
    news: queue.Queue[News | Wanted] = queue.Queue()
    crew, door = Crew(news.put, room=1), Door()
    thread = threading.Thread(target=formation(crew, door, news).run, daemon=True)
    thread.start()
    news.put(Wanted(3, 1))
    told = "the cluster has no room yet for 2 workers more: training goes on with those it has"
    for _ in range(50):
        thread.join(0.02)
    assert [one for one in called if one[0] == "tell"] == [("tell", "r", told)]
    news.put(Left("worker-1", "ended"))
    thread.join(10)
    assert door.named == [["worker-1"]]
