"""The command `watch`: follow a run that goes on, wherever it was started."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import typer

from trimtab.api.cli.connection import connection, found
from trimtab.api.cli.output import Json, print_line, print_record
from trimtab.api.cli.runs import Run
from trimtab.api.errors import ApiError

if TYPE_CHECKING:
    from trimtab.api.client import Client
    from trimtab.controller.views import HyperParameterView, RecordView, RunView

LOOK_S = 1.0
READ = 100  # decisions that fell before, of which the last are told
PATIENCE_S = 60.0  # that the API may be away
AWAY = ("unreachable", "controller-unreachable")
FAILED = ("failed", "lost")


def watch(context: typer.Context, run: Run, as_json: Json = False) -> None:
    """Follow a run until it ends: progress, live values, decisions as they fall. Ctrl-C leaves it as it is.

    With --json one object a line: `change`, `progress`, and `end`. The exit code is 1 if the run fails or is lost.
    """
    api = connection(context)
    run = found(api, run)
    end = _lines(api, run) if as_json else _screen(api, run)
    if end.state in FAILED:
        raise typer.Exit(1)


class Looks:
    """What is new of a run, look by look; at the first what fell before."""

    def __init__(self, api: "Client", run: str) -> None:
        self._api = api
        self._run = run
        self._told = -1  # the newest change told of; -1: none, not even what fell before
        self._heard = time.monotonic()

    def next(self) -> "tuple[RunView, list[RecordView], list[HyperParameterView]] | None":
        """None where nobody answers just now; raises ApiError once that has lasted too long."""
        try:
            view = self._api.run(self._run)
            changes = self._api.changes(self._run, max(0, self._told))
            news = list(deque(changes, maxlen=READ) if self._told < 0 else changes)
            values = self._api.hyperparameters(self._run).hyperparameters
        except ApiError as error:
            if error.code not in AWAY or time.monotonic() - self._heard > PATIENCE_S:
                raise
            return None
        self._heard = time.monotonic()
        self._told = news[-1].id if news else max(0, self._told)
        return view, news, values


def _screen(api: "Client", run: str) -> "RunView":
    from trimtab.api.cli.follow import Screen

    looks, tell_news = Looks(api, run), False
    with Screen() as screen:
        while True:
            look = looks.next()
            if look is None:
                screen.wait("it does not answer")
            else:
                view, news, values = look
                if tell_news:
                    screen.tell(view, news)
                else:
                    screen.so_far(view, news)
                tell_news = True
                screen.stand(view, values)
                if view.state.ended:
                    break
            time.sleep(LOOK_S)
    reason = f" ({view.state_reason})" if view.state_reason else ""
    work = f"{view.progress.steps:,} steps, {view.progress.samples:,} samples"
    loss = "" if view.loss is None else f"; loss {view.loss:.4g}"
    print_line(f"{view.id} {view.state}{reason}: {work}{loss}; version {view.version}")
    return view


def _lines(api: "Client", run: str) -> "RunView":
    looks = Looks(api, run)
    before: dict[str, Any] | None = None
    while True:
        look = looks.next()
        if look is not None:
            view, news, values = look
            for record in news:
                print_record({"change": record})
            now = {
                "run": view.id,
                "state": view.state,
                "progress": view.progress,
                "fraction": view.fraction,
                "loss": view.loss,
                "world_size": view.world_size,
                "version": view.version,
                "noise_scale": view.noise.value if view.noise else None,
                "values": {one.name: one.value for one in values},
            }
            if now != before:
                print_record({"progress": now})
            before = now
            if view.state.ended:
                print_record({"end": view})
                return view
        time.sleep(LOOK_S)
