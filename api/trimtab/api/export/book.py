"""What an export is written to."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.controller.views import HyperParameterView, RecordView, RunView


class CannotExport(Exception):
    """The destination cannot be written to; says what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured at one step, hyper-parameters in force among it (`hp/NAME`)."""

    step: int
    samples: int
    time: float  # unix seconds
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Place:
    """All rows up to `step`, as the run's formation had them, are written."""

    step: int
    formation: int

    def __str__(self) -> str:
        return f"{self.step}@{self.formation}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        step, _, formation = text.partition("@")
        return cls(int(step), int(formation))


class Book(ABC):
    """One run in another tool. Every method raises CannotExport.

    Writing is idempotent: whoever was interrupted opens the book again, begins after the step that it is told, and no
    value stands there twice.
    """

    @abstractmethod
    def open(self, run: RunView) -> Place:
        """Make room for the run, or find it again; what stands there already."""

    @abstractmethod
    def rows(self, rows: Sequence[Row]) -> None:
        """Write rows by step. A step may come again with more values, but no value of it twice."""

    @abstractmethod
    def reached(self, place: Place) -> None:
        """An interrupted export goes on from here."""

    @abstractmethod
    def rewind(self, step: int) -> None:
        """The run has gone back to `step`: what was written of later ones is void."""

    @abstractmethod
    def decisions(self, records: Sequence[RecordView]) -> None:
        """All decisions so far, with those that are new or have changed since."""

    @abstractmethod
    def close(self, run: RunView, values: Sequence[HyperParameterView]) -> None:
        """Write what became of the run, and put all of it down."""


def told(record: RecordView) -> str:
    """A decision in a line of Markdown a change."""
    lines = []
    for change in record.changes:
        moved = f": {change.from_} → {change.to}" if record.kind in ("version", "shadow") else f": {change.to}"
        lines.append(f"**{change.param}**{moved} by {change.by}. {change.reason}".rstrip())
    version = f"version {record.version}, " if record.version is not None else ""
    return "  \n".join([*lines, f"*{record.kind}, {version}{record.status}*"])
