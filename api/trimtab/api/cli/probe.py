"""The command `probe`: how large a run's batch may be, tried on branches."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.api.cli.connection import CommandError, found
from trimtab.api.cli.output import Json, cell, print_json, print_line, print_table
from trimtab.api.cli.runs import Run
from trimtab.api.cli.up import HOST, PORT, Address, Host, Port, bring_up

if TYPE_CHECKING:
    from trimtab.controller.probe import Ending, Trial, Verdict
    from trimtab.controller.views import RunView


def probe(
    context: typer.Context,
    run: Run,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARG", help="The script's own, after `--`. Default: the run's.")
    ] = None,
    script: Annotated[str | None, typer.Option(help="FILE or FILE:FUNC. Default: the run's.")] = None,
    step: Annotated[
        int | None,
        typer.Option(min=0, help="The step of a checkpoint that is kept (`trimtab show`). Default: the newest."),
    ] = None,
    factors: Annotated[str, typer.Option(help="How many times the batch to try.")] = "1,2,4,8",
    samples: Annotated[
        int | None, typer.Option(help="That each branch trains with. Default: 200 updates of the largest batch.", min=1)
    ] = None,
    tolerance: Annotated[float, typer.Option(help="By how much the loss may end higher.", min=0)] = 0.01,
    workers: Annotated[int | None, typer.Option(help="Of a branch. Default: as many as the run's.", min=1)] = None,
    cpus_per_worker: Annotated[float, typer.Option(min=0, help="That Ray sets aside for it.")] = 1,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="One by default where there are enough; a fraction shares a GPU.")
    ] = None,
    host: Host = HOST,
    port: Port = PORT,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Measure how large a run's batch may be: train short branches of it, beside it, at larger batches."""
    options: dict[str, Any] = {
        "step": step,
        "factors": _factors(factors),
        "samples": samples,
        "tolerance": tolerance,
        "workers": workers,
        "arguments": arguments or None,
    }
    from trimtab.api.client import Client
    from trimtab.workers.crew import Resources

    home = context.find_root().params["home"]
    service = bring_up(home, host, port, address)
    try:
        with Client(service.url, service.token) as api:
            known = api.run(found(api, run))
        named, function = train_function(known, script)
        options |= {
            "script": named,
            "resources": Resources(cpus=cpus_per_worker, gpus=gpus_per_worker),
            "on_start": None if as_json else _started,
        }
        verdict = _probed(function, known.id, options)
    finally:
        service.close()
    report(known.id, verdict, as_json)


def _factors(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(factor) for factor in text.split(","))
    except ValueError:
        message = f"factors are whole numbers, as in 1,2,4,8; got {text!r}"
        raise typer.BadParameter(message, param_hint="--factors") from None


def train_function(run: "RunView", script: str | None) -> tuple[str, Any]:
    """The script, the given one or else the run's own, and its train function as it is now."""
    from trimtab.api.cli.script import load, named

    if not (script or run.script):
        raise CommandError(f"run {run.id} was not started with `trimtab run`: name its script with --script")
    script = script or run.script
    path, function = load(script)
    if path.stat().st_mtime > run.created.timestamp():
        typer.echo(f"trimtab: {path.name} was changed after run {run.id} had begun", err=True)
    return named(path, script), function


def _started(trial: "Trial", branch: str) -> None:
    print_line(f"{branch}: ×{trial.factor}, batch {trial.batch_size:,}, lr {cell(trial.lr)}")


def _probed(function: Any, run: str, options: dict[str, Any]) -> "Verdict":
    from trimtab.controller.errors import Refused
    from trimtab.workers.checkpoint import CheckpointError
    from trimtab.workers.groups import TrainingError
    from trimtab.workers.probe import probe

    try:
        return probe(function, run, **options)
    except (Refused, ValueError, CheckpointError, TrainingError) as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        raise CommandError("the branches were stopped; there is no verdict") from None


def report(run: str, verdict: "Verdict", as_json: bool) -> None:
    """Print a verdict, as a table and a sentence or as JSON."""
    if as_json:
        critical = verdict.critical.batch_size if verdict.critical else None
        print_json({"run": run, "critical_batch": critical, **asdict(verdict), "verdict": str(verdict)})
        return
    columns = ("factor", "batch", "lr", "loss", "difference", "std error", "recovers")
    print_table(columns, (_row(ending) for ending in verdict.endings))
    print_line(str(verdict))


def _row(ending: "Ending") -> tuple[Any, ...]:
    recovers = "diverged" if ending.diverged else "yes" if ending.recovered else "no"
    known = ending.factor > 1 and ending.difference is not None
    compared = (f"{ending.difference:+.3g}", f"{ending.std_error:.2g}") if known else (None, None)
    return (f"×{ending.factor}", ending.batch_size, ending.lr, ending.loss, *compared, recovers)
