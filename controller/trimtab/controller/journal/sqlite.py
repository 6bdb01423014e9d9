"""The journal in one SQLite file: what a cluster with one head node needs."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from trimtab.controller.journal.journal import Entry, Fenced, JournalUnavailable

# Entry i brings a file from schema version i to i + 1. Released entries never change; new ones are added at the end.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE entries (seq INTEGER PRIMARY KEY, term INTEGER NOT NULL, time REAL NOT NULL, run TEXT NOT NULL,"
        " event TEXT NOT NULL)",
        "CREATE INDEX entries_by_run ON entries (run)",  # SQLite keeps seq, the row id, in it too
        "CREATE TABLE leader (term INTEGER NOT NULL)",
        "INSERT INTO leader VALUES (0)",
    ),
)

_PAGE = 1000  # entries fetched at once
_ADVICE = {
    sqlite3.SQLITE_FULL: "free space on its volume and try again",
    sqlite3.SQLITE_IOERR: "check its volume for space, quota and faults, and try again",
    sqlite3.SQLITE_BUSY: "another process is writing to it; end that process or try again",
    sqlite3.SQLITE_LOCKED: "another connection is writing to it; try again",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable for this user",
    sqlite3.SQLITE_CANTOPEN: "check that its directory exists and is writable for this user",
    sqlite3.SQLITE_NOTADB: "name another path, or move that file away",
    sqlite3.SQLITE_CORRUPT: "restore the file from a backup",
}


class SqliteJournal:
    """A Journal in the file `path`, which is made (mode 0600) if it is missing.

    WAL with `synchronous=FULL`: what `append` has returned outlives a power cut. All work goes through one
    connection, checkpoints included, because SQLite before 3.51.3 can corrupt a WAL that two connections write and
    checkpoint at the same moment. It may be used from any thread, one call at a time.

    Raises JournalUnavailable if the file cannot be opened, is no journal or was written by a newer Trimtab.
    """

    def __init__(self, path: str | Path, *, busy_timeout_s: float = 5.0) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        with _explained(self._path):
            _create_private(self._path)
            self._connection = _connect(self._path, "rw", busy_timeout_s)
            try:
                _prepare(self._connection, self._path)
            except BaseException:
                self._connection.close()
                raise

    def take_over(self) -> int:
        with self._transaction():
            self._connection.execute("UPDATE leader SET term = term + 1")
            return self._term()

    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        if not events:
            raise ValueError("append needs at least one event, got none")
        with self._transaction():
            self._check(term)
            (last,) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
            rows = [(seq, term, time, run, event) for seq, event in enumerate(events, last + 1)]
            self._connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            return int(last) + len(rows)

    def check(self, term: int) -> None:
        with self._lock, _explained(self._path):
            self._check(term)

    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        return _read(self._connection, self._lock, self._path, after, run)

    def close(self) -> None:
        self._connection.close()

    def _check(self, term: int) -> None:
        present = self._term()
        if term != present:
            raise Fenced(f"term {term} is over, the present one is {present}")

    def _term(self) -> int:
        (term,) = self._connection.execute("SELECT term FROM leader").fetchone()
        return int(term)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _explained(self._path), _transaction(self._connection):
            yield


class SqliteReader:
    """Reads a journal that another process may be writing; `read_only` opens it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = threading.Lock()

    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        """Entries with seq > `after`, in order, of one run or of all, those committed meanwhile included."""
        return _read(self._connection, self._lock, self._path, after, run)

    def close(self) -> None:
        self._connection.close()


def read_only(path: str | Path, *, busy_timeout_s: float = 5.0) -> SqliteReader:
    """Open an existing journal for reading; raises JournalUnavailable if there is none of this schema at `path`."""
    path = Path(path)
    with _explained(path):
        connection = _connect(path, "ro", busy_timeout_s)
        try:
            version = _known_version(connection, path)
        except BaseException:
            connection.close()
            raise
    if version < len(MIGRATIONS):
        connection.close()
        raise JournalUnavailable(
            f"journal {path}: schema {version} is older than {len(MIGRATIONS)}; start the controller once to upgrade it"
        )
    return SqliteReader(connection, path)


@dataclass(frozen=True, slots=True)
class Holds:
    """What a journal's file holds."""

    schema: int
    term: int
    entries: int
    runs: tuple[str, ...]  # what its entries are of, sorted


def copy(source: str | Path, destination: str | Path, *, busy_timeout_s: float = 5.0) -> Holds:
    """Copy a journal, of this schema or an older one, as it stands between two commits; another process may write it.

    `source` is only read, all of it in one transaction: its writer goes on, and no second connection checkpoints. The
    copy, which must not be there yet, is one file (mode 0600) without a WAL, synced to disk and checked.
    Raises JournalUnavailable, for a full disk too.
    """
    source, destination = Path(source), Path(destination)
    with _explained(source):
        original = _connect(source, "ro", busy_timeout_s)
    with closing(original):
        with _explained(source):
            _known_version(original, source)
        with _explained(destination):
            destination.touch(mode=0o600, exist_ok=False)
            with closing(_connect(destination, "rw", busy_timeout_s)) as copied:
                original.backup(copied)  # all pages in one step: a later commit would begin it anew
                copied.execute("PRAGMA journal_mode = DELETE")
    return examine(destination, busy_timeout_s=busy_timeout_s)


def examine(path: str | Path, *, busy_timeout_s: float = 5.0) -> Holds:
    """Look through all of a journal, of this schema or an older one; raises JournalUnavailable if it is damaged."""
    path = Path(path)
    with _explained(path), closing(_connect(path, "ro", busy_timeout_s)) as connection:
        schema = _known_version(connection, path)
        (verdict, *_) = (row[0] for row in connection.execute("PRAGMA integrity_check"))
        if verdict != "ok":
            raise JournalUnavailable(f"journal {path}: {verdict}; {_ADVICE[sqlite3.SQLITE_CORRUPT]}")
        if schema == 0:
            raise JournalUnavailable(f"journal {path}: it is empty; name another path")
        (term,) = connection.execute("SELECT term FROM leader").fetchone()
        (entries,) = connection.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        runs = tuple(run for (run,) in connection.execute("SELECT DISTINCT run FROM entries ORDER BY run"))
    return Holds(schema, term, entries, runs)


def _read(
    connection: sqlite3.Connection, lock: threading.Lock, path: Path, after: int, run: str | None
) -> Iterator[Entry]:
    # Page by page: a statement left open would hold its snapshot, and no checkpoint could pass it.
    where = "seq > ?" if run is None else "seq > ? AND run = ?"
    query = f"SELECT seq, term, time, run, event FROM entries WHERE {where} ORDER BY seq LIMIT {_PAGE}"
    while True:
        with lock, _explained(path):
            rows = connection.execute(query, (after,) if run is None else (after, run)).fetchall()
        yield from (Entry(*row) for row in rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


def _create_private(path: Path) -> None:
    # `touch` does not open a file that is there: closing it again would drop the locks that SQLite holds on it in
    # this process (https://www.sqlite.org/howtocorrupt.html, 2.2). The WAL takes its mode from this file.
    path.touch(mode=0o600)
    path.chmod(0o600)


def _connect(path: Path, mode: str, busy_timeout_s: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    _known_version(connection, path)  # before anything is written: a newer file stays as it is
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection):
        version = _known_version(connection, path)
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


def _known_version(connection: sqlite3.Connection, path: Path) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise JournalUnavailable(
            f"journal {path}: schema {version} was written by a newer Trimtab, this one knows up to {len(MIGRATIONS)};"
            " upgrade Trimtab or name another path"
        )
    return int(version)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        connection.rollback()  # does nothing after a commit, or where SQLite has rolled back by itself


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalUnavailable(f"journal {path}: {error.strerror}; check the path and who may write there") from error
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # a fault in the caller, not in the store
    except sqlite3.DatabaseError as error:
        advice = _ADVICE.get(error.sqlite_errorcode & 0xFF, "nothing was written; try again")
        raise JournalUnavailable(f"journal {path}: {error}; {advice}") from error
