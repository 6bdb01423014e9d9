"""The command `metrics`."""

import sys
from typing import Annotated, Any

import typer

from trimtab.api.cli.connection import connection
from trimtab.api.cli.output import Json, print_json, print_line, print_table
from trimtab.api.cli.runs import Run


def metrics(
    context: typer.Context,
    run: Run,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Metrics; none: list the names.")] = None,
    x: Annotated[str, typer.Option("--x", help="step, samples or time.")] = "step",
    start: Annotated[float | None, typer.Option("--from", help="Where to begin on the axis.")] = None,
    end: Annotated[float | None, typer.Option("--to", help="Where to end on the axis.")] = None,
    points: Annotated[int, typer.Option(min=1, help="Buckets a metric.")] = 20,
    csv: Annotated[bool, typer.Option("--csv", help="Print all points as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run's metrics in buckets, or all points as CSV."""
    api = connection(context)
    path = f"{api.run(run)}/metrics"
    if csv:
        with api.text(path, "text/csv", key=keys or []) as text:
            sys.stdout.writelines(text)
        return
    query = {"key": keys, "x": x, "from": start, "to": end, "max_points": points} if keys else {}
    answer = api.get(path, **query)
    if as_json:
        print_json(answer)
    elif not keys:
        print_line("\n".join(answer["keys"]))
    else:
        print_table(("metric", x, "last", "min", "max", "mean"), _rows(answer["series"]))


def _rows(series: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (key, *row)
        for key, columns in series.items()
        for row in zip(*(columns[name] for name in ("x", "last", "min", "max", "mean")), strict=True)
    ]
