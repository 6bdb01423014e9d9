"""Commands that act on a run: pin, unpin, pause, resume, stop, checkpoint, decay, rollback."""

from collections.abc import Callable
from typing import Annotated

import typer

from trimtab.api.cli import parse
from trimtab.api.cli.connection import connection, found
from trimtab.api.cli.output import Json, cell, print_json, print_line
from trimtab.api.cli.policy import Reason, Seen
from trimtab.api.cli.runs import Run

Param = Annotated[str, typer.Argument(metavar="PARAM", help="A hyper-parameter.")]
COMMANDS = {
    "pause": "Hold a run at one step, on all ranks.",
    "resume": "Let a paused run go on.",
    "stop": "End a run at one step, on all ranks.",
    "checkpoint": "Write a checkpoint.",
    "decay": "Begin the decay of schedules that wait for a word (shape wsd) now.",
}


def pin(
    context: typer.Context,
    run: Run,
    param: Param,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Default: the present one.")] = None,
    reason: Reason = "",
    revision: Seen = None,
    as_json: Json = False,
) -> None:
    """Hold a hyper-parameter at a value, whatever the policies say."""
    api = connection(context)
    held = None if value is None else parse.value(value)
    answer = api.pin(found(api, run), param, held, reason, revision)
    if as_json:
        print_json(answer)
    else:
        told = f"{param} is pinned from version {answer.version} on, at {cell(answer.value)}"
        print_line(told if held in (None, answer.value) else f"{told}: {cell(held)} cannot be shared out evenly")


def unpin(
    context: typer.Context, run: Run, param: Param, reason: Reason = "", revision: Seen = None, as_json: Json = False
) -> None:
    """Give a hyper-parameter back to its policies."""
    api = connection(context)
    answer = api.unpin(found(api, run), param, reason, revision)
    if as_json:
        print_json(answer)
    else:
        print_line(f"{param} is free from version {answer.version} on, and {cell(answer.value)} now")


def rollback(
    context: typer.Context,
    run: Run,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="The step of a checkpoint that is kept (`trimtab show`). Default: the newest."),
    ] = None,
    skip_data: Annotated[
        bool, typer.Option("--skip-data", help="Go on with the samples after the point of the roll back.")
    ] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Go back to a checkpoint in place, on all ranks at one step."""
    api = connection(context)
    answer = api.rollback(found(api, run), step, skip_data, reason)
    if as_json:
        print_json(answer)
    else:
        print_line(f"rollback is part of version {answer.version}; `trimtab changes` tells when it has happened")


def command(name: str) -> Callable[..., None]:
    """The command that asks a run to pause, resume, stop, checkpoint or decay."""

    def ask(context: typer.Context, run: Run, reason: Reason = "", as_json: Json = False) -> None:
        api = connection(context)
        answer = getattr(api, name)(found(api, run), reason)
        if as_json:
            print_json(answer)
        else:
            print_line(f"{name} is part of version {answer.version}; `trimtab changes` tells when it has happened")

    ask.__doc__ = COMMANDS[name]
    return ask
