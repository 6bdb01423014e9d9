"""The contract that every Journal keeps, ours and a stranger's.

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(check, tmp_path):
        check(lambda: MyJournal(tmp_path / "journal"))

`make` opens one more instance over the *same* store. A check may find entries and terms of earlier checks there.
Each raises AssertionError with the promise that was broken.
"""

from collections.abc import Callable, Sequence
from typing import overload

from trimtab.controller.journal.journal import Entry, Fenced, Journal

Make = Callable[[], Journal]
Check = Callable[[Make], None]


def check_journal(make: Make) -> None:
    """Run every check on one store."""
    for check in CHECKS:
        check(make)


def check_order(make: Make) -> None:
    """Entries come back as they were given, in order, with seq 1, 2, 3, ... over all runs."""
    journal = make()
    before = _last(journal)
    term = journal.take_over()
    acks = [
        journal.append(term, 1.5, "left", ["1"]),
        journal.append(term, 2.5, "right", ["2", "3"]),
        journal.append(term, 1.0, "left", ["4"]),
    ]
    _same("append returns the last seq", acks, [before + 1, before + 3, before + 4])
    given = [(1.5, "left", "1"), (2.5, "right", "2"), (2.5, "right", "3"), (1.0, "left", "4")]
    wanted = [Entry(before + i, term, *entry) for i, entry in enumerate(given, 1)]
    _same("entries come back in order", list(journal.read(after=before)), wanted)
    _same("seq has no gaps from 1 on", [entry.seq for entry in journal.read()], list(range(1, before + 5)))
    journal.close()


def check_reading(make: Make) -> None:
    """`after` and `run` select, alone and together, also across many entries."""
    journal = make()
    before = _last(journal)
    term = journal.take_over()
    for i in range(5):
        journal.append(term, 0.0, f"reading {i % 2}", [f"{i}.{j}" for j in range(500)])
    evens = [f"{i}.{j}" for i in (0, 2, 4) for j in range(500)]
    _same("a run's entries", _events(journal, before, "reading 0"), evens)
    _same("a run's entries after a seq", _events(journal, before + 1250, "reading 0"), evens[750:])
    _same("all entries after a seq", len(_events(journal, before + 1250)), 1250)
    _same("nothing after the last seq", _events(journal, before + 2500), [])
    _same("nothing of an unknown run", _events(journal, 0, "nobody's"), [])
    journal.close()


def check_all_or_nothing(make: Make) -> None:
    """An append that fails on its last event leaves nothing of the others, and the next one leaves no gap."""
    journal = make()
    before = _last(journal)
    term = journal.take_over()
    _refused("an append that fails raises", RuntimeError, lambda: journal.append(term, 0.0, "run", _Breaking(["1"])))
    _same("an append that fails while it reads its events leaves none", _events(journal, before), [])
    try:
        journal.append(term, 0.0, "run", [*"23456789", "\ud800"])  # a lone surrogate: no UTF-8 text can hold it
    except UnicodeError:
        _same("an append that fails while it writes leaves none", _events(journal, before), [])
    else:
        _same("an append that succeeds leaves all", len(_events(journal, before)), 9)
        before += 9
    _same("the append after a failed one has no gap", journal.append(term, 0.0, "run", ["10"]), before + 1)
    journal.close()


def check_empty_append(make: Make) -> None:
    """An append without events is refused with ValueError."""
    journal = make()
    term, before = journal.take_over(), _last(journal)
    _refused("an empty append is refused", ValueError, lambda: journal.append(term, 0.0, "run", []))
    _same("a refused append writes nothing", _last(journal), before)
    journal.close()


def check_fencing(make: Make) -> None:
    """Once the term is raised, no older one can write again, through whatever instance."""
    old, new = make(), make()
    old_term = old.take_over()
    old.append(old_term, 0.0, "run", ["old"])
    new_term = new.take_over()
    _same("take_over raises the term by one", new_term, old_term + 1)
    before = _last(new)
    for stale in (old_term, 0, new_term + 1):
        for journal in (old, new):
            _fenced(journal, stale)
    _same("a fenced append writes nothing", _last(new), before)
    new.check(new_term)
    new.append(new_term, 0.0, "run", ["new"])
    _fenced(old, old_term)
    _same("the new leader's entry stands alone", _events(old, before), ["new"])
    old.close()
    new.close()


def check_reopening(make: Make) -> None:
    """Entries and the term outlive the instance; closing twice does no harm."""
    journal = make()
    term = journal.take_over()
    seq = journal.append(term, 0.25, "run", ['{"kept": true}'])
    journal.close()
    journal.close()
    again = make()
    _same("the entry is there", list(again.read(after=seq - 1)), [Entry(seq, term, 0.25, "run", '{"kept": true}')])
    _same("the term goes on", again.take_over(), term + 1)
    _fenced(again, term)
    again.close()


def check_unicode(make: Make) -> None:
    """Text comes back character for character, however odd or long."""
    journal = make()
    before = _last(journal)
    events = ["", " ", '{"a": "é ∇ 𝄞 \\u0000"}', "\x00 in the middle \x00", "line\r\nbreak\u2028", "long " * 50_000]
    journal.append(journal.take_over(), 0.0, "Lauf/ä 🚤", events)
    _same("text is kept as it is", _events(journal, before, "Lauf/ä 🚤"), events)
    journal.close()


CHECKS: Sequence[Check] = (
    check_order,
    check_reading,
    check_all_or_nothing,
    check_empty_append,
    check_fencing,
    check_reopening,
    check_unicode,
)


class _Breaking(Sequence[str]):
    """Gives its events and then raises where the next would be."""

    def __init__(self, events: Sequence[str]) -> None:
        self._events = events

    def __len__(self) -> int:
        return len(self._events) + 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, int) and index < len(self._events):
            return self._events[index]
        raise RuntimeError("this event cannot be read")


def _events(journal: Journal, after: int, run: str | None = None) -> list[str]:
    return [entry.event for entry in journal.read(after, run)]


def _last(journal: Journal) -> int:
    return max((entry.seq for entry in journal.read()), default=0)


def _fenced(journal: Journal, term: int) -> None:
    _refused(f"an append with term {term} is fenced", Fenced, lambda: journal.append(term, 0.0, "run", ["stale"]))
    _refused(f"a check of term {term} is fenced", Fenced, lambda: journal.check(term))


def _refused(promise: str, error: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{promise}: {error.__name__} was not raised")


def _same(promise: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{promise}: wanted {str(wanted)[:200]}, found {str(found)[:200]}")
