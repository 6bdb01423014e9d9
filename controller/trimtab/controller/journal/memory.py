"""A journal that lives as long as its process: for tests, replay and what-if."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from trimtab.controller.journal.journal import Entry, Fenced


@dataclass(slots=True)
class MemoryStore:
    """What several `MemoryJournal`s share, as several processes share one file."""

    term: int = 0
    entries: list[Entry] = field(default_factory=list)  # the entry with seq s stands at s - 1


class MemoryJournal:
    """A Journal over a `MemoryStore`; durable while somebody holds the store."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self._store = MemoryStore() if store is None else store

    def take_over(self) -> int:
        self._store.term += 1
        return self._store.term

    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        if not events:
            raise ValueError("append needs at least one event, got none")
        self.check(term)
        entries = self._store.entries
        entries += [Entry(seq, term, time, run, event) for seq, event in enumerate(events, len(entries) + 1)]
        return len(entries)

    def check(self, term: int) -> None:
        if term != self._store.term:
            raise Fenced(f"term {term} is over, the present one is {self._store.term}")

    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        later = islice(self._store.entries, max(after, 0), None)
        return (entry for entry in later if run is None or entry.run == run)

    def close(self) -> None:
        pass
