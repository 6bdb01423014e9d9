"""Commands that change the group of workers while it trains: scale, sync."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.api.cli import parse
from trimtab.api.cli.connection import CommandError, connection, found
from trimtab.api.cli.output import Json, cell, print_json, print_line
from trimtab.api.cli.policy import Reason
from trimtab.api.cli.runs import Run
from trimtab.api.errors import ApiError

if TYPE_CHECKING:
    from trimtab.api.client import Client
    from trimtab.controller.views import Pinned, RunView, WantedView

Release = Annotated[
    bool, typer.Option("--release", help="Give it back to the policies, or to what the run began with.")
]


def scale(
    context: typer.Context,
    run: Run,
    workers: Annotated[int | None, typer.Argument(metavar="N", help="Workers, one device each.", min=1)] = None,
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
    run = found(api, run)
    before = None if as_json else api.run(run).wanted
    changed = _freed(api, run, list(given), reason) if release else _pinned(api, run, wishes, reason)
    if as_json:
        print_json(changed.json())
    else:
        print_line(f"accepted as version {changed.last.version}{_outlook(api.run(run), before)}")


def _outlook(run: "RunView", before: "WantedView | None") -> str:
    """What becomes of the wish. A group of as many ranks as are wanted may yet have to share its devices otherwise."""
    wanted, asked = run.wanted, ""
    if wanted is not None:
        are = "is" if wanted.workers == 1 else "are"
        asked = f": {_size(wanted)} {are} wanted"
        if wanted == before and wanted.world_size == run.world_size:
            return f"{asked}, and {are} there"
    there = "`trimtab show` tells when they are there, `trimtab changes` if there is no room"
    return f"{asked}; the run goes on meanwhile; {there}"


def _size(wanted: "WantedView") -> str:
    from trimtab.controller.sync import counted

    workers = counted(wanted.workers)
    return workers if wanted.learners == 1 else f"{workers} with {wanted.learners} learners each"


def sync(
    context: typer.Context,
    run: Run,
    strategy: Annotated[
        str | None, typer.Argument(metavar="STRATEGY", help="allreduce, sma, pair or local.", show_default=False)
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="OPTION=VALUE", help="Of the strategy, as local_steps=16.")
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
    run = found(api, run)
    if release:
        changed = _freed(api, run, [SYNC, *OPTIONS], reason)
    else:
        known = {hp.name for hp in api.hyperparameters(run).hyperparameters}
        # What the run knows already comes before the switch, so that it rules from the first step.
        early = {name: value for name, value in wishes.items() if name in known}
        changed = _pinned(api, run, early | {SYNC: strategy} | wishes, reason)
    if as_json:
        print_json(changed.json())
        return
    told = ", ".join(f"{name} {cell(value)}" for name, value in changed.values.items())
    when = "`trimtab changes` tells at which step it has happened"
    print_line(f"accepted as version {changed.last.version}: {told or f'{SYNC} is free'}; {when}")


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


@dataclass(frozen=True, slots=True)
class _Changed:
    """Several pins set or taken away: the last answer, and all values."""

    last: "Pinned"
    values: dict[str, Any]

    def json(self) -> dict[str, Any]:
        return self.last.model_dump(exclude={"value"}) | {"values": self.values}


def _pinned(api: "Client", run: str, wishes: Mapping[str, Any], reason: str) -> _Changed:
    """Pin one after another. What holds already is told where a later one fails."""
    answers: list[Pinned] = []
    for name, value in wishes.items():
        try:
            answers.append(api.pin(run, name, value, reason))
        except ApiError as error:
            done = ", ".join(f"{name} {cell(value)}" for name, value in list(wishes.items())[: len(answers)])
            raise CommandError(f"{error}{f'; pinned before that: {done}' if done else ''}") from None
    return _Changed(answers[-1], dict(wishes))


def _freed(api: "Client", run: str, names: list[str], reason: str) -> _Changed:
    pins = {hp.name: hp.pin for hp in api.hyperparameters(run).hyperparameters}
    held = [name for name in names if pins.get(name)]
    if not held:
        raise CommandError(f"{names[0]} is not pinned")
    answers = [api.unpin(run, name, reason) for name in held]
    after = {hp.name: hp.value for hp in api.hyperparameters(run).hyperparameters}
    return _Changed(answers[-1], {name: after[name] for name in held})
