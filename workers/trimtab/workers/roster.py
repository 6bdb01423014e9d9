"""Who works on a run, who is on the way, and who forms the next group; plain, without Ray, time or processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum


class Stage(IntEnum):
    """How far a worker has come.

    leaving   trains until the next group has been formed without it
    placing   waits for its place on the cluster; nobody knows how long
    starting  its process starts, then its train function comes to its batches
    ready     waits to be called into a group
    member    trains
    """

    LEAVING = 0
    PLACING = 1
    STARTING = 2
    READY = 3
    MEMBER = 4


@dataclass(frozen=True, slots=True)
class Hand:
    """One worker process; `name` is never used twice."""

    name: str
    place: int
    stage: Stage


class Roster:
    """Workers by place (one device each), and what is wanted: `learners` workers on each of `workers` places.

    Beside them `spares` workers on places of their own are kept ready. Places that the cluster is about to take away
    are left: others are sought meanwhile.
    """

    def __init__(self, workers: int, learners: int = 1, spares: int = 0, least: int = 1) -> None:
        self.workers = workers
        self.learners = learners
        self.spares = spares
        self.least = least  # members below which no group is formed
        self._hands: dict[str, Hand] = {}
        self._ranks: list[str] = []  # of the newest group
        self._leaving: set[int] = set()
        self._places_so_far = self._hands_so_far = 0

    def want(self, workers: int, learners: int) -> None:
        self.workers, self.learners = workers, learners

    def add(self, place: int | None, stage: Stage) -> Hand:
        """A worker at `place`; None: a new one."""
        if place is None:
            self._places_so_far += 1
            place = self._places_so_far
        self._hands_so_far += 1
        hand = Hand(f"worker-{self._hands_so_far}", place, stage)
        self._hands[hand.name] = hand
        return hand

    def move(self, name: str, stage: Stage) -> None:
        self._hands[name] = replace(self._hands[name], stage=stage)

    def remove(self, name: str) -> None:
        self._hands.pop(name, None)

    def call(self, group: Sequence[str]) -> None:
        """These are the members of the next group; those who were, and are none of them, leave."""
        for name in self.members:
            self.move(name, Stage.LEAVING)
        for name in group:
            self.move(name, Stage.MEMBER)
        self._ranks = list(group)

    def recall(self) -> None:
        """Who was to leave stays: the group that was to go on without them has not come about."""
        for name in [name for name, hand in self._hands.items() if hand.stage is Stage.LEAVING]:
            self.move(name, Stage.MEMBER)
            self._ranks.append(name)

    def evacuate(self, place: int) -> bool:
        """The cluster is about to take this place away. True if that is news."""
        news = place not in self._leaving
        self._leaving.add(place)
        return news

    def __contains__(self, name: str) -> bool:
        return name in self._hands

    def stage(self, name: str) -> Stage:
        return self._hands[name].stage

    @property
    def names(self) -> list[str]:
        return list(self._hands)

    @property
    def members(self) -> list[str]:
        """Those who train, by rank."""
        return [name for name in self._ranks if name in self._hands and self.stage(name) is Stage.MEMBER]

    def cast(self) -> list[Hand]:
        """Who is to train, as far as there are any: members first, then who is nearest to it."""
        return [hand for place in self._chosen() for hand in self._at(place)[: self.learners]]

    def missing(self) -> Iterator[int | None]:
        """The places at which a worker is to be started, once for each; None: a new place, where more may be."""
        chosen, spare = self._chosen(), self._spare()
        for place in chosen:
            yield from [place] * (self.learners - len(self._at(place)))
        yield from [None] * (self.workers - len(chosen) + self.spares - len(spare))

    def surplus(self) -> list[str]:
        """Workers that nobody needs and that do not train; members leave when the next group is formed."""
        kept = {hand.name for hand in self.cast()}
        kept |= {hand.name for place in self._spare() for hand in self._at(place)[:1]}
        trains = (Stage.LEAVING, Stage.MEMBER)
        return [name for name, hand in self._hands.items() if name not in kept and hand.stage not in trains]

    def due(self) -> list[str] | None:
        """The members of the next group, by rank, if one is to be formed: those who stay keep their order.

        It waits for all who are starting, so that one resize does not become many, but for nobody without a place.
        """
        if any(hand.stage is Stage.STARTING for hand in self.cast()):
            return None
        group = self.rallied()
        return group if group != self.members else None

    def rallied(self) -> list[str] | None:
        """The next group made of whoever is there now, as after a loss; None if they are too few.

        Where all members are at places that are left, they train on until others have come; then one of them stays for
        a group more, to hand over what has been learned.
        """
        there = [hand.name for hand in self.cast() if hand.stage >= Stage.READY]
        members = [name for name in self.members if name in there]
        if not members:
            members = self.members[:1] if there else self.members
        group = members + [name for name in there if name not in members]
        return group if len(group) >= self.least else None

    def _at(self, place: int) -> list[Hand]:
        hands = [hand for hand in self._hands.values() if hand.place == place and hand.stage is not Stage.LEAVING]
        return sorted(hands, key=lambda hand: -hand.stage)

    def _places(self) -> Sequence[int]:
        """Those with members first, then as far as their best worker has come, then by age."""
        there = [hand for hand in self._hands.values() if hand.stage is not Stage.LEAVING]
        places = dict.fromkeys(hand.place for hand in there if hand.place not in self._leaving)
        return sorted(places, key=lambda place: (-max(hand.stage for hand in self._at(place)), place))

    def _chosen(self) -> Sequence[int]:
        return self._places()[: self.workers]

    def _spare(self) -> Sequence[int]:
        """Members that are about to leave are none."""
        rest = self._places()[self.workers :]
        return [place for place in rest if self._at(place)[0].stage is not Stage.MEMBER][: self.spares]
