"""Commands that change the group of workers while it trains: scale, sync."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from trimtab.api.cli import parse
from trimtab.api.cli.connection import CommandError, Connection, connection, segment
from trimtab.api.cli.output import Json, cell, print_json, print_line
from trimtab.api.cli.policy import Reason
from trimtab.api.cli.runs import Run

Release = Annotated[
    bool, typer.Option("--release", help="Give it back to the policies, or to what the run began with.")
]


def scale(
    context: typer.Context,
    run: Run,
    workers: Annotated[int | None, typer.Argument(metavar="[N]", help="Workers, one device each.", min=1)] = None,
    learners: Annotated[int | None, typer.Option(help="On each worker's device.", min=1)] = None,
    reason: Reason = "",
    release: Release = False,
    as_json: Json = False,
) -> None:
    """Ask a run for N workers, which join or leave while it goes on; a pin of `workers`."""
    given = {"workers": workers, "learners": learners}
    wishes = {name: value for name, value in given.items() if value is not None}
    if release == bool(wishes):
        raise typer.BadParameter("say how many, or --release", param_hint="N")
    api = connection(context)
    path = api.run(run)
    changed = _freed(api, path, list(given), reason) if release else _pinned(api, path, wishes, reason)
    if as_json:
        print_json(changed)
        return
    wanted = api.get(path)["wanted"]
    there = "the run goes on meanwhile; `trimtab show` tells when they are there"
    print_line(f"accepted as version {changed['version']}: {_size(wanted)} are wanted; {there}")


def _size(wanted: dict[str, int]) -> str:
    workers = f"{wanted['workers']:,} worker{'' if wanted['workers'] == 1 else 's'}"
    return workers if wanted["learners"] == 1 else f"{workers} with {wanted['learners']} learners each"


def sync(
    context: typer.Context,
    run: Run,
    strategy: Annotated[
        str | None, typer.Argument(metavar="[STRATEGY]", help="allreduce, sma, pair or local.", show_default=False)
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION=VALUE]…", help="Of the strategy, as local_steps=16.")
    ] = None,
    reason: Reason = "",
    release: Release = False,
    as_json: Json = False,
) -> None:
    """Keep a run's replicas together another way, from one step on; a pin of `sync` and of the options given."""
    from trimtab.controller.sync import OPTIONS, SYNC

    if release == (strategy is not None):
        raise typer.BadParameter("name a strategy, or say --release", param_hint="STRATEGY")
    wishes = {} if strategy is None else _checked(strategy, options or [])
    api = connection(context)
    path = api.run(run)
    if release:
        changed = _freed(api, path, [SYNC, *OPTIONS], reason)
    else:
        known = {hp["name"] for hp in api.get(f"{path}/hyperparameters")["hyperparameters"]}
        # What the run knows already comes before the switch, so that it rules from the first step.
        early = {name: value for name, value in wishes.items() if name in known}
        changed = _pinned(api, path, early | {SYNC: strategy} | wishes, reason)
    if as_json:
        print_json(changed)
        return
    told = ", ".join(f"{name} {cell(value)}" for name, value in changed["values"].items())
    when = "`trimtab changes` tells at which step it has happened"
    print_line(f"accepted as version {changed['version']}: {told or f'{SYNC} is free'}; {when}")


def _checked(strategy: str, texts: list[str]) -> dict[str, Any]:
    """The options that are asked for, before anything is changed."""
    from trimtab.controller.sync import STRATEGIES

    if strategy not in STRATEGIES:
        raise typer.BadParameter(f"{strategy} is none of {', '.join(STRATEGIES)}", param_hint="STRATEGY")
    own = {option.name: option for option in STRATEGIES[strategy]}
    wishes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in own or not equals:
            known = ", ".join(f"{one}={cell(option.default)}" for one, option in own.items()) or "none"
            raise typer.BadParameter(f"options of {strategy} are {known}; got {text}", param_hint="OPTION")
        try:
            wishes[name] = own[name].check(parse.value(value))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="OPTION") from None
    return wishes


def _pinned(api: Connection, path: str, wishes: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Pin one after another; the last answer, with all values. What holds already is told where a later one fails."""
    answer: dict[str, Any] = {}
    done: list[str] = []
    for name, value in wishes.items():
        try:
            answer = api.change("PUT", f"{path}/pins/{segment(name)}", {"value": value, "reason": reason})
        except CommandError as error:
            before = f"; pinned before that: {', '.join(done)}" if done else ""
            raise CommandError(f"{error}{before}") from None
        done.append(f"{name} {cell(value)}")
    return answer | {"values": dict(wishes)}


def _freed(api: Connection, path: str, names: list[str], reason: str) -> dict[str, Any]:
    found = {hp["name"]: hp for hp in api.get(f"{path}/hyperparameters")["hyperparameters"]}
    held = [name for name in names if name in found and found[name]["pin"]]
    if not held:
        raise CommandError(f"{names[0]} is not pinned")
    answer: dict[str, Any] = {}
    for name in held:
        answer = api.change("DELETE", f"{path}/pins/{segment(name)}", reason=reason)
    after = {hp["name"]: hp["value"] for hp in api.get(f"{path}/hyperparameters")["hyperparameters"]}
    return answer | {"values": {name: after[name] for name in held}}
