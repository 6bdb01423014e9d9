"""Commands for jobs: jobs, and job show, logs, stop, rm."""

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.api.cli.connection import connection
from trimtab.api.cli.output import Json, cell, print_json, print_line, print_table

if TYPE_CHECKING:
    from trimtab.api.answers import Given

app = typer.Typer(help="Jobs of the Ray cluster.", no_args_is_help=True)
Job = Annotated[str, typer.Argument(metavar="JOB", help="Its submission id.")]


def jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List the jobs that were submitted to the Ray cluster."""
    shown = list(islice(connection(context).jobs(), limit))
    if as_json:
        print_json(shown)
        return
    print_table(
        ("job", "status", "command", "runs", "by", "started", "ended"),
        (
            (
                job.submission_id,
                job.status,
                job.entrypoint,
                job.runs,
                job.by,
                _time(job.start_time),
                _time(job.end_time),
            )
            for job in shown
        ),
    )


@app.command("show")
def show(context: typer.Context, job: Job, as_json: Json = False) -> None:
    """Show one job."""
    found = connection(context).job(job)
    if as_json:
        print_json(found)
        return
    print_line(f"{found.submission_id}: {found.status}")
    print_line(f"  command  {found.entrypoint}")
    print_line(f"  since    {_time(found.start_time)}" + (f" to {_time(found.end_time)}" if found.end_time else ""))
    print_line(f"  by       {found.by or 'somebody, past Trimtab'}")
    if given := _given(found.given):
        print_line(f"  given    {given}")
    print_line(f"  runs     {', '.join(found.runs) or '–'}")
    if found.message:
        print_line(f"  {found.message}")


def _given(given: "Given") -> str:
    """What stands in place of the script's own."""
    from trimtab.controller.hyperparameters import HyperParameter

    defaults = {name: one.default if isinstance(one, HyperParameter) else one for name, one in given.hp.items()}
    values = [f"{name} {cell(value)}" for name, value in defaults.items()]
    policies = [f"{one.code or one.kind}{' in shadow' * (one.mode == 'shadow')}" for one in given.policies]
    return ", ".join([*values, *(f"policy {one}" for one in policies)])


@app.command("logs")
def logs(
    context: typer.Context,
    job: Job,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
) -> None:
    """Print what a job has printed."""
    api = connection(context)
    for text in api.follow_job(job) if follow else [api.job_logs(job)]:
        typer.echo(text, nl=False)


@app.command("stop")
def stop(context: typer.Context, job: Job, as_json: Json = False) -> None:
    """End a job at once; `trimtab stop RUN` ends its run at one step, with a checkpoint."""
    answer = connection(context).stop_job(job)
    if as_json:
        print_json(answer)
    else:
        print_line(f"{job} is told to stop" if answer.stopped else f"{job} was not running")


@app.command("rm")
def rm(context: typer.Context, job: Job, as_json: Json = False) -> None:
    """Forget a job that has ended."""
    answer = connection(context).delete_job(job)
    if as_json:
        print_json(answer)
    else:
        print_line(f"{job} is forgotten")


def _time(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
