"""The command `up`, and what it starts: Ray if there is none, the controller, and the API with its page."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trimtab.api.cli.connection import CommandError
from trimtab.api.cli.output import Json, print_json, print_line
from trimtab.api.home import Access, write_access
from trimtab.controller import logs

HOST = "127.0.0.1"
PORT = 8270
LOOK_S = 5.0  # until the next look at whether the API is there, and for its answer
LOOKS = 6  # in vain, and it will not come back: Ray restarts it in a few seconds

Home = Annotated[Path | None, typer.Option(help="Where journal, metrics and tokens are kept.")]
Host = Annotated[str, typer.Option(help="Where to listen; beyond the loopback whoever has the token may enter.")]
Port = Annotated[int, typer.Option(help="Where to listen.", min=0, max=65535)]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join; else the one on this machine, or a new one.")]


@dataclass(frozen=True, slots=True)
class Service:
    """Controller and API, running. `close` ends what `bring_up` started: a Ray of its own with all that is on it, or
    the API on a cluster that was there before; the controller of such a cluster stays with its runs."""

    access: Access
    home: Path  # the controller's, on the head node: it may have been there before with another
    connected: bool  # to Ray, by `bring_up`
    started_api: bool

    @property
    def url(self) -> str:
        return self.access.url

    @property
    def token(self) -> str:
        return self.access.token

    def answers(self) -> bool:
        from trimtab.api import server

        return server.answers(LOOK_S)

    def close(self) -> None:
        import ray

        from trimtab.api import server

        if self.started_api:
            server.stop()
        if self.connected:
            ray.shutdown()


def bring_up(
    home: Path,
    host: str = HOST,
    port: int = PORT,
    address: str | None = None,
    open_metrics: bool = False,
    names: Sequence[str] = (),
    prints: bool = False,
) -> Service:
    """Start what is missing: Ray (here, unless there is one or `address` names it), controller, API.

    With `prints` this process prints what workers print.
    """
    from trimtab.api import server
    from trimtab.api.serving import CannotListen
    from trimtab.controller import actor
    from trimtab.controller.connect import connect
    from trimtab.controller.journal import JournalUnavailable

    try:
        connected = connect(address, prints, home)
    except ConnectionError as error:
        raise CommandError(str(error)) from None

    try:
        actor.start(home)
        started_api = not server.running()
        access = server.start(home, host, port, open_metrics, names)
    except (CannotListen, JournalUnavailable) as error:
        raise CommandError(str(error)) from None
    write_access(home, access)  # the head node, which wrote it too, may be another machine
    return Service(access, actor.home(), connected, started_api)


def up(
    context: typer.Context,
    host: Host = HOST,
    port: Port = PORT,
    address: Address = None,
    home: Home = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Let whoever reaches it scrape /metrics without a token.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name under which it is reached, as behind a proxy; more than once."),
    ] = None,
    log_format: Annotated[
        logs.Format,
        typer.Option(envvar=logs.VARIABLE, help="How controller, API and workers log: text, or a JSON object a line."),
    ] = "text",
    as_json: Json = False,
) -> None:
    """Start Ray here if there is none, controller, API and page; print the page's address; stay until Ctrl-C."""
    os.environ.pop(logs.VARIABLE, None)
    if log_format != "text":
        os.environ[logs.VARIABLE] = log_format  # for what is started from here
    home = home or context.find_root().params["home"]
    service = bring_up(home, host, port, address, open_metrics, allow_host or ())
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if as_json:
        print_json({"url": service.url, "token": service.token, "page": service.access.page})
    else:
        print_line(_told(service, home))
    if lost(ended, service.answers):
        typer.echo("trimtab: the API has gone for good, and Ray most likely with it: start `trimtab up` anew", err=True)
        os._exit(1)  # not by way of Ray, which would wait for itself
    service.close()


def _told(service: Service, home: Path) -> str:
    if service.started_api:
        return f"Trimtab is up: {service.access.page}"
    others = "" if service.home.absolute() == home.absolute() else f" on this cluster, with the home {service.home}"
    return f"Trimtab is running already{others}: {service.access.page} (Ctrl-C here leaves it running)"


def lost(ended: threading.Event, answers: Callable[[], bool], look_s: float = LOOK_S) -> bool:
    """Wait for `ended`; True where the API has stopped to answer before that, for whoever watches over this process."""
    vain = 0
    while not ended.wait(look_s):
        vain = 0 if answers() else vain + 1
        if vain == LOOKS:
            return True
    return False
