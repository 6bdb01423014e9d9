"""Controllers that fall asleep, are replaced and wake up: none writes once another is in charge.

TRIMTAB_LONG=1 has 2,000 of them, TRIMTAB_SEED=… draws the moments of an earlier run again.
"""

import asyncio
import json
import os
import queue
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from trimtab.controller import actor
from trimtab.controller.controller import Controller
from trimtab.controller.events import RunSpec, Versioned, decode
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import SqliteJournal, examine, read_only

LONG = os.environ.get("TRIMTAB_LONG") == "1"
SEED = int(os.environ.get("TRIMTAB_SEED", secrets.randbits(32) if LONG else 1))
HOMES = 80 if LONG else 4
TAKE_OVERS = 25  # of a home, whose journal each controller reads first
BATCH = HyperParameter(name="batch_size", kind="integer", default=64, min=2, max=4096)
COUNT = HyperParameter(name="count", kind="integer", default=0, min=0)
SPEC = RunSpec(name="r", world_size=1, parameters=(BATCH, COUNT), micro_batch=16, max_micro_batch=64)

CONTROLLER = """
import asyncio, itertools, json, sys
from pathlib import Path
from trimtab.controller.controller import Controller
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.journal import Fenced, JournalUnavailable, SqliteJournal

def tell(what, *more):
    print(json.dumps([what, *more]), flush=True)

async def be_in_charge(home):
    try:
        journal = SqliteJournal(home / JOURNAL, busy_timeout_s=0.05)
        journal._connection.execute("PRAGMA wal_autocheckpoint = 10")  # so that some fall asleep within a checkpoint
        controller = Controller(journal, home / METRICS)
    except JournalUnavailable as error:
        return tell("refused", str(error))
    tell("in charge", controller.term, max(entry.seq for entry in journal.read()))
    number = 1  # which the run was made with
    for count in itertools.count():
        for version in await controller.next_versions("r", number, 0):  # as a worker asks
            number = version.number
            tell("version", number, version.term, str(version.parameters["count"]))
        try:
            controller.pin("r", "count", count, "", "", None)
        except JournalUnavailable:
            pass  # somebody else is writing
        except Fenced:
            return tell("fenced")

for line in sys.stdin:
    asyncio.run(be_in_charge(Path(line.strip())))
"""
UNFENCED = CONTROLLER.replace(
    "def tell",
    """
class SqliteJournal(SqliteJournal):
    mine = 0

    def _term(self):
        self.mine = self.mine or super()._term()
        return self.mine

def tell""",
    1,
)


class Process:
    """In charge of a home when it is told to be, until it is fenced; `told` is what it has said."""

    def __init__(self, script: str) -> None:
        self.told: list[list[Any]] = []
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        command = [sys.executable, "-c", script]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.send = self._process.send_signal
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def begin(self, home: Path) -> None:
        print(home, file=self._process.stdin, flush=True)

    def until(self, *wanted: str, patience_s: float = 60.0) -> str:
        """Wait for it to say one of these, and tell which; "" when the time is up."""
        end = time.monotonic() + patience_s
        with suppress(queue.Empty):
            while (left := end - time.monotonic()) > 0:
                self.told.append(json.loads(self._news.get(timeout=left)))
                if self.told[-1][0] in wanted:
                    return str(self.told[-1][0])
        return ""

    def end(self) -> None:
        with self._process:
            self._process.kill()
            self._listener.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._news.put(line)


Pair = Callable[[str], Sequence[Process]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """pair(SCRIPT) starts two processes."""
    started: list[Process] = []

    def start(script: str) -> Sequence[Process]:
        started.extend(Process(script) for _ in range(2))
        return started

    yield start
    for process in started:
        process.end()


@pytest.mark.timeout(60 + 30 * HOMES)
def test_a_controller_that_was_replaced_in_its_sleep_writes_no_more(pair: Pair, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    processes, total = pair(CONTROLLER), Counter[str]()
    for number in range(HOMES):
        home = new_home(tmp_path / str(number))
        total += take_overs(processes, home, TAKE_OVERS, random.Random(f"{SEED} {number}"))
        assert faults(home, processes) == []
    print(f"{HOMES * TAKE_OVERS:,} take-overs: {dict(total)}")
    assert total["fenced"] == HOMES * TAKE_OVERS
    assert total["replaced in its sleep"] > HOMES * TAKE_OVERS / 10
    assert total["decisions"] > HOMES * TAKE_OVERS


def test_controllers_without_a_fence_are_found_out(pair: Pair, tmp_path: Path) -> None:
    home, processes = new_home(tmp_path / "home"), pair(UNFENCED)
    assert take_overs(processes, home, 1, random.Random(1), patience_s=0.5)["fenced"] == 0
    found = " ".join(faults(home, processes))
    assert "came after" in found
    assert "was decided 2 times" in found


def test_a_controller_that_was_replaced_does_nothing_by_itself(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")

    async def kept_up() -> None:
        with closing(SqliteJournal(home / JOURNAL)) as journal:
            replaced = Controller(journal, home / METRICS)
            with closing(SqliteJournal(home / JOURNAL)) as other:
                Controller(other, home / METRICS)
            async with asyncio.timeout(10):
                await actor.upkeep(replaced)

    asyncio.run(kept_up())


def new_home(home: Path) -> Path:
    (home / METRICS).mkdir(parents=True)
    with closing(SqliteJournal(home / JOURNAL)) as journal:
        Controller(journal, home / METRICS).create_run("r", SPEC)
    return home


def take_overs(
    processes: Sequence[Process], home: Path, count: int, chance: random.Random, patience_s: float = 60.0
) -> Counter[str]:
    """Put two in charge by turns, each while the other sleeps, or wakes; how often what happened."""
    for process in processes:
        process.told.clear()
    happened = Counter[str]()
    old, new = processes
    old.begin(home)
    old.until("in charge")
    for _ in range(count):
        time.sleep(0.01 * chance.random())
        old.send(signal.SIGSTOP)
        new.begin(home)
        answer = new.until("in charge", "refused") if chance.random() < 0.5 else ""
        happened["replaced in its sleep"] += answer == "in charge"
        time.sleep(0.01 * chance.random())
        old.send(signal.SIGCONT)
        while (answer or new.until("in charge", "refused")) == "refused":  # the old one sleeps in a transaction
            answer = ""
            new.begin(home)
        happened["fenced"] += old.until("fenced", patience_s=patience_s) == "fenced"
        old, new = new, old
    with closing(SqliteJournal(home / JOURNAL)) as journal:
        journal.take_over()
        old.until("fenced", patience_s=patience_s)
        happened["decisions"] = sum(1 for entry in journal.read() if "versioned" in entry.event)
    happened["refused"] = sum(one[0] == "refused" for process in processes for one in process.told)
    return happened


def faults(home: Path, processes: Sequence[Process]) -> list[str]:
    """What the journal holds, or was told to workers, that cannot be when one is in charge at a time."""
    examine(home / JOURNAL)
    with closing(read_only(home / JOURNAL)) as reader:
        entries = list(reader.read())
    told = [one for process in processes for one in process.told]
    begun = [(term, seq) for what, term, seq in (one for one in told if one[0] == "in charge")]
    found = [f"{e} came after term {term}" for term, seq in begun for e in entries if e.seq > seq and e.term < term]
    decisions = [event.version for event in (decode(entry.event) for entry in entries) if isinstance(event, Versioned)]
    journaled = [(version.number, version.term, str(version.parameters["count"])) for version in decisions]
    handed = {tuple(one[1:]) for one in told if one[0] == "version"}
    found += [f"version {version} is not in the journal" for version in handed - set(journaled)]
    found += [
        f"version {n} was decided {count} times" for n, count in Counter(v[0] for v in journaled).items() if count > 1
    ]
    return found
