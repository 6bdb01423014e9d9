import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trimtab.controller.journal import Fenced, JournalUnavailable, SqliteJournal, read_only
from trimtab.controller.journal import sqlite as module
from trimtab.controller.journal.sqlite import MIGRATIONS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal ?é#.db"  # characters that a URI must escape


def events(path: Path) -> list[str]:
    reader = read_only(path)
    found = [entry.event for entry in reader.read()]
    reader.close()
    return found


def set_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = DELETE")  # so that a switch to WAL would show
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append(journal.take_over(), 0.0, "run", ["1"])
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert len(list(path.parent.iterdir())) == 3  # the database, its WAL and the WAL's index


def test_every_commit_is_synced(path: Path) -> None:
    journal = SqliteJournal(path)
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_runs_are_found_by_index(path: Path) -> None:
    SqliteJournal(path).close()
    query = "EXPLAIN QUERY PLAN SELECT * FROM entries WHERE seq > 5 AND run = 'a' ORDER BY seq LIMIT 9"
    (plan,) = sqlite3.connect(path).execute(query).fetchall()
    assert "USING INDEX entries_by_run (run=? AND rowid>?)" in plan[3]


def test_a_reader_follows_the_writer_and_cannot_write(path: Path) -> None:
    journal = SqliteJournal(path)
    term = journal.take_over()
    reader = read_only(path)
    assert list(reader.read()) == []
    journal.append(term, 0.0, "run", ["1", "2"])
    assert [entry.event for entry in reader.read(after=1, run="run")] == ["2"]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("UPDATE leader SET term = 99")


def test_an_unfinished_read_stops_neither_appends_nor_checkpoints(path: Path) -> None:
    journal = SqliteJournal(path)
    term = journal.take_over()
    journal.append(term, 0.0, "run", [str(i) for i in range(3000)])
    reading = read_only(path).read()
    next(reading)
    journal.append(term, 0.0, "run", ["more"])
    busy, frames, moved = journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert (busy, frames, moved) == (0, 0, 0)
    assert sum(1 for _ in reading) == 3000


def test_threads_take_turns(path: Path) -> None:
    journal = SqliteJournal(path)
    term = journal.take_over()

    def work(name: str) -> None:
        for i in range(20):
            journal.append(term, 0.0, name, [f"{i} a", f"{i} b"])

    threads = [threading.Thread(target=work, args=(f"run {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = list(journal.read())
    assert [entry.seq for entry in entries] == list(range(1, 161))
    assert all(a.run == b.run for a, b in zip(entries[::2], entries[1::2], strict=True))


def test_a_full_file_is_unavailable_until_there_is_room(path: Path) -> None:
    journal = SqliteJournal(path)
    term = journal.take_over()
    journal.append(term, 0.0, "run", ["before"])
    journal._connection.execute("PRAGMA max_page_count = 1")  # takes the present number of pages: no room at all
    big = "x" * 20_000
    for _ in range(3):
        with pytest.raises(JournalUnavailable, match="is full; free space") as raised:
            journal.append(term, 0.0, "run", ["small", big])
        assert str(path) in str(raised.value)
        assert events(path) == ["before"]
    journal._connection.execute("PRAGMA max_page_count = 100000")
    assert journal.append(term, 0.0, "run", ["small", big]) == 3
    assert events(path) == ["before", "small", big]


def test_a_locked_file_is_unavailable_until_it_is_free(path: Path) -> None:
    journal = SqliteJournal(path, busy_timeout_s=0.05)
    term = journal.take_over()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalUnavailable, match="locked; another process is writing"):
        journal.append(term, 0.0, "run", ["1"])
    other.execute("ROLLBACK")
    assert journal.append(term, 0.0, "run", ["1"]) == 1


def test_a_read_only_store_is_unavailable_until_it_is_writable(path: Path) -> None:
    journal = SqliteJournal(path)
    term = journal.take_over()
    journal._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(JournalUnavailable, match="readonly database; make the file and its directory writable"):
        journal.append(term, 0.0, "run", ["1"])
    journal._connection.execute("PRAGMA query_only = 0")
    assert journal.append(term, 0.0, "run", ["1"]) == 1


@pytest.mark.parametrize("open_it", [SqliteJournal, read_only])
def test_a_path_that_cannot_be_opened_is_named(open_it: type[SqliteJournal], tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "journal.db"
    with pytest.raises(JournalUnavailable, match=str(missing)):
        open_it(missing)
    with pytest.raises(JournalUnavailable, match=f"{tmp_path}: "):
        open_it(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but some words that are longer than a header of a hundred bytes " * 3)
    with pytest.raises(JournalUnavailable, match=r"notes.txt: file is not a database; name another path"):
        open_it(text)


def test_reading_makes_no_file(path: Path) -> None:
    with pytest.raises(JournalUnavailable):
        read_only(path)
    assert not path.exists()


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    journal = SqliteJournal(path)
    assert journal.append(journal.take_over(), 0.0, "run", ["1"]) == 1
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_an_older_journal_is_upgraded_with_all_it_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SqliteJournal(path)
    journal.append(journal.take_over(), 0.0, "run", ["old"])
    journal.close()
    step = ("ALTER TABLE leader ADD COLUMN host TEXT", "UPDATE leader SET host = 'here'")
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, step))
    with pytest.raises(JournalUnavailable, match="schema 1 is older than 2; start the controller once"):
        read_only(path)
    journal = SqliteJournal(path)
    assert journal.append(journal.take_over(), 0.0, "run", ["new"]) == 2
    assert events(path) == ["old", "new"]
    assert journal._connection.execute("SELECT host FROM leader").fetchone() == ("here",)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteJournal(path).close()
    monkeypatch.setattr(
        module, "MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE half (x)", "INSERT INTO nowhere VALUES (1)"))
    )
    with pytest.raises(JournalUnavailable, match="nowhere"):
        SqliteJournal(path)
    monkeypatch.undo()
    assert SqliteJournal(path).take_over() == 1
    assert sqlite3.connect(path).execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall() == []


@pytest.mark.parametrize("open_it", [SqliteJournal, read_only])
def test_a_newer_journal_is_refused_and_left_alone(open_it: type[SqliteJournal], path: Path) -> None:
    SqliteJournal(path).close()
    set_version(path, 99)
    before = path.read_bytes()
    with pytest.raises(JournalUnavailable, match=r"schema 99 was written by a newer Trimtab.*upgrade Trimtab"):
        open_it(path)
    assert path.read_bytes() == before


TAKE_OVER_AND_WRITE = """
import sys
from trimtab.controller.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
print(journal.append(journal.take_over(), 0.0, "run", ["theirs"]))
"""


def test_another_process_fences_this_one(path: Path) -> None:
    journal = SqliteJournal(path)
    term = journal.take_over()
    for i in range(3):
        journal.append(term, 0.0, "run", [f"mine {i}"])
        command = [sys.executable, "-c", TAKE_OVER_AND_WRITE, str(path)]
        assert int(subprocess.run(command, check=True, capture_output=True).stdout) == 2 * i + 2
        with pytest.raises(Fenced, match=f"term {term} is over, the present one is {term + 1}"):
            journal.append(term, 0.0, "run", ["stale"])
        term = journal.take_over()
    assert events(path) == ["mine 0", "theirs", "mine 1", "theirs", "mine 2", "theirs"]
