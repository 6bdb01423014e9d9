"""The commands `replay` and `policy dry-run`: what policies decide on a recorded run, beside what was decided."""

from collections import defaultdict, deque
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.api.cli import parse
from trimtab.api.cli.connection import CommandError, connection, segment
from trimtab.api.cli.output import Json, cell, print_json, print_line, print_table
from trimtab.api.cli.policy import Installed, Name, wish
from trimtab.api.cli.runs import Run

COLUMNS = ("step", "parameter", "decides", "by", "decided", "by", "reason")


def replay(
    context: typer.Context,
    run: Run,
    policies: Annotated[
        list[parse.PolicyArgument] | None,
        typer.Option(
            "--policy",
            parser=parse.policy,
            metavar="KIND[:k=v,…]",
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
    candidates = [wish(one) | {"name": one.kind} for one in policies] if policies else None
    if offline:
        answer = _from_disk(context.find_root().params["home"], run, candidates)
    else:
        api = connection(context)
        answer = api.replay("POST", f"{api.run(run)}/replay", {"policies": candidates})
    _show(answer, as_json)
    if candidates is None and not answer["equal"]:
        raise typer.Exit(1)


def dry_run(context: typer.Context, run: Run, name: Name, policy: Installed, as_json: Json = False) -> None:
    """Tell what a run's policies, with this one in its place, would have decided on the run so far."""
    api = connection(context)
    _show(api.replay("PUT", f"{api.run(run)}/policies/{segment(name)}", wish(policy), dry_run="true"), as_json)


def _from_disk(home: Path, run: str, candidates: list[dict[str, Any]] | None) -> Any:
    """The same answer without a controller."""
    from pydantic import TypeAdapter

    from trimtab.controller.errors import Refused
    from trimtab.controller.journal import JournalUnavailable
    from trimtab.controller.recorded import replay_recorded
    from trimtab.controller.replayed import Candidate, Replayed

    wished = None if candidates is None else [Candidate(**one) for one in candidates]
    try:
        replayed = replay_recorded(home, run, wished)
    except (Refused, JournalUnavailable) as error:
        raise CommandError(str(error)) from None
    return TypeAdapter(Replayed).dump_python(replayed, mode="json")


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    made, recorded = len(answer["decisions"]), len(answer["recorded"])
    verdict = "equal" if answer["equal"] else "not equal"
    print_line(f"{answer['observations']:,} observations: {made:,} decisions, {recorded:,} on record: {verdict}")
    for policy, metrics in answer["unread"].items():
        print_line(f"{policy} decided without {', '.join(metrics)}: not recorded")
    if made or recorded:
        print_line("")
        print_table(COLUMNS, (_line(*pair) for pair in _pairs(answer)))


Pair = tuple[dict[str, Any] | None, dict[str, Any] | None]


def _pairs(answer: dict[str, Any]) -> list[Pair]:
    """Decisions of both sides in the order of steps; those of the same step and parameter share a line."""
    waiting: dict[tuple[int, str], deque[dict[str, Any]]] = defaultdict(deque)
    for one in answer["recorded"]:
        waiting[one["step"], one["param"]].append(one)
    pairs: list[Pair] = []
    for one in answer["decisions"]:
        there = waiting[one["step"], one["param"]]
        pairs.append((one, there.popleft() if there else None))
    pairs += ((None, one) for left in waiting.values() for one in left)
    return sorted(pairs, key=_step)


def _step(pair: Pair) -> int:
    made, recorded = pair
    step: int = (made or recorded or {})["step"]
    return step


def _line(made: dict[str, Any] | None, recorded: dict[str, Any] | None) -> tuple[Any, ...]:
    one = made or recorded or {}
    reason = one["reason"] if one["refused"] is None else f"{one['reason']} ({one['refused']})"
    return one["step"], one["param"], *_side(made), *_side(recorded), reason


def _side(decision: dict[str, Any] | None) -> tuple[str, str]:
    if decision is None:
        return cell(None), ""
    shadow = " (shadow)" if decision["shadow"] else ""
    if decision["refused"] is not None:
        return "refused", decision["policy"] + shadow
    if decision["after"] is None:
        return "notice", decision["policy"] + shadow
    return f"{cell(decision['before'])} → {cell(decision['after'])}", decision["policy"] + shadow
