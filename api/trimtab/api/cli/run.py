"""The command `run`: train here and follow."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trimtab.api.cli import given
from trimtab.api.cli.connection import CommandError, found
from trimtab.api.cli.output import Json, print_json
from trimtab.api.cli.up import HOST, PORT, Address, Host, Port, bring_up

SETTLED = (  # when a run begins: one that is resumed goes on with what it had
    "workers",
    "min_workers",
    "max_workers",
    "learners",
    "max_learners",
    "sync",
    "on_resize",
    "hp",
    "policy",
    "shadow",
    "samples",
    "steps",
    "epochs",
    "name",
    "seed",
    "lr_rule",
    "micro_batch",
    "max_micro_batch",
    "checkpoints",
)


def run(
    context: typer.Context,
    script: Annotated[str, typer.Argument(metavar="FILE[:FUNC]", help="The function is `train` unless named.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARG", help="The script's own, after `--`.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes, each a rank.", min=1)] = 1,
    min_workers: Annotated[int, typer.Option(help="With fewer the run waits for more.", min=1)] = 1,
    max_workers: Annotated[
        int | None, typer.Option(help="That the run may grow to; 256, or --workers if more.", min=1, show_default=False)
    ] = None,
    learners: Annotated[int, typer.Option(help="On each worker's device.", min=1)] = 1,
    max_learners: Annotated[
        int | None, typer.Option(help="That a device may be given; --learners.", min=1, show_default=False)
    ] = None,
    spares: Annotated[int, typer.Option(help="Workers kept ready, to come in at once where one is lost.", min=0)] = 0,
    sync: Annotated[
        Literal["allreduce", "sma", "pair", "local"] | None,
        typer.Option(help="How replicas are kept together, at first; options of it by --hp."),
    ] = None,
    on_resize: Annotated[
        Literal["hold", "scale"],
        typer.Option(help="What stays when workers come or go: the global batch, or each worker's share (scale)."),
    ] = "hold",
    hp: given.HyperParameters = None,
    policy: given.Policies = None,
    shadow: given.Shadows = None,
    samples: Annotated[int | None, typer.Option(help="Where the run ends.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Where the run ends.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Where the run ends.", min=1)] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; the script's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of models, data order and augmentation.")] = 0,
    lr_rule: Annotated[
        str | None, typer.Option(help="How lr follows the batch: none, linear, sqrt, adascale; else the optimizer's.")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Samples a rank and forward pass, at first.", min=1)] = None,
    max_micro_batch: Annotated[int | None, typer.Option(help="What fits into memory.", min=1)] = None,
    cpus_per_worker: Annotated[float, typer.Option(min=0, help="That Ray sets aside for it.")] = 1,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="One by default where there are enough; a fraction shares a GPU.")
    ] = None,
    checkpoints: Annotated[
        str | None, typer.Option(help="A folder that all workers share, or a URL that fsspec knows: s3://bucket/runs.")
    ] = None,
    checkpoint_steps: Annotated[int, typer.Option(min=0, help="Between two checkpoints; 0: at the end only.")] = 500,
    resume: Annotated[
        str | None, typer.Option(help="A run to go on with, from its last checkpoint, as it was started.")
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Where to write the summary as JSON.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    host: Host = HOST,
    port: Port = PORT,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train a script here, steered by policies; follow it in the terminal and on the page."""
    if summary is not None and not summary.absolute().parent.is_dir():
        raise CommandError(f"the summary cannot be written: there is no folder {summary.absolute().parent}")
    options: dict[str, Any] = {
        "workers": workers,
        "min_workers": min_workers,
        "max_workers": max_workers,
        "learners": learners,
        "max_learners": max_learners,
        "spares": spares,
        "sync": sync,
        "on_resize": on_resize,
        "hp": given.hyper_parameters(hp or []),
        "policies": given.policies(policy or [], shadow or []),
        "samples": samples,
        "steps": steps,
        "epochs": epochs,
        "seed": seed,
        "lr_rule": lr_rule,
        "micro_batch": micro_batch,
        "max_micro_batch": max_micro_batch,
        "checkpoints": checkpoints,
        "checkpoint_steps": checkpoint_steps,
        "resume": resume,
        "arguments": arguments or [],
    }
    if resume is None:
        _check_size("workers", workers, min_workers, max_workers)
        _check_size("learners", learners, 1, max_learners)
    elif told := [name for name in SETTLED if _is_given(context, name)]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in told)
        raise typer.BadParameter(f"leave out {flags}: a run goes on as it was started", param_hint="--resume")
    if lr_rule not in (None, "none", "linear", "sqrt", "adascale"):
        raise typer.BadParameter(f"{lr_rule} is none of none, linear, sqrt, adascale", param_hint="--lr-rule")

    from pydantic_core import from_json, to_json

    from trimtab.api.cli.follow import Follower
    from trimtab.api.cli.script import load, named
    from trimtab.api.client import Client
    from trimtab.workers.crew import Resources

    path, function = load(script)
    home = context.find_root().params["home"]
    service = bring_up(home, host, port, address, prints=not as_json)
    try:
        follower = Follower(service.access.page, quiet=as_json)
        if open_page:
            _open(service.access.page)
        if resume is not None:
            with Client(service.url, service.token) as api:
                options["resume"] = found(api, resume)
        options |= {
            "home": home,
            "name": name or path.stem,
            "script": named(path, script),
            "resources": Resources(cpus=cpus_per_worker, gpus=gpus_per_worker),
            "on_start": follower.start,
        }
        answer = _trained(function, options, follower)
        if summary is not None:
            summary.write_bytes(to_json(answer, indent=1, inf_nan_mode="strings"))
        if as_json:
            print_json(from_json(to_json(answer, inf_nan_mode="strings")))
        else:
            follower.conclude(answer, stays=not service.started_api)
    finally:
        service.close()


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_size(name: str, first: int, least: int, most: int | None) -> None:
    if first < least:
        raise typer.BadParameter(f"{first} are fewer than --min-{name} {least}", param_hint=f"--{name}")
    if most is not None and first > most:
        raise typer.BadParameter(f"{first} are more than --max-{name} {most}", param_hint=f"--{name}")


def _open(page: str) -> None:
    """Show the page where there is a screen; a browser for the terminal would take it over."""
    import webbrowser

    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(page)


def _trained(function: Any, options: dict[str, Any], follower: Any) -> dict[str, Any]:
    from trimtab.controller.errors import Refused
    from trimtab.workers.checkpoint import CheckpointError
    from trimtab.workers.groups import TrainingError
    from trimtab.workers.launch import launch

    previous = signal.signal(signal.SIGINT, _stop_first(follower))
    try:
        return launch(function, **options)
    except (Refused, ValueError, CheckpointError, TrainingError) as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        raise CommandError("ended at once; resume the run from its last checkpoint with --resume") from None
    finally:
        signal.signal(signal.SIGINT, previous)
        follower.stop()


def _stop_first(follower: Any) -> Any:
    """Ctrl-C asks the run to stop at one step, with a checkpoint; a second one ends it at once."""

    def handler(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if follower.run is None:
            raise KeyboardInterrupt
        threading.Thread(target=follower.ask_to_stop, daemon=True).start()

    return handler
