"""The command `export`: a run's metrics, written elsewhere."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import print_line
from trimtab.api.cli.runs import Run

if TYPE_CHECKING:
    from trimtab.api.client import Client


class Format(StrEnum):
    CSV = "csv"


def export(
    context: typer.Context,
    run: Run,
    destination: Annotated[str, typer.Argument(help="A path, or a URL that fsspec knows: s3://bucket/loss.csv, ….")],
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="A metric, more than once; without it all of them.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.CSV,
) -> None:
    """Write a run's metrics, all points, to a file or an object store."""
    api = connection(context)
    WRITERS[form](api, found(api, run), destination, keys or [])
    print_line(f"{run} is in {destination}")


def _csv(api: "Client", run: str, destination: str, keys: list[str]) -> None:
    """One row a step; the file is there whole, or as it was before."""
    import fsspec

    try:
        files, path = fsspec.url_to_fs(destination)
        with api.csv(run, keys) as text, files.transaction, files.open(path, "wb") as file:
            file.writelines(part.encode() for part in text)
    except (OSError, ValueError, ImportError) as error:  # ImportError names the package that the protocol needs
        raise CommandError(f"the export cannot be written to {destination}: {error}") from error


WRITERS: Mapping[Format, Callable[["Client", str, str, list[str]], None]] = {Format.CSV: _csv}
