"""The command `metrics`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import Json, print_json, print_line, print_table
from trimtab.api.cli.runs import Run

if TYPE_CHECKING:
    from trimtab.api.answers import Metrics


def metrics(
    context: typer.Context,
    run: Run,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Metrics; none: list the names.")] = None,
    x: Annotated[Literal["step", "samples", "time"], typer.Option("--x", help="The axis.")] = "step",
    start: Annotated[float | None, typer.Option("--from", help="Where to begin on the axis.")] = None,
    end: Annotated[float | None, typer.Option("--to", help="Where to end on the axis.")] = None,
    points: Annotated[int, typer.Option(min=1, help="Buckets a metric.")] = 20,
    csv: Annotated[bool, typer.Option("--csv", help="Print all points as CSV.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Of one rank; its own values are kept for the newest steps only.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a run's metrics in buckets, or all points as CSV."""
    api = connection(context)
    run = found(api, run)
    if csv:
        with api.csv(run, keys or [], rank) as text:
            sys.stdout.writelines(text)
    elif not keys:
        known = api.metric_keys(run)
        if as_json:
            print_json({"keys": known})
        else:
            print_line("\n".join(known))
    else:
        if unknown := sorted(set(keys) - set(known := api.metric_keys(run))):
            raise CommandError(f"no metric {', '.join(unknown)}; there are {', '.join(known)}")
        answer = api.metrics(run, keys, x, start, end, points, rank)
        if as_json:
            print_json(answer)
        else:
            print_table(("metric", x, "last", "min", "max", "mean"), _rows(answer))


def _rows(answer: "Metrics") -> list[tuple[Any, ...]]:
    return [
        (key, *row)
        for key, one in answer.series.items()
        for row in zip(one.x, one.last, one.min, one.max, one.mean, strict=True)
    ]
