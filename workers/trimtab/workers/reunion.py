"""How a rank comes from one group into the next: who is called, who is furthest, who takes over what."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from trimtab.controller.hyperparameters import Version
from trimtab.workers.group import Group, form
from trimtab.workers.peers import GroupLost
from trimtab.workers.rendezvous import Rendezvous

log = logging.getLogger(__name__)

WATCH_S = 0.1  # between two looks whether the driver has given the group up

Cause = Literal["resize", "loss"]


class Orphaned(RuntimeError):
    """Nobody in the group has trained: what the run has learned is in its checkpoints only."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a rank has come."""

    steps: int = -1  # a newcomer's
    version: int = 0  # that rules its next step
    formation: int = 0
    strategy: str = ""  # that has kept its replica together with the others


@dataclass(frozen=True, slots=True)
class Note:
    """What the rank that has come furthest tells all."""

    course: Mapping[str, Any]
    version: Version
    strategy: str  # that is to keep them together
    cause: Cause
    lost: int  # ranks
    pause_s: float  # since the end of its last step


@dataclass(frozen=True, slots=True)
class Reunited:
    """The new group, and what this rank is to take over."""

    group: Group
    formation: int
    note: Note
    state: Any  # of the model; None: this rank's own is as good


class Reunion:
    """A rank's way through the groups that the driver names. `number` is that of the newest that it was called into."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        backend: str,
        park: Callable[[], None],
        ranked: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`ranked` is called with this worker's rank in each group."""
        self.number = 0
        self.park = park  # to be called by a newcomer that is ready
        self._rendezvous = rendezvous
        self._backend = backend
        self._ranked = ranked
        self._members: tuple[str, ...] = ()
        self._group: Group | None = None

    def first(self) -> Group:
        """Form the first group of a formation that begins in new processes. Raises GroupLost."""
        return self._form()[0]

    def next(
        self,
        standing: Standing,
        note: Callable[[int], Note],
        state: Callable[[], Any],
        device: torch.device,
    ) -> Reunited:
        """Form the next group. `note` is given how many ranks are gone; it and `state` are asked of one rank only.

        The rank furthest in steps, then in versions, speaks for all; whoever is behind takes over its state, and all
        do where a switch of strategy has come about on some ranks only. Raises GroupLost, Departed if this worker is
        no longer needed, or Orphaned.
        """
        group, lost = self._form()
        try:
            standings = group.gather(standing)
            source = max(range(group.size), key=lambda r: (standings[r].steps, standings[r].version, -r))
            if standings[source] == Standing():
                raise Orphaned("those who had trained are all gone")
            told: Note = group.broadcast(note(lost) if group.rank == source else None, source)  # type: ignore[assignment]
            mixed = any(one.strategy not in ("", told.strategy) for one in standings)
            behind = [mixed or one.steps < standings[source].steps for one in standings]
            shared = None
            if any(behind):
                shared = group.share(state() if group.rank == source else None, source, device)
        except (GroupLost, Orphaned):
            group.leave()
            raise
        mine = shared if behind[group.rank] and group.rank != source else None
        return Reunited(group, max(one.formation for one in standings) + 1, told, mine)

    def _form(self) -> tuple[Group, int]:
        """The next group, and how many members of the last are not in it."""
        called = self._rendezvous.next(self.number)
        self.number = called.number
        if not self._rendezvous.meet(called):
            raise GroupLost("another group was named")
        group = form(called, self._rendezvous.store, self._rendezvous.address, self._backend)
        lost = len(set(self._members) - set(called.members))
        self._members, self._group = called.members, group
        self._ranked(group.rank)
        return group, lost

    def watch(self, ended: threading.Event) -> None:
        """Until `ended`: abort a group that the driver has given up. For a thread, where the backend would wait on."""
        lines = Rendezvous(self._rendezvous.address, "")  # a store's client serves one thread at a time
        while not ended.wait(WATCH_S):
            group = self._group
            if group is not None and lines.given_up(group.number):
                log.warning("group %d is given up: its operations end", group.number)
                group.abort()
                self._group = None

    def complain(self) -> None:
        """Tell the driver that the present group is broken."""
        self._rendezvous.complain(self.number)

    def stepped(self) -> None:
        """Tell the driver that the present group has made a step."""
        self._rendezvous.stepped(self.number)
