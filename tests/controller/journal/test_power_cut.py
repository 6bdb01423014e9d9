"""The journal through power cuts: at any moment, with any part of what was not synced missing.

The system calls of its writers are recorded, and disks made of them as `disk` says. TRIMTAB_LONG=1 makes 30,000 of
them, TRIMTAB_SEED=… those of an earlier run again.
"""

import os
import random
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from disk import Call, Disk, record

from trimtab.controller import durable
from trimtab.controller.home import JOURNAL
from trimtab.controller.journal import Entry, JournalUnavailable, SqliteJournal, examine, read_only

LONG = os.environ.get("TRIMTAB_LONG") == "1"
SEED = int(os.environ.get("TRIMTAB_SEED", secrets.randbits(32) if LONG else 1))
HISTORIES = 100 if LONG else 1
CUTS = 300  # in a history; 100 find out a journal that is broken
LIVES = 4  # of writers in it, one after the other
APPENDS = 40  # in a life
HOME = Path("above", "home")  # neither is there before
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where disks are opened sooner

WRITER = """
import os, random, sys
from pathlib import Path
from trimtab.controller import durable
from trimtab.controller.home import JOURNAL
from trimtab.controller.journal import SqliteJournal

home, appends, pages, chance = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], random.Random(sys.argv[4])
durable.make(home)
journal = SqliteJournal(home / JOURNAL)
journal._connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
term = journal.take_over()
os.write(1, b"term %d" % term)
for _ in range(appends):
    parts, size = chance.randint(1, 3), chance.choice((10, 100, 3000, 20000))
    last = journal.append(term, 0.0, "run", [f"{left} more" + "." * size for left in reversed(range(parts))])
    os.write(1, b"entry %d" % last)
if chance.random() < 0.5:
    journal.close()
"""
CARELESS = WRITER.replace("term = ", 'journal._connection.execute("PRAGMA synchronous = NORMAL")\nterm = ', 1)
HOMELESS = WRITER.replace("durable.make(home)", "home.mkdir(parents=True, exist_ok=True)")


def can_trace() -> bool:
    try:
        return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not can_trace(), reason="needs strace, and the right to trace: install strace")


@pytest.mark.timeout(60 + 20 * HISTORIES)
def test_what_was_acknowledged_outlives_a_power_cut(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    verdicts: Counter[str] = Counter()
    for number in range(HISTORIES):
        verdicts += after_cuts(WRITER, tmp_path / str(number), f"{SEED} {number}", CUTS)
    print(f"{HISTORIES * CUTS:,} power cuts: {dict(verdicts)}")
    assert verdicts["nothing acknowledged"] < HISTORIES * CUTS / 3
    assert verdicts.keys() <= {"kept", "nothing acknowledged"}


@pytest.mark.parametrize("writer", [CARELESS, HOMELESS], ids=["without sync", "in a folder that was not synced"])
def test_a_journal_that_acknowledges_too_early_is_found_out(writer: str, tmp_path: Path) -> None:
    assert after_cuts(writer, tmp_path / "0", "1 0", 100)["lost"]


def after_cuts(writer: str, root: Path, seed: str, count: int) -> Counter[str]:
    """How often which verdict was passed on the journal after a power cut somewhere in one history."""
    chance = random.Random(seed)
    root.mkdir()
    calls = history(writer, root, chance)
    with closing(read_only(root / HOME / JOURNAL)) as reader:
        written = list(reader.read())
    moments = [i for i, call in enumerate(calls) if call.name != "openat"]  # most of these only read Python's modules
    first = next(i for i, call in enumerate(calls) if ack(call)[0] == "entry")
    cuts = Counter(chance.choices([i for i in moments if i <= first], k=count // 5))
    cuts += Counter(chance.choices(moments, k=count - cuts.total()))
    verdicts: Counter[str] = Counter()
    disk, acknowledged = Disk(root), {"term": 0, "entry": 0}
    for i, call in enumerate(calls):
        disk.take(call)
        what, number = ack(call)
        acknowledged[what] = number
        for _ in range(cuts[i]):
            with TemporaryDirectory(dir=MEMORY) as folder:
                disk.cut(Path(folder), chance)
                verdicts[verdict(Path(folder, HOME), acknowledged["term"], acknowledged["entry"], written)] += 1
    return verdicts


def history(writer: str, root: Path, chance: random.Random) -> list[Call]:
    """All that some writers did to the disk, each ended in its own way or killed."""
    disk, calls = Disk(root), list[Call]()
    for _ in range(LIVES):
        pages = chance.choice((4, 16, 1000))  # until a checkpoint
        command = [sys.executable, "-c", writer, str(root / HOME), str(APPENDS), str(pages), str(chance.random())]
        last, number = chance.choice(("pwrite64", "fdatasync")), chance.randint(1, 400)
        killing = ("-e", f"inject={last}:signal=KILL:when={number}") if chance.random() < 0.5 else ()
        for call in record(command, root.with_suffix(".strace"), *killing):
            disk.take(call)
            calls.append(call)
        disk.check()
    return calls


def ack(call: Call) -> tuple[str, int]:
    """What a writer says in this call to be durable: a term, or the entries up to one."""
    match call.name, *call.arguments:
        case "write", "1", bytes(said), _:
            what, number = said.decode().split()
            return what, int(number)
    return "", 0


def verdict(home: Path, term: int, acknowledged: int, written: Sequence[Entry]) -> str:
    """Open the journal in `home` as a controller does, and tell what has become of it."""
    try:
        durable.make(home)
        with closing(SqliteJournal(home / JOURNAL)) as journal:
            found = list(journal.read())
            new_term = journal.take_over()
            journal.append(new_term, 0.0, "run", ["0 more"])
        examine(home / JOURNAL)
    except JournalUnavailable as error:
        return str(error)
    if found[:acknowledged] != written[:acknowledged] or new_term <= term:
        return "lost"
    if found != written[: len(found)]:
        return "another"
    if found and not found[-1].event.startswith("0 more"):
        return "half"
    return "kept" if acknowledged else "nothing acknowledged"
