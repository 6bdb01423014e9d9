"""The commands `token new | ls | rm`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from trimtab.api.cli.connection import connection
from trimtab.api.cli.output import Json, print_json, print_line, print_table

app = typer.Typer(no_args_is_help=True, help="Tokens: who may use the API, as what, until when.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Stands in the journal beside what its bearer changes.")]


@app.command("new")
def new_token(
    context: typer.Context,
    name: Name,
    role: Annotated[
        Literal["viewer", "operator", "admin"],
        typer.Option(help="viewer reads; operator steers runs too; admin submits jobs and hands out tokens too."),
    ] = "viewer",
    days: Annotated[float | None, typer.Option(min=0, max=36500, help="How long it holds. Default: for ever.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    made = connection(context).new_token(name, role, expires)
    if as_json:
        print_json(made)
    else:
        typer.echo(made.token)


@app.command("ls")
def list_tokens(context: typer.Context, as_json: Json = False) -> None:
    """List the tokens there are; what they are nobody knows any more."""
    found = connection(context).tokens()
    if as_json:
        print_json(found)
    else:
        print_table(
            ("token", "role", "made", "expires"),
            ((one.name, one.role, _day(one.created), _day(one.expires)) for one in found),
        )


def _day(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M}"


@app.command("rm")
def remove_token(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """End a token, with its sessions and event streams, at once."""
    connection(context).delete_token(name)
    if as_json:
        print_json({"removed": name})
    else:
        print_line(f"{name} is removed")
