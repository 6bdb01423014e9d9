"""The append-only journal: every decision of the controller, in order."""

from trimtab.controller.journal.journal import Entry, Fenced, Journal, JournalUnavailable
from trimtab.controller.journal.memory import MemoryJournal, MemoryStore
from trimtab.controller.journal.sqlite import SqliteJournal, SqliteReader, read_only

__all__ = [
    "Entry",
    "Fenced",
    "Journal",
    "JournalUnavailable",
    "MemoryJournal",
    "MemoryStore",
    "SqliteJournal",
    "SqliteReader",
    "read_only",
]
