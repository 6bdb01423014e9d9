"""The command `export`: a run, written elsewhere."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import Json, print_json, print_line
from trimtab.api.cli.runs import Run

if TYPE_CHECKING:
    from trimtab.api.client import Client
    from trimtab.api.export.book import Book


class Format(StrEnum):
    CSV = "csv"
    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


def export(
    context: typer.Context,
    run: Run,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="csv: a path, or a URL that fsspec knows, s3://bucket/loss.csv; tensorboard: its log folder; "
            "mlflow: a tracking URI, sqlite:///mlflow.db or http://host:5000.",
        ),
    ],
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="A metric, more than once; without it all of them.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.CSV,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended; not for csv.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run elsewhere: all points as CSV, or metrics, decisions and summary for TensorBoard or MLflow.

    What was interrupted may be repeated: nothing stands there twice.
    """
    if form is Format.CSV and follow:
        raise typer.BadParameter("a table is written once; follow with tensorboard or mlflow", param_hint="--follow")
    api = connection(context)
    run = found(api, run)
    if form is Format.CSV:
        _csv(api, run, destination, keys or [])
        written: dict[str, Any] = {}
    else:
        written = _copy(api, run, _book(form, destination), keys or [], follow)
    if as_json:
        print_json({"run": run, "destination": destination, "format": form.value, **written})
    else:
        figures = "".join(f", {value:,} {name}" for name, value in written.items())
        print_line(f"{run} is in {destination}{figures}")


def _csv(api: "Client", run: str, destination: str, keys: list[str]) -> None:
    """One row a step; the file is there whole, or as it was before."""
    import fsspec

    try:
        files, path = fsspec.url_to_fs(destination)
        with api.csv(run, keys) as text, files.transaction, files.open(path, "wb") as file:
            file.writelines(part.encode() for part in text)
    except (OSError, ValueError, ImportError) as error:  # ImportError names the package that the protocol needs
        raise CommandError(f"the export cannot be written to {destination}: {error}") from error


def _book(form: Format, destination: str) -> "Book":
    if form is Format.TENSORBOARD:
        from trimtab.api.export.tensorboard import TensorBoard

        return TensorBoard(destination)
    from trimtab.api.export.mlflow import MLflow

    return MLflow(destination)


def _copy(api: "Client", run: str, book: "Book", keys: list[str], follow: bool) -> dict[str, Any]:
    from trimtab.api.export.book import CannotExport
    from trimtab.api.export.copying import copy

    try:
        copied = copy(api, run, book, keys, follow)
    except CannotExport as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        raise CommandError("interrupted; the same command goes on where it was") from None
    return {"steps": copied.steps, "points": copied.points, "decisions": copied.decisions}
