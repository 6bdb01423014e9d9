"""The commands `replay` and `policy dry-run`: what policies decide on a recorded run, beside what was decided."""

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.api.cli import parse
from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import Json, cell, change, print_json, print_line, print_table
from trimtab.api.cli.policy import Installed, Name, check_installed
from trimtab.api.cli.runs import Run

if TYPE_CHECKING:
    from trimtab.controller.replayed import Candidate, Decision, Replayed

COLUMNS = ("step", "parameter", "decides", "by", "on record", "by", "reason")


def replay(
    context: typer.Context,
    run: Run,
    policies: Annotated[
        list[parse.PolicyArgument] | None,
        typer.Option(
            "--policy",
            parser=parse.policy,
            metavar=parse.POLICY,
            help="Let these decide from the run's start, in place of those on record; may be given several times.",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Read the home's journal itself: no controller need run; RUN in full.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let policies decide again over a recorded run, beside what was decided.

    Without --policy the recorded ones must decide the very same; if they do not the exit code is 1.
    """
    candidates = _candidates(policies) if policies else None
    if offline:
        answer = _from_disk(context.find_root().params["home"], run, candidates)
    else:
        api = connection(context)
        answer = api.replay(found(api, run), candidates)
    _show(answer, _compared(answer), as_json)
    if candidates is None and not answer.equal:
        raise typer.Exit(1)


def dry_run(context: typer.Context, run: Run, name: Name, policy: Installed, as_json: Json = False) -> None:
    """Tell what would have been decided on the run so far, had this policy been there from its start.

    The others come, change and go as they did on record.
    """
    check_installed(policy)
    api = connection(context)
    answer = api.dry_run(found(api, run), name, policy.kind, policy.params)
    _show(answer, _would(answer, name), as_json)


def _candidates(policies: Sequence[parse.PolicyArgument]) -> "list[Candidate]":
    from trimtab.controller.replayed import Candidate

    for one in policies:
        check_installed(one)
    return [Candidate(name=one.kind, kind=one.kind, params=one.params) for one in policies]


def _from_disk(home: Path, run: str, candidates: "Sequence[Candidate] | None") -> "Replayed":
    """The same answer without a controller."""
    from trimtab.controller.errors import Refused
    from trimtab.controller.journal import JournalUnavailable
    from trimtab.controller.recorded import replay_recorded

    try:
        return replay_recorded(home, run, candidates)
    except (Refused, JournalUnavailable) as error:
        raise CommandError(str(error)) from None


def _show(answer: "Replayed", headline: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    print_line(headline)
    for policy, metrics in answer.unread.items():
        print_line(f"{policy} had to do without {', '.join(metrics)}, which this run has not recorded")
    if answer.decisions or answer.recorded:
        print_line("")
        print_table(COLUMNS, (_line(*line) for line in _lines(answer)))


def _compared(answer: "Replayed") -> str:
    """All policies beside the record."""
    made, recorded = (_many(len(decisions)) for decisions in (answer.decisions, answer.recorded))
    verdict = "the very same" if answer.equal else "not the same"
    return f"{_over(answer)} the policies make {made}; on record: {recorded}, {verdict}."


def _would(answer: "Replayed", name: str) -> str:
    """One policy, whatever the others do."""
    if not answer.observations:
        return f"The run has no observations yet on which {name} could have decided."
    own = [one for one in answer.decisions if one.policy == name]
    refused = sum(one.refused is not None for one in own)
    return f"{_over(answer)} {name} would have made {_many(len(own))}{f' ({refused:,} refused)' if refused else ''}."


def _over(answer: "Replayed") -> str:
    return f"Over the run's {answer.observations:,} observation{'s' * (answer.observations != 1)}"


def _many(decisions: int) -> str:
    return f"{decisions:,} decision{'s' * (decisions > 1)}" if decisions else "no decision"


Line = tuple["Decision", "Decision | None", "Decision | None"]  # whichever there is, the one made, the one recorded


def _lines(answer: "Replayed") -> "list[Line]":
    """Decisions of both sides in the order of steps; those of the same step and parameter share a line."""
    waiting: dict[tuple[int, str], deque[Decision]] = defaultdict(deque)
    for one in answer.recorded:
        waiting[one.step, one.param].append(one)
    lines: list[Line] = []
    for one in answer.decisions:
        there = waiting[one.step, one.param]
        lines.append((one, one, there.popleft() if there else None))
    lines += ((one, None, one) for left in waiting.values() for one in left)
    return sorted(lines, key=lambda line: line[0].step)


def _line(one: "Decision", made: "Decision | None", recorded: "Decision | None") -> tuple[Any, ...]:
    reason = one.reason if one.refused is None else f"{one.reason} ({one.refused})"
    return one.step, one.param, *_side(made), *_side(recorded), reason


def _side(decision: "Decision | None") -> tuple[str, str]:
    if decision is None:
        return cell(None), ""
    shadow = " (shadow)" if decision.shadow else ""
    if decision.refused is not None:
        return "refused", decision.policy + shadow
    if decision.after is None:
        return "notice", decision.policy + shadow
    return change(decision.before, decision.after), decision.policy + shadow
