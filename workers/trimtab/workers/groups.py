"""The groups of one formation in new processes: who is called into the next, and when."""

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from trimtab.controller.actor import call
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.events import RunSpec
from trimtab.controller.state import RunState
from trimtab.controller.sync import counted
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoints import Place
from trimtab.workers.crew import Crew, Left, News, Parked, Placed, Resources
from trimtab.workers.group import is_loss
from trimtab.workers.peers import TIMEOUT_S
from trimtab.workers.rendezvous import Doorkeeper
from trimtab.workers.reunion import Orphaned
from trimtab.workers.roster import Roster, Stage
from trimtab.workers.worker import Train

log = logging.getLogger(__name__)

ROOM_S = 5.0  # that workers wait without a word for the cluster to have room
TICK_S = 1.0  # between two looks at what nobody tells
PING_S = 5.0  # between two pings of a worker
SILENCE_S = 30.0  # after which a process that has answered before, and no longer does, is ended
DOOR_S = TIMEOUT_S  # that a member may take to come to the next group's door
MAX_STILLBORN = 3  # newcomers in a row that ended before they were ready, after which no more are started


class TrainingError(RuntimeError):
    """The train function raised, or workers were lost too often; the message ends with what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a driver needs to carry a run through."""

    run: str
    spec: RunSpec
    train: Train
    resources: Resources
    checkpoints: Place
    checkpoint_steps: int | None
    max_failures: int  # losses in a row without a step in between, and restarts from a checkpoint
    spares: int = 0  # workers that are kept ready beside those that train
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The size that is asked for now."""

    workers: int
    learners: int


class Groups:
    """The groups of one formation in new processes, from the first to the last."""

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        crew: Crew,
        door: Doorkeeper,
        assignment: Assignment,
        news: "queue.Queue[News | Wanted]",
    ) -> None:
        self._plan = plan
        self._roster = roster
        self._crew = crew
        self._door = door
        self._assignment = assignment
        self._news = news
        self._finished = False  # a member has come to the run's end
        self._named: list[str] = []  # members of the newest group
        self._new: list[str] = []  # those of them who trained in none before
        self._named_at = 0.0
        self._rallied = False  # was it named because the last one was lost?
        self._together = False  # have they all come to its door?
        self._broken = False  # members were lost, and too few are there to go on
        self._complained = 0  # looks in a row that found it broken with nobody lost
        self._fruitless = 0  # losses since the last step
        self._stillborn = 0
        self._pings: dict[str, tuple[float, Future[Any]]] = {}
        self._heard: set[str] = set()  # who has answered one; a process may take long to start
        self._looked = 0.0
        self._placing: dict[str, float] = {}  # since when somebody waits for the cluster to have room

    def run(self) -> str | None:
        """Why nobody was left, or None if the run has ended. Raises TrainingError."""
        if not self._begin():
            return None
        last = "no worker is left"
        while True:
            try:
                news = self._news.get(timeout=TICK_S)
            except queue.Empty:
                news = None
            match news:
                case Wanted():
                    self._roster.want(news.workers, news.learners)
                    self._stillborn = 0
                case Placed() if news.name in self._roster and self._roster.stage(news.name) is Stage.PLACING:
                    self._start(news.name)
                case Parked() if news.name in self._roster:
                    self._stillborn = 0
                    self._roster.move(news.name, Stage.READY)
                case Left() if news.name in self._roster:
                    last = f"the last: {news.error or news.ending}"
                    self._left(news)
            if not self._roster.members:
                return None if self._finished else last
            self._look()
            if not self._finished:
                self._proceed()

    # ---- the first group ------------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Start the first group once there is room for it; False if the run was stopped before."""
        self._ask()
        first = [hand.name for hand in self._roster.cast()]
        for name in first:
            del self._placing[name]
        waiting, patient, wishes = set(first), False, list[Wanted]()
        while waiting:
            try:
                news = self._news.get(timeout=ROOM_S)
            except queue.Empty:
                if self._stopping():
                    return False
                if not patient:
                    patient = True
                    told = f"waiting for room for {counted(len(first))}: others hold the cluster"
                    log.warning("run %s: %s", self._plan.run, told)
                    self._later("set_state", RunState.STARTING, told)
                continue
            if isinstance(news, Wanted):
                wishes.append(news)
            elif isinstance(news, Placed):
                waiting.discard(news.name)
                if news.name not in first:  # a spare
                    self._start(news.name)
        for wish in wishes:  # the size that was asked for meanwhile
            self._news.put(wish)
        self._name(first)
        for rank, name in enumerate(first):
            self._crew.start(name, self._plan.train, replace(self._assignment, worker=name, rank=rank))
        return True

    def _stopping(self) -> bool:
        try:
            return bool(call("run", self._plan.run).state is RunState.STOPPING)
        except ControllerUnreachable:  # it returns by itself
            return False

    def _ask(self) -> None:
        """Ask for room for all who are missing."""
        while missing := list(self._roster.missing()):
            for place in missing:
                hand = self._roster.add(place, Stage.PLACING)
                self._placing[hand.name] = time.monotonic()
                self._crew.place(hand)

    def _start(self, name: str) -> None:
        """A newcomer's process; it goes by the rank that it is likely to get until it is called."""
        self._roster.move(name, Stage.STARTING)
        self._placing.pop(name, None)
        rank = len(self._roster.members)
        newcomer = replace(
            self._assignment,
            worker=name,
            rank=rank,
            world_size=rank + 1,
            joins=True,
            checkpoint=None,
        )
        self._crew.start(name, self._plan.train, newcomer)

    # ---- groups that follow ---------------------------------------------------------------------------------------

    def _name(self, members: list[str], rallied: bool = False) -> int:
        self._new = [name for name in members if self._roster.stage(name) is not Stage.MEMBER]
        self._roster.call(members)
        self._named, self._named_at, self._rallied = members, time.monotonic(), rallied
        self._together = self._broken = False
        self._complained = 0
        return self._door.name(members, lost=rallied)

    def _proceed(self) -> None:
        """Start who is missing, end who is not needed, and form the next group when it is due."""
        if self._broken:
            self._rally()
        if (self._together or self._broken) and self._stillborn < MAX_STILLBORN:  # a start takes a core for seconds
            self._ask()
        for name in self._roster.surplus():
            self._dismiss(name)
        if self._together and not self._broken and (group := self._roster.due()) is not None:
            before = len(self._roster.members)
            number = self._name(group)
            self._later("resize", number, len(group), f"{before} → {counted(len(group))}")

    def _rally(self) -> None:
        """Whoever is there forms the next group."""
        group = self._roster.rallied()
        if group is not None:
            self._name(group, rallied=True)

    def _left(self, news: Left) -> None:
        stage = self._roster.stage(news.name)
        trained = stage is Stage.MEMBER or (stage is Stage.LEAVING and not self._together)
        if news.ending == "failed" and not _is_loss(news.error):
            if trained:
                raise TrainingError(_message(news.error)) from news.error
            self._tell(f"a newcomer failed: {_message(news.error)}")
        self._dismiss(news.name)
        if news.ending == "ended":
            self._finished = True
            if self._door.absent(self._named):  # the last step came before the group: who is new waits there in vain
                for name in self._new:
                    if name in self._roster:
                        self._dismiss(name)
        elif trained and news.ending != "departed":
            self._lose(news)
        elif stage in (Stage.STARTING, Stage.READY):
            self._stillborn += 1
            if self._stillborn == MAX_STILLBORN:
                self._tell(f"{MAX_STILLBORN} newcomers ended before they were ready: no more are started")

    def _lose(self, news: Left) -> None:
        log.warning("run %s: worker %s was lost: %s", self._plan.run, news.name, news.error)
        self._count_loss(f"workers were lost, the last: {news.error}")
        if not self._together:
            self._roster.recall()
        left = self._roster.members
        if not left:
            return
        if self._finished:  # the others have all that they need to end by themselves
            self._name(left, rallied=True)
            return
        self._broken = True
        self._rally()
        if self._broken:
            few = f"{counted(len(left))} left, fewer than the {self._roster.least} that are needed; waiting for more"
            self._later("set_state", RunState.RECOVERING, few)

    def _count_loss(self, told: str) -> None:
        self._fruitless = 0 if self._door.stepped() else self._fruitless + 1
        if self._fruitless > self._plan.max_failures:
            raise TrainingError(f"{self._fruitless} groups in a row broke before they had made a step: {told}")

    def _dismiss(self, name: str) -> None:
        self._roster.remove(name)
        self._pings.pop(name, None)
        self._heard.discard(name)
        self._placing.pop(name, None)
        self._crew.dismiss(name)

    # ---- what nobody tells ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        if not self._together:
            absent = self._door.absent([name for name in self._named if name in self._roster])
            self._together = not absent
            if self._rallied and now - self._named_at > DOOR_S:
                for name in absent:
                    self._crew.end(name)
        if now - self._looked < TICK_S:
            return
        self._looked = now
        self._complaints()
        self._silence(now)
        self._waiting(now)
        for place in self._crew.on_draining_nodes():
            if self._roster.evacuate(place):
                self._tell("a node is about to leave the cluster: its workers are replaced")

    def _waiting(self, now: float) -> None:
        """Tell once of newcomers for whom there is no room."""
        waiting = [name for name, since in self._placing.items() if now - since > ROOM_S]
        for name in waiting:
            del self._placing[name]
        if waiting and not self._finished:
            missing = f"the cluster has no room yet for {counted(len(waiting))} more"
            self._tell(f"{missing}: training goes on with those it has")

    def _complaints(self) -> None:
        """A group that broke though nobody was lost is formed anew; a loss is told of within a look or two."""
        if self._broken or self._finished or not self._door.complained():
            self._complained = 0
            return
        self._complained += 1
        if self._complained > 2:
            self._count_loss("ranks did not reach one another")
            self._rally()

    def _silence(self, now: float) -> None:
        """A process that is there and does not answer holds up all others."""
        for name in self._roster.members:
            since, ping = self._pings.get(name, (0.0, None))
            if ping is None or (ping.done() and now - since > PING_S):
                self._pings[name] = (now, self._crew.ping(name))
            elif ping.done():
                self._heard.add(name)
            elif name in self._heard and now - since > SILENCE_S:
                self._tell(f"worker {name} has not answered for {SILENCE_S:.0f} s and is ended")
                self._crew.end(name)
                del self._pings[name]

    # ---- to the controller, which nothing here waits for ----------------------------------------------------------

    def _later(self, method: str, *args: Any) -> None:
        def body() -> None:
            while True:
                try:
                    call(method, self._plan.run, *args)
                    return
                except ControllerUnreachable as error:  # it returns by itself
                    log.warning("run %s: %s waits: %s", self._plan.run, method, error)
                except Exception as error:
                    log.warning("run %s: %s: %s", self._plan.run, method, error)
                    return

        threading.Thread(target=body, name=f"trimtab-{method}", daemon=True).start()

    def _tell(self, message: str) -> None:
        log.info("run %s: %s", self._plan.run, message)  # whoever follows the run is told by the controller
        self._later("tell", message)


def _is_loss(error: Exception | None) -> bool:
    """Did the train function end because another rank was gone, where that could not be mended?"""
    cause = getattr(error, "cause", error)
    return isinstance(cause, Orphaned) or (isinstance(cause, RuntimeError) and is_loss(cause))


def _message(error: Exception | None) -> str:
    cause = getattr(error, "cause", error)
    return f"{type(cause).__name__}: {cause}"
