"""The journal through `kill -9`, 2,000 times with TRIMTAB_LONG=1, and a disk that is really full."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from trimtab.controller.journal import Entry, SqliteJournal, read_only

WRITER = """
import sys
from trimtab.controller.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
term = journal.take_over()
for i in range(1_000_000):
    events = [f"{term} {i} {part}" for part in range(i % 3 + 1)]
    seq = journal.append(term, 0.0, "run", events)
    print(seq, *events, sep="|", flush=True)
"""
# Acknowledges an append before it is written, together with the next one. It dawdles in between: a kill would else
# nearly always come while a disk sync goes on, which a page cache outlives.
HASTY_WRITER = (
    """
import time as clock
import trimtab.controller.journal as package

class Hasty(package.SqliteJournal):
    late = []

    def append(self, term, time, run, events):
        clock.sleep(0.005)
        last = super().append(term, time, run, self.late) if self.late else sum(1 for _ in self.read())
        self.late = events
        return last + len(events)

package.SqliteJournal = Hasty
"""
    + WRITER
)
KILLS = 2_000 if os.environ.get("TRIMTAB_LONG") == "1" else 20

Ack = tuple[int, str]  # seq and event


@pytest.mark.timeout(30 + KILLS)
def test_every_acknowledged_entry_outlives_kill_9(tmp_path: Path) -> None:
    """The writer is killed at a random moment while it appends and prints what was acknowledged."""
    acknowledged, entries = after_kills(WRITER, tmp_path / "journal.db", KILLS)
    print(f"{KILLS:,} kills, {len(acknowledged):,} entries acknowledged")
    assert len(acknowledged) >= KILLS
    assert lost(acknowledged, entries) == []
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert max(Counter(entry.event for entry in entries).values()) == 1
    parts = Counter(tuple(entry.event.split()[:2]) for entry in entries)
    assert all(count == int(i) % 3 + 1 for (_, i), count in parts.items())
    assert SqliteJournal(tmp_path / "journal.db").take_over() == KILLS + 1


def test_a_journal_that_acknowledges_too_early_is_found_out(tmp_path: Path) -> None:
    assert lost(*after_kills(HASTY_WRITER, tmp_path / "journal.db", 20))


def after_kills(writer: str, path: Path, kills: int) -> tuple[list[Ack], list[Entry]]:
    """What was acknowledged, and what a reader finds in the end."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged: list[Ack] = []
    for _ in range(kills):
        acknowledged += acks_until_killed(writer, path, chance.randint(1, 40), chance.random() * 0.003)
    reader = read_only(path)
    entries = list(reader.read())
    reader.close()
    return acknowledged, entries


def lost(acknowledged: list[Ack], entries: list[Entry]) -> list[Ack]:
    found = {(entry.seq, entry.event) for entry in entries}
    return [ack for ack in acknowledged if ack not in found]


def acks_until_killed(writer: str, path: Path, lines: int, pause_s: float) -> list[Ack]:
    command = [sys.executable, "-c", writer, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = [process.stdout.readline() for _ in range(lines)]
        try:
            process.wait(pause_s)
        except subprocess.TimeoutExpired:
            process.kill()
        out += process.stdout.readlines()
    acks: list[Ack] = []
    for line in out:
        if line.endswith("\n"):
            last, *events = line.rstrip("\n").split("|")
            acks += enumerate(events, int(last) - len(events) + 1)
    return acks


FILLER = """
import errno, json, os, subprocess, sys
from trimtab.controller.journal import JournalUnavailable, SqliteJournal
folder, report = sys.argv[1], {"refused": 0, "messages": [], "acks": []}
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
journal = SqliteJournal(f"{folder}/journal.db")
term, number, ballast = journal.take_over(), 0, f"{folder}/ballast"
for cycle in range(3):
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    for _ in range(2000):
        number += 1
        try:
            journal.append(term, 0.0, "run", [f"{number} a", f"{number} b" + "." * 2000])
            report["acks"].append(number)
        except JournalUnavailable as error:
            report["refused"] += 1
            report["messages"].append(str(error))
            break
    os.remove(ballast)
    number += 1
    journal.append(term, 0.0, "run", [f"{number} a", f"{number} b"])
    report["acks"].append(number)
journal.close()
journal = SqliteJournal(f"{folder}/journal.db")
report["found"] = [(entry.seq, *entry.event.rstrip(".").split()) for entry in journal.read()]
print(json.dumps(report))
"""


def can_mount() -> bool:
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="no tmpfs here; test_sqlite.py fills the file by max_page_count")
def test_a_full_disk_refuses_clearly_and_recovers(tmp_path: Path) -> None:
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", FILLER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["refused"] == 3
    assert all("free space" in message or "for space" in message for message in report["messages"])
    wanted = [(str(number), part) for number in report["acks"] for part in "ab"]
    assert report["found"] == [[seq, *entry] for seq, entry in enumerate(wanted, 1)]
