"""Whether command lines that stand in files of deploy/ are such as Trimtab and Ray take: nothing is run."""

import shlex
from collections.abc import Sequence
from typing import Any

import click
import typer

GROUPS = (click.Group, typer.core.TyperGroup)  # Typer has a click of its own
REFUSALS: Any = (click.UsageError, typer.BadParameter.__base__)


def refusal(command: str | Sequence[str]) -> str | None:
    """Why a `trimtab …` or `ray …` would be refused; None where it would run. Raises KeyError for another's command."""
    program, *arguments = shlex.split(command) if isinstance(command, str) else command
    try:
        _descend(_PROGRAMS[program.rpartition("/")[2]](), arguments)
    except REFUSALS as error:
        return str(error.format_message())
    return None


def _descend(command: Any, arguments: list[str]) -> None:
    """Read the arguments as the command would, and those of its subcommands."""
    with command.make_context(command.name, arguments) as context:
        if isinstance(command, GROUPS):
            _name, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            _descend(child, rest)


def _trimtab() -> Any:
    from trimtab.api.cli import app

    return typer.main.get_command(app)


def _ray() -> Any:
    from ray.scripts.scripts import cli

    return cli


_PROGRAMS = {"trimtab": _trimtab, "ray": _ray}
