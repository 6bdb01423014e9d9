"""A run as it stands on disk, decided again: its journal and its metrics are read while both may be written."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path

from trimtab.controller.errors import Refused
from trimtab.controller.events import decode
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.journal import Entry, read_only
from trimtab.controller.metrics import MetricReader
from trimtab.controller.metrics.store import file_of
from trimtab.controller.policies import sandbox
from trimtab.controller.replay import replay
from trimtab.controller.replayed import NAME, Replayed, Tried
from trimtab.controller.stored import NOTHING, Stored


def replay_recorded(home: Path, run: str, tried: Tried | None = None) -> Replayed:
    """The run `run` of the installation in `home`, replayed; see `replay`.

    Raises Refused where there is no such run too, and JournalUnavailable.
    """
    with closing(read_only(home / JOURNAL)) as journal:
        return replay_entries(journal.read(run=run), file_of(home / METRICS, run), tried)


def replay_entries(entries: Iterable[Entry], metrics: Path, tried: Tried | None = None) -> Replayed:
    """The run whose `entries` of the journal these are, replayed with its metric file."""
    entries = iter(entries)
    first = next(entries, None)
    if first is None:
        raise Refused("run-not-found", "the journal has no such run")
    events = (decode(entry.event) for entry in chain([first], entries))
    try:
        with _stored(metrics) as stored:
            return replay(events, tried, stored)
    finally:
        sandbox.retain(NAME, ())


@contextmanager
def _stored(metrics: Path) -> Iterator[Stored]:
    if not metrics.exists():  # nothing has been measured yet
        yield NOTHING
        return
    with closing(MetricReader(metrics)) as reader:
        yield reader
