"""Where worker groups come together: a store that the driver hosts, which outlives every rank.

The driver numbers the groups and says who belongs to each. A worker that has lost its group, or is to leave it for
another, waits for one with a higher number; when all of its members have come to its door they form the process group.
A group that loses a member at the door is never formed: the driver names the next, and who waits at the door goes on
to that.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

LOOK_S = 0.003  # between two looks at what the driver says
STORE_S = 60.0  # that the driver's store is waited for
_LATEST, _LOST = "latest", "lost"  # numbers of groups: the newest; the newest that has lost a member


class Departed(BaseException):
    """This worker is no longer needed: its train function ends here. No Exception, so that scripts do not catch it."""


@dataclass(frozen=True, slots=True)
class Membership:
    """A group as the driver has named it, and this worker's place in it."""

    number: int  # of the group, from 1
    rank: int
    members: tuple[str, ...]  # by rank

    @property
    def size(self) -> int:
        return len(self.members)


class Doorkeeper:
    """The driver's side. Groups are named in order; workers go by names that are never used twice."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=STORE_S))
        self._store.set(_LATEST, "0")
        self._store.set(_LOST, "0")
        self.latest = 0

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._store.port

    def name(self, members: Sequence[str], lost: bool = False) -> int:
        """Name the next group, its members by rank; its number. Those who wait at a door go on to it at once.

        `lost`: the last one has lost a member, should somebody be there whom nothing tells.
        """
        if lost:
            self._store.set(_LOST, str(self.latest))
        self.latest += 1
        self._store.set(f"group/{self.latest}", json.dumps(list(members)))
        self._store.set(_LATEST, str(self.latest))
        return self.latest

    def complained(self) -> bool:
        """Has a member of the newest group found it broken?"""
        return bool(self._store.check([f"broken/{self.latest}"]))

    def absent(self, members: Sequence[str]) -> list[str]:
        """The members of the newest group that have not come to its door."""
        return [member for member in members if not self._store.check([f"door/{self.latest}/{member}"])]

    def stepped(self) -> bool:
        """Has the newest group made a step?"""
        return bool(self._store.check([f"stepped/{self.latest}"]))


class Rendezvous:
    """One worker's side; its methods raise a torch.distributed.DistError when the driver is gone."""

    def __init__(self, address: tuple[str, int], name: str) -> None:
        self.address = address
        self._name = name
        self._member = False
        self.store = TCPStore(*address, is_master=False, timeout=timedelta(seconds=STORE_S))

    def next(self, after: int) -> Membership:
        """The newest group above number `after` that has this worker as a member, however long that takes.

        Raises Departed if it was a member before and no longer is.
        """
        while True:
            latest = int(self.store.get(_LATEST))
            if latest > after:
                members = tuple(json.loads(self.store.get(f"group/{latest}")))
                if self._name in members:
                    self._member = True
                    return Membership(latest, members.index(self._name), members)
                if self._member:
                    raise Departed(f"{self._name} is no longer needed")
                after = latest
            time.sleep(LOOK_S)

    def meet(self, group: Membership) -> bool:
        """Wait at the group's door until all of its members are there; False if the driver names another meanwhile."""
        self.store.set(f"door/{group.number}/{self._name}", "")
        door = [f"door/{group.number}/{member}" for member in group.members]
        while not self.store.check(door):
            if int(self.store.get(_LATEST)) > group.number:
                return False
            time.sleep(LOOK_S)
        return True

    def given_up(self, number: int) -> bool:
        """Has the driver given up group `number`?"""
        return number <= int(self.store.get(_LOST))

    def complain(self, number: int) -> None:
        """Tell the driver that group `number` is broken, should it not know yet."""
        self.store.set(f"broken/{number}", "")

    def stepped(self, number: int) -> None:
        """Tell the driver that group `number` has made a step."""
        self.store.set(f"stepped/{number}", "")


__all__ = ["Departed", "Doorkeeper", "Membership", "Rendezvous"]
