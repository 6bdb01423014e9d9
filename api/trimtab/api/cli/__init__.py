"""The command line `trimtab`. Nothing heavy is imported before a command needs it: help must be quick."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from trimtab.api.cli import (
    backup,
    control,
    export,
    group,
    jobs,
    metrics,
    policy,
    probe,
    replay,
    run,
    runs,
    submit,
    token,
    up,
    watch,
)
from trimtab.api.cli.connection import HINTS, CommandError
from trimtab.api.errors import ApiError

app = typer.Typer(
    name="trimtab",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adaptive hyper-parameter control for training on Ray.",
)


def _expanded(home: Path) -> Path:
    return home.expanduser()


@app.callback()
def options(
    url: Annotated[str | None, typer.Option(envvar="TRIMTAB_URL", help="Where the API answers.")] = None,
    token: Annotated[str | None, typer.Option(envvar="TRIMTAB_TOKEN", help="What opens it.")] = None,
    home: Annotated[
        Path,
        typer.Option(envvar="TRIMTAB_HOME", help="Where journal, metrics and tokens are kept.", callback=_expanded),
    ] = Path("~/.trimtab"),
) -> None:
    """Read by the commands from the root of their context; see `connection`."""


for function in (
    up.up,
    run.run,
    probe.probe,
    runs.runs,
    runs.show,
    watch.watch,
    runs.why,
    runs.changes,
    metrics.metrics,
    export.export,
    control.pin,
    control.unpin,
    group.scale,
    group.sync,
    control.rollback,
    replay.replay,
    backup.backup,
    backup.restore,
):
    app.command()(function)
app.command(context_settings={"allow_interspersed_args": False})(submit.submit)  # what follows is the job's own
app.command()(jobs.jobs)
for name in control.COMMANDS:
    app.command(name)(control.command(name))
policy.app.command("dry-run")(replay.dry_run)
app.add_typer(policy.app, name="policy")
app.add_typer(jobs.app, name="job")
app.add_typer(token.app, name="token")


def main(arguments: list[str] | None = None) -> None:
    """The entry point: exit code 0, 1 for what was refused or did not answer, 2 for what was asked wrongly."""
    try:
        app(arguments)
    except CommandError as error:
        _end(str(error))
    except ApiError as error:
        _end(f"{error}{HINTS.get(error.code, '')}")


def _end(message: str) -> NoReturn:
    typer.echo(f"trimtab: {message}", err=True)
    sys.exit(1)
