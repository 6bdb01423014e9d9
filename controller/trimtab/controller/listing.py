"""Lists over all runs, a page at a time: the runs themselves, and who changed what in them."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Literal

from pydantic import TypeAdapter

from trimtab.controller.errors import Refused
from trimtab.controller.history import History, Record
from trimtab.controller.run import Run
from trimtab.controller.state import RunState

Sort = Literal["-created", "created", "-updated", "updated", "name", "-name", "state", "-state", "owner", "-owner"]
_VALUES: Mapping[str, Callable[[Run], Any]] = {
    "created": lambda run: run.created,
    "updated": lambda run: run.updated,
    "name": lambda run: run.spec.name,
    "state": lambda run: run.state,
    "owner": lambda run: run.spec.owner,
}
_TIMED: frozenset[Sort] = frozenset({"-created", "created", "-updated", "updated"})
_AUDIT = "audit"
_AT_TIME = TypeAdapter[Any](tuple[str, float, str])  # what a place holds: the list that it is of, and where in it
_AT_WORD = TypeAdapter[Any](tuple[str, str, str])
_AT_RECORD = TypeAdapter[Any](tuple[str, float, str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsWanted:
    """Which runs, in which order (`-`: the greatest first), and from which place on."""

    states: frozenset[RunState] = frozenset()  # none: all
    name: str = ""  # part of the id or of the name, in any case
    owner: str = ""
    sort: Sort = "-created"
    place: str | None = None  # as `page` answered it
    limit: int = 100

    def __contains__(self, run: Run) -> bool:
        if (self.states and run.state not in self.states) or self.owner not in ("", run.spec.owner):
            return False
        name = self.name.casefold()
        return not name or name in run.id.casefold() or name in run.spec.name.casefold()

    def key(self, run: Run) -> tuple[Any, str]:
        """What is sorted by; no two runs have the same."""
        return _VALUES[self.sort.removeprefix("-")](run), run.id


def page(runs: Iterable[Run], wanted: RunsWanted) -> tuple[list[Run], str | None]:
    """A page of runs, and the place after it if there are more. What comes or changes meanwhile moves no other run."""
    downwards = wanted.sort.startswith("-")
    found = sorted((run for run in runs if run in wanted), key=wanted.key, reverse=downwards)
    if wanted.place is not None:
        at = _decoded(wanted.place, wanted.sort, _AT_TIME if wanted.sort in _TIMED else _AT_WORD)
        found = [run for run in found if (wanted.key(run) < at if downwards else wanted.key(run) > at)]
    shown = found[: wanted.limit]
    more = len(found) > wanted.limit
    return shown, _encoded(wanted.sort, *wanted.key(shown[-1])) if more else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesWanted:
    """Which lines of the audit."""

    run: str = ""  # its id; "": all
    by: str = ""  # a person's token, a policy; "": all
    place: str | None = None
    limit: int = 100


def audit(histories: Mapping[str, History], wanted: ChangesWanted) -> tuple[list[tuple[str, Record]], str | None]:
    """A page of the audit over all runs with the id of each run, newest first; and the place after it if there is
    more."""
    chosen = {run: history for run, history in histories.items() if wanted.run in ("", run)}
    at = _decoded(wanted.place, _AUDIT, _AT_RECORD) if wanted.place is not None else None
    lines = merge(*(_newest(run, history, at) for run, history in chosen.items()), key=lambda line: _age(*line))
    found = (
        line
        for line in lines
        if (at is None or _age(*line) > _negated(at))
        and (not wanted.by or any(c.by == wanted.by for c in line[1].changes))
    )
    shown = list(islice(found, wanted.limit + 1))
    if len(shown) <= wanted.limit:
        return shown, None
    run, record = shown[wanted.limit - 1]
    return shown[:-1], _encoded(_AUDIT, record.time, run, record.id)


def _newest(run: str, history: History, at: tuple[Any, ...] | None) -> Iterator[tuple[str, Record]]:
    for record in history.newest(None if at is None else at[0]):
        yield run, record


def _age(run: str, record: Record) -> tuple[float, str, int]:
    return -record.time, run, -record.id


def _negated(at: tuple[Any, ...]) -> tuple[float, str, int]:
    time, run, number = at
    return -time, run, -number


def _encoded(what: str, *at: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([what, *at]).encode()).decode().rstrip("=")


def _decoded(place: str, what: str, shape: TypeAdapter[Any]) -> tuple[Any, ...]:
    """Where a page ended. Raises Refused for what `_encoded` has not made for the same list."""
    try:
        made_for, *at = shape.validate_json(base64.urlsafe_b64decode(place + "=" * (-len(place) % 4)))
    except ValueError:
        made_for, at = None, []
    if made_for != what:
        message = "not one of ours, or of a list that was sorted otherwise"
        raise Refused("invalid-parameters", f"page_token: {message}", {"page_token": message})
    return tuple(at)
