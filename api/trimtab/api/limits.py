"""How often one may ask: generous to people, pages and scripts; a loop that has gone wild is told to wait."""

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field

KEPT = 10_000  # keys that a limiter remembers


class Limiter:
    """A token bucket for each key: `burst` at once, `per_s` in the long run.

    Kept as the moment at which a key's bucket is full again (the generic cell rate algorithm, ITU-T I.371).
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / per_s
        self._slack = (burst - 1) / per_s
        self._clock = clock
        self._full: dict[str, float] = {}  # by key; who is not there has a full bucket

    def take(self, key: str) -> float:
        """Take one; 0, or how long to wait [s] where there is none."""
        now = self._clock()
        full = max(self._full.get(key, now), now)
        if full - now > self._slack:
            return full - now - self._slack
        if key not in self._full and len(self._full) >= KEPT:
            self._forget(now)
        self._full[key] = full + self._interval
        return 0.0

    def _forget(self, now: float) -> None:
        """Make room: those whose bucket is full lose nothing; if there are none, half of the others."""
        kept = {key: full for key, full in self._full.items() if full > now}
        self._full = dict(list(kept.items())[len(kept) // 2 :]) if len(kept) >= KEPT else kept


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one API; in memory, so that each replica has its own."""

    requests: Limiter = field(default_factory=lambda: Limiter(per_s=100, burst=1000))  # of a token
    failures: Limiter = field(default_factory=lambda: Limiter(per_s=1, burst=60))  # an address's, to authenticate


def network(address: str) -> str:
    """Whom failures are counted against: an address, or of IPv6 the /64 that one customer has."""
    try:
        of = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((of, 64), strict=False)) if of.version == 6 else address
