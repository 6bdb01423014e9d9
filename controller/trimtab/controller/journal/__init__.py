"""The append-only journal: every decision of the controller, in order."""

from trimtab.controller.journal.journal import Entry, Fenced, Journal, JournalUnavailable
from trimtab.controller.journal.memory import MemoryJournal, MemoryStore
from trimtab.controller.journal.sqlite import Holds, SqliteJournal, SqliteReader, copy, examine, read_only

__all__ = [
    "Entry",
    "Fenced",
    "Holds",
    "Journal",
    "JournalUnavailable",
    "MemoryJournal",
    "MemoryStore",
    "SqliteJournal",
    "SqliteReader",
    "copy",
    "examine",
    "read_only",
]
