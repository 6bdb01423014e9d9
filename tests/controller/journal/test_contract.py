from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from trimtab.controller.journal import Entry, Journal, MemoryJournal, MemoryStore, SqliteJournal, contract
from trimtab.controller.journal.contract import CHECKS, Check, Make, check_journal


def memory(_: Path) -> Make:
    store = MemoryStore()
    return lambda: MemoryJournal(store)


def sqlite(folder: Path) -> Make:
    return lambda: SqliteJournal(folder / "journal.db")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("store", [memory, sqlite])
def test_every_journal_keeps_the_contract(store: Callable[[Path], Make], check: Check, tmp_path: Path) -> None:
    check(store(tmp_path))


@pytest.mark.parametrize("store", [memory, sqlite])
def test_the_checks_share_a_store(store: Callable[[Path], Make], tmp_path: Path) -> None:
    make = store(tmp_path)
    check_journal(make)
    check_journal(make)


class Broken:
    """A sound journal; each subclass breaks one promise."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.journal = MemoryJournal(store)

    def take_over(self) -> int:
        return self.journal.take_over()

    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        return self.journal.append(term, time, run, events)

    def check(self, term: int) -> None:
        self.journal.check(term)

    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        return self.journal.read(after, run)

    def close(self) -> None:
        self.journal.close()


class Reorders(Broken):
    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        return iter(sorted(self.journal.read(after, run), key=lambda entry: entry.time))


class IgnoresRuns(Broken):
    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:  # noqa: ARG002
        return self.journal.read(after)


class WritesOneByOne(Broken):
    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        if not events:
            raise ValueError("no events")
        return [self.journal.append(term, time, run, [event]) for event in events][-1]


class TakesEmpty(Broken):
    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        return self.journal.append(term, time, run, events) if events else len(self.store.entries)


class NeverFences(Broken):
    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:  # noqa: ARG002
        return self.journal.append(self.store.term, time, run, events)


class NeverChecks(Broken):
    def check(self, term: int) -> None:
        pass


class Forgets(Broken):
    def close(self) -> None:
        self.store.entries.clear()


class Strips(Broken):
    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        events = [event.replace("\x00", "") for event in events]
        return self.journal.append(term, time, run, events)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Reorders, contract.check_order),
        (IgnoresRuns, contract.check_reading),
        (WritesOneByOne, contract.check_all_or_nothing),
        (TakesEmpty, contract.check_empty_append),
        (NeverFences, contract.check_fencing),
        (NeverChecks, contract.check_fencing),
        (Forgets, contract.check_reopening),
        (Strips, contract.check_unicode),
    ],
)
def test_a_broken_journal_fails_the_check_of_its_promise(broken: type[Broken], check: Check) -> None:
    store = MemoryStore()

    def make() -> Journal:
        return broken(store)

    with pytest.raises(AssertionError, match=r": (wanted|Fenced|ValueError)"):
        check(make)


def test_the_unbroken_wrapper_passes() -> None:
    store = MemoryStore()
    check_journal(lambda: Broken(store))
