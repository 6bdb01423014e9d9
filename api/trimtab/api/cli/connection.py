"""The command line's way to the API: the client that options and environment name, and runs by their beginnings."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from trimtab.api.client import Client

HINTS = {"unauthenticated": "; the token is in the home's client.json, or give --token"}


class CommandError(Exception):
    """Ends the command with exit code 1; its text is what the user reads."""


def connection(context: typer.Context) -> "Client":
    """The client of the command that is running."""
    from trimtab.api.client import Client

    options = context.find_root().params
    client = Client(options["url"], options["token"], options["home"])
    context.call_on_close(client.close)
    return client


def found(api: "Client", prefix: str) -> str:
    """The run whose id is `prefix`, or the only one that begins with it."""
    ids = [run.id for run in api.runs(name=prefix)]
    beginning = [prefix] if prefix in ids else [one for one in ids if one.startswith(prefix)]
    if len(beginning) == 1:
        return beginning[0]
    if not beginning:
        raise CommandError(f"no run's id begins with {prefix!r}; `trimtab runs` lists them")
    raise CommandError(f"{prefix!r} is not unique: {', '.join(beginning[:8])}")
