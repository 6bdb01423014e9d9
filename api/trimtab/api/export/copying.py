"""Copies a run's metrics and decisions into a book, after the fact or for as long as the run goes on."""

import csv
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from trimtab.api.client import Client
from trimtab.api.errors import ApiError
from trimtab.api.export.book import Book, Place, Row
from trimtab.controller.views import RecordView, RunView

BATCH = 500  # rows handed over at once
AGAIN = 256  # steps read once more: what was logged at a step may come a little later than the step itself
LOOK_S = 2.0  # between two readings of a run that goes on
REST = 10  # and at least so many times as long as the last reading took
PATIENCE_S = 300.0  # that the API may be away
AWAY = ("unreachable", "controller-unreachable")


@dataclass(slots=True)
class Copied:
    """How far a copy is."""

    begun: int  # all rows up to this step were there before
    formation: int
    steps: int  # the newest
    points: int = 0  # written this time
    decisions: int = 0
    beyond: dict[str, int] = field(default_factory=dict)  # metric -> its newest step that is written


def copy(api: Client, run: str, book: Book, keys: Sequence[str] = (), follow: bool = False) -> Copied:
    """Write `run` into `book`; with `follow` until it has ended. Raises CannotExport and ApiError."""
    view = api.run(run)
    place = book.open(view)
    copied = Copied(place.step, place.formation, place.step)
    heard = time.monotonic()
    while True:
        start = time.monotonic()
        try:
            view = api.run(run)  # before its metrics: once it has ended they are all there
            _go_back(view, copied, book)
            _copy_rows(api, run, keys, not view.state.ended, copied, book)
            _copy_decisions(api, run, copied, book)
            heard = time.monotonic()
        except ApiError as error:
            if not follow or error.code not in AWAY or time.monotonic() - heard > PATIENCE_S:
                raise
        if not follow or view.state.ended:
            break
        time.sleep(max(LOOK_S, REST * (time.monotonic() - start)))
    if view.state.ended:
        book.reached(Place(copied.steps, copied.formation))
    book.close(view, api.hyperparameters(run).hyperparameters)
    return copied


def _go_back(view: RunView, copied: Copied, book: Book) -> None:
    """Follow the run to the checkpoints that it has gone back to since."""
    for one in view.recoveries:
        if one.formation > copied.formation and one.step < copied.steps:
            book.rewind(one.step)
            copied.steps, copied.begun = one.step, min(copied.begun, one.step)
            copied.beyond = {key: min(step, one.step) for key, step in copied.beyond.items()}
    copied.formation = view.formation


def _copy_rows(api: Client, run: str, keys: Sequence[str], going: bool, copied: Copied, book: Book) -> None:
    """Write what is new of each metric; of a run that has ended, read all of it once more."""
    start = max(copied.begun, copied.steps - AGAIN) if going else copied.begun
    batch: list[Row] = []
    with api.csv(run, keys, from_=start) as text:
        for row in table(text):
            new = {key: value for key, value in row.values.items() if row.step > copied.beyond.get(key, copied.begun)}
            if not new:
                continue
            copied.beyond.update(dict.fromkeys(new, row.step))
            copied.points += len(new)
            batch.append(Row(row.step, row.samples, row.time, new))
            if len(batch) >= BATCH:
                _hand_over(batch, copied, book)
    _hand_over(batch, copied, book)


def _hand_over(batch: list[Row], copied: Copied, book: Book) -> None:
    if batch:
        book.rows(batch)
        copied.steps = max(copied.steps, batch[-1].step)
        batch.clear()
        book.reached(Place(max(copied.begun, copied.steps - AGAIN), copied.formation))


def _copy_decisions(api: Client, run: str, copied: Copied, book: Book) -> None:
    records: list[RecordView] = list(api.changes(run))
    book.decisions(records)
    copied.decisions = len(records)


def table(pieces: Iterable[str]) -> Iterator[Row]:
    """The rows of a run's CSV, however it is cut into pieces."""
    lines = csv.reader(_lines(pieces))
    names = next(lines)[3:]
    for step, samples, unix, *cells in lines:
        values = {name: float(cell) for name, cell in zip(names, cells, strict=True) if cell}
        yield Row(int(step), int(samples), float(unix), values)


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Whole lines; the names of metrics hold no line's end."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest
