"""A rank's line to the controller: one thread that listens for versions, one that ships records.

Neither is ever waited for by the training thread. While the controller is away they try again, by name; what does not
fit into the ring meanwhile is dropped, oldest first, and counted.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from trimtab.controller.errors import Refused
from trimtab.controller.hyperparameters import Version
from trimtab.controller.records import Records, Report
from trimtab.workers.ring import Ring

Call = Callable[..., Any]  # call(method, *args): a method of the Controller, or an exception after some patience
log = logging.getLogger(__name__)

SHIP_S = 0.25  # between two messages
SHIP_ROWS = 2048  # steps in a message, at most
WAIT_S = 20.0  # that a standing call stays open
RETRY_S = 0.5


class Link:
    """Holds the versions that have arrived; ships what the ring holds."""

    def __init__(self, call: Call, run: str, ring: Ring, sample: Callable[[], None]) -> None:
        self._call = call
        self._run = run
        self._rings = [ring]  # of the formations that have something left to ship, the present one last
        self._sample = sample  # notes the system's metrics, once a message
        self._versions: dict[int, Version] = {}
        self._applied: list[tuple[int, int]] = []
        self._reports: list[Report] = []
        self._lock = threading.Lock()  # a message belongs to one formation as a whole
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=body, name=f"trimtab-{name}", daemon=True)
            for name, body in (("listen", self._listen), ("ship", self._ship))
        ]
        self.held = 0  # the highest version that has arrived; all below it have, too

    def start(self, version: Version) -> None:
        """Begin after `version`, which every rank starts with."""
        self._versions[version.number] = version
        self.held = version.number
        for thread in self._threads:
            thread.start()

    def take(self, number: int) -> Version:
        """Version `number`, which rules from now on; older ones are let go."""
        for old in [n for n in self._versions if n < number]:
            self._versions.pop(old)
        return self._versions[number]

    def began(self, number: int, step: int) -> None:
        """Tell that this rank runs with version `number` from `step` on."""
        with self._lock:
            self._applied.append((number, step))

    @property
    def newest(self) -> Version:
        """The newest version that has arrived, whether it rules yet or not."""
        return self._versions[self.held]

    def report(self, report: Report) -> None:
        with self._lock:
            self._reports.append(report)

    def branch(self, ring: Ring, void: bool) -> None:
        """Go on with the records of a new formation; what has not been told yet is told in it.

        The steps that the last one still holds are shipped first, unless they are void.
        """
        with self._lock:
            self._rings = [ring] if void else [*self._rings, ring]

    def close(self) -> None:
        """Ship what is left, for as long as the controller answers, and end."""
        self._closed.set()
        self._threads[1].join(timeout=15)

    def hang_up(self) -> None:
        """Wait for the standing call to end, which it does with the run: Ray ends a process that exits within one with
        an error. To be called when the run's end has been told."""
        self._threads[0].join(timeout=5)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                versions = self._call("next_versions", self._run, self.held, WAIT_S)
            except Refused as refusal:
                log.error("run %s: no more versions: %s", self._run, refusal)
                return
            except Exception as error:  # whatever keeps the controller away: training goes on
                log.warning("run %s: no versions for now: %s", self._run, error)
                self._closed.wait(RETRY_S)
                continue
            for version in versions:
                self._versions[version.number] = version
                self.held = version.number

    def _ship(self) -> None:
        while not self._closed.wait(SHIP_S):
            self._sample()
            self._send(self._drain())
        while self._unshipped and self._send(self._drain()):
            pass

    @property
    def _unshipped(self) -> bool:
        with self._lock:
            return bool(self._applied or self._reports or not all(ring.empty for ring in self._rings))

    def _drain(self) -> Records:
        with self._lock:
            while len(self._rings) > 1 and self._rings[0].empty:
                self._rings.pop(0)
            if len(self._rings) > 1:
                return self._rings[0].drain(SHIP_ROWS, self.held)
            applied, reports = self._applied, self._reports
            self._applied, self._reports = [], []
            ring = self._rings[0]
        return ring.drain(SHIP_ROWS, self.held, applied, reports)

    def _send(self, records: Records) -> bool:
        """Ship one message, however long the controller is away; False if it never will be."""
        attempts = 0
        while True:
            try:
                self._call("ingest", records)
                return True
            except Refused as refusal:
                log.error("run %s: records are refused: %s", self._run, refusal)
                return False
            except Exception as error:
                attempts += 1
                log.warning("run %s: records wait for the controller: %s", self._run, error)
                if self._closed.wait(RETRY_S) and attempts > 3:
                    return False
