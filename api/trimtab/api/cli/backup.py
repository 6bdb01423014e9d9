"""The commands `backup` and `restore`: the home copied while it is in use, and made anew."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.api.cli.connection import CommandError
from trimtab.api.cli.output import Json, print_json, print_line
from trimtab.api.cli.up import Home

if TYPE_CHECKING:
    from trimtab.api.backup import Backup


def backup(
    context: typer.Context,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder that is not there yet.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Copy the home (journal, metrics, tokens) while the controller goes on; run it on the controller's machine.

    Checkpoints are not in it: they are whole or absent by themselves, and any tool may copy them.
    """
    from trimtab.api import backup as copying

    try:
        made = copying.backup(home or context.find_root().params["home"], destination)
    except copying.BackupError as error:
        raise CommandError(str(error)) from None
    _tell(made, f"backed up to {destination}", as_json)


def restore(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What `trimtab backup` has made.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a home from a backup, all of which is checked first; the home must be empty or not there yet."""
    from trimtab.api import backup as copying

    home = home or context.find_root().params["home"]
    try:
        found = copying.restore(source, home)
    except copying.BackupError as error:
        raise CommandError(str(error)) from None
    _tell(found, f"restored to {home}", as_json)


def _tell(copied: "Backup", what: str, as_json: bool) -> None:
    if as_json:
        print_json(copied)
    else:
        size = copied.bytes / 2**20
        runs = "1 run" if copied.runs == 1 else f"{copied.runs:,} runs"
        print_line(f"{copied.entries:,} entries of the journal, {runs}, {size:,.1f} MiB {what}")
