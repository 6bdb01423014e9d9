"""The Journal protocol. Its contract is tested by `trimtab.controller.journal.contract`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class Fenced(Exception):
    """Another controller has raised the term: this one is no longer in charge and must stop."""


class JournalUnavailable(Exception):
    """The entry could not be made durable (disk full, say). Nothing was written; the caller may try again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One durable event; `event` is its JSON text."""

    seq: int  # 1, 2, 3, ... without a gap
    term: int
    time: float  # unix seconds, given by the writer
    run: str
    event: str


class Journal(Protocol):
    """An append-only log that one controller writes at a time."""

    def take_over(self) -> int:
        """Raise the term by one, durably, and return it; every earlier writer is fenced from here on."""

    def append(self, term: int, time: float, run: str, events: Sequence[str]) -> int:
        """Make all `events` durable or none, and return the last one's seq.

        Raises Fenced if `term` is not the present one, JournalUnavailable if it could not be made durable.
        """

    def check(self, term: int) -> None:
        """Raise Fenced if `term` is not the present one, JournalUnavailable if that cannot be told."""

    def read(self, after: int = 0, run: str | None = None) -> Iterator[Entry]:
        """Entries with seq > `after`, in order, of one run or of all."""

    def close(self) -> None:
        """Release what is open; closing twice does no harm."""
