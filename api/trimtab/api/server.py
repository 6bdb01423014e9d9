"""The API as a named, detached Ray actor on the head node, which Ray restarts by itself."""

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.home import TOKENS, Access, admin_token, write_access
from trimtab.api.ray_gateway import RayGateway
from trimtab.api.serving import CannotListen, Server, bind
from trimtab.api.stream import Hub
from trimtab.api.tokens import Tokens
from trimtab.api.tracing import traced
from trimtab.controller import actor, durable, logs, tracing
from trimtab.dashboards import STATIC

API = "api"
START_S = 60.0
STOP_S = 6.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listening everywhere -> where to call from here
log = logging.getLogger(__name__)


class ApiActor:
    """Hosts uvicorn in a thread of its own; writes down in `home` how tools on this machine reach it."""

    def __init__(self, home: str, host: str, port: int, open_metrics: bool, names: Sequence[str]) -> None:
        logs.configure()
        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._refusal: CannotListen | None = None
        try:
            listening = _bind_in_the_end(host, port) if again else bind(host, port)
        except CannotListen as refusal:
            self._refusal = refusal  # kept for `access`: Ray would bury what a constructor raises
            return
        tokens = Tokens(Path(home) / TOKENS)
        self._access = Access(_url(host, listening), admin_token(Path(home), tokens))
        write_access(Path(home), self._access)
        gateway = RayGateway()
        hub = Hub(gateway)
        hosts = Hosts(host, socket.gethostname(), *names)
        app = create_app(gateway, tokens, hub, STATIC, hosts, open_metrics=open_metrics)
        self._server = Server(traced(app, tracing.tracer("trimtab-api")), hub)
        self._thread = threading.Thread(target=self._serve, args=(listening,), name="uvicorn", daemon=True)
        self._thread.start()

    def _serve(self, listening: socket.socket) -> None:
        try:
            self._server.run([listening])
        finally:
            if not self._server.should_exit:
                log.error("the server has ended by itself; Ray restarts it")
                os._exit(1)

    def access(self) -> Access:
        if self._refusal is not None:
            raise self._refusal
        return self._access

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        """End the event streams and what is under way, then return."""
        self._server.should_exit = True
        self._thread.join(STOP_S)


def _bind_in_the_end(host: str, port: int) -> socket.socket:
    """After a crash nobody is there to be told, and the port was ours a moment ago: try until it is free."""
    while True:
        try:
            return bind(host, port)
        except CannotListen as error:
            log.warning("%s", error)
            time.sleep(1)


def _url(host: str, listening: socket.socket) -> str:
    name = ANYWHERE.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"


def start(
    home: Path, host: str = "127.0.0.1", port: int = 8270, open_metrics: bool = False, names: Sequence[str] = ()
) -> Access:
    """Start the API on this cluster's head node, unless it runs already; raises CannotListen.

    Port 0 takes any that is free, and perhaps another after a crash. With `open_metrics` /metrics needs no token.
    `names` are other names under which it is reached.
    """
    durable.make(home)
    api: Any = ray.remote(ApiActor)
    api = api.options(name=API, **actor.detached()).remote(str(home), host, port, open_metrics, tuple(names))
    try:
        access: Access = ray.get(api.access.remote(), timeout=START_S)
    except RayTaskError as error:
        ray.kill(api)
        raise error.cause from None
    return access


def running() -> bool:
    """Is there an API on this cluster?"""
    return actor.running(API)


def answers(timeout_s: float) -> bool:
    """Does the API of this cluster answer? False where the cluster itself is gone, too."""
    try:
        ray.get(ray.get_actor(API, namespace=actor.NAMESPACE).pid.remote(), timeout=timeout_s)
    except (RayError, ValueError):
        return False
    return True


def stop() -> None:
    """End the API of this cluster."""
    api = ray.get_actor(API, namespace=actor.NAMESPACE)
    ray.get(api.close.remote(), timeout=2 * STOP_S)
    ray.kill(api)
