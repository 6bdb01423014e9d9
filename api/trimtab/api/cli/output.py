"""What commands print: tables for people, JSON for programs. Rich honours NO_COLOR and terminals by itself."""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UNCHANGED = "unchanged"
PIPED_WIDTH = 200  # where there is no terminal whose width counts


def console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def print_json(data: Any) -> None:
    """Print models and plain data as the API would answer them."""
    from pydantic_core import to_json

    typer.echo(to_json(data, indent=2, inf_nan_mode="strings", by_alias=True))


def print_record(data: Any) -> None:
    """Print one line of JSON, at once: for programs that read while it goes on."""
    from pydantic_core import to_json

    typer.echo(to_json(data, inf_nan_mode="strings", by_alias=True))
    sys.stdout.flush()


def print_line(text: str) -> None:
    """Print a line as one line, however long: an address in it is to be copied whole."""
    console().print(escape(text), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(one)) for one in row))
    console().print(table)


def change(before: Any, after: Any) -> str:
    """From what to what, as one phrase."""
    first, last = sides(before, after)
    return f"{first} ({last})" if last == UNCHANGED else f"{first} → {last}"


def sides(before: Any, after: Any) -> tuple[str, str]:
    """The same for two columns. What moves a factor behind a pin, say, does not move the value."""
    first, last = cell(before), cell(after)
    if before is None or first != last:
        return first, last
    return (first, UNCHANGED) if before == after else (str(before), str(after))  # they differ in later digits


def cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(str, value))
    return str(value)
