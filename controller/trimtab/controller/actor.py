"""The controller as a named, detached Ray actor, and how to call it across its restarts."""

import asyncio
import inspect
import logging
import os
import random
import resource
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from opentelemetry.trace import Tracer
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from trimtab.controller import durable, logs, tracing
from trimtab.controller.controller import Controller
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.health import ControllerHealth, HomeHealth
from trimtab.controller.home import JOURNAL, METRICS, RAY
from trimtab.controller.journal import Fenced, JournalUnavailable
from trimtab.controller.journal.sqlite import SqliteJournal
from trimtab.controller.reading import Reader

NAMESPACE = "trimtab"
CONTROLLER = "controller"
READER = "reader"
REPLAYS, EXPORTS = "replays", "exports"  # of the reader: they take long, and have a thread of their own each
INSIST_S = 0.2  # until a call that Ray did not deliver is tried again
AGAIN_S = 1.0  # until a journal that could not be opened is tried again
TELLING = (logs.VARIABLE, "OTEL_")  # variables that begin so say how to log and to trace
SECRET = "HEADERS"  # ... and end so where they hold passwords: Ray shows what an actor was started with
log = logging.getLogger(__name__)


class ControllerActor:
    """The edge around a Controller: opens its journal, beats its clock, ends when it is fenced."""

    def __init__(self, home: str) -> None:
        logs.configure()
        tracer = tracing.tracer("trimtab-controller")
        self._spans = tracing.Spans(tracer)
        self._home = Path(home)
        self._beat: asyncio.Task[None] | None = None
        self._refusal: JournalUnavailable | None = None
        again = ray.get_runtime_context().was_current_actor_reconstructed
        try:
            self._controller = self._in_the_end(tracer) if again else self._take_charge(tracer)
        except JournalUnavailable as refusal:
            self._refusal = refusal  # kept for `pid`: Ray would bury what a constructor raises
            return
        # A constructor has no event loop yet, and must not wait for a call of its own actor.
        me = ray.get_runtime_context().current_actor
        threading.Thread(
            target=insist, args=(lambda: me.live.remote().future().result(),), name="live", daemon=True
        ).start()

    def _take_charge(self, tracer: Tracer) -> Controller:
        from trimtab.controller.jobs.ray_server import RayJobServer  # a worker, which only calls, starts sooner without

        journal = tracing.TracedJournal(SqliteJournal(self._home / JOURNAL), tracer)
        try:
            return Controller(journal, self._home / METRICS, job_server=RayJobServer(), witness=self._spans.witness)
        except JournalUnavailable:
            journal.close()
            raise

    def _in_the_end(self, tracer: Tracer) -> Controller:
        """After a crash nobody is there to be told, and Ray would not try again: wait until the disk has room, say."""
        while True:
            try:
                return self._take_charge(tracer)
            except JournalUnavailable as error:
                log.error("%s; trying again", error)
                time.sleep(AGAIN_S)

    async def live(self) -> None:
        """Begin what is done from time to time."""
        if self._beat is None:
            self._beat = asyncio.create_task(upkeep(self._controller))

    async def call(self, method: str, *args: Any) -> Any:
        try:
            answer = getattr(self._controller, method)(*args)
            return await answer if inspect.isawaitable(answer) else answer
        except Fenced:
            log.error("another controller is in charge of %s; this one ends", self._home)
            ray.actor.exit_actor()  # for good: restarted by Ray it would take over in turn, and so on and on

    async def traced(self, carrier: Mapping[str, str], method: str, *args: Any) -> Any:
        """The same within the caller's trace."""
        with self._spans.call(carrier, method, args):
            return await self.call(method, *args)

    async def events(self, term: int, seq: int, timeout_s: float) -> Any:
        return await self._controller.feed.after(term, seq, timeout_s)

    async def health(self) -> tuple[ControllerHealth, HomeHealth]:
        disk = shutil.disk_usage(self._home)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return self._controller.health(), HomeHealth(
            host=socket.gethostname(),
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            memory_peak_bytes=peak if sys.platform == "darwin" else peak * 1024,
            path=str(self._home),
            journal_bytes=sum(file.stat().st_size for file in self._home.glob(f"{JOURNAL}*")),
            disk_free_bytes=disk.free,
            disk_total_bytes=disk.total,
        )

    async def home(self) -> str:
        return str(self._home)

    async def pid(self) -> int:
        if self._refusal is not None:
            raise self._refusal
        return os.getpid()


async def upkeep(controller: Controller) -> None:
    """Have a controller do what is due each second, for as long as it is in charge."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 1
        await asyncio.sleep(1)
        try:
            controller.expire(loop.time() - due)
            controller.deliver()
        except Fenced:  # only from within a call can an actor end for good
            log.error("another controller is in charge; this one does nothing more")
            return
        except Exception:
            log.exception("a round of upkeep failed")


def insist(call: Callable[[], object]) -> None:
    """Call until Ray has delivered it: of an actor that it is just starting anew it may say that it is unavailable."""
    while True:
        try:
            call()
        except RayError as error:
            log.info("trying again: %s", error)
            time.sleep(INSIST_S)
        else:
            return


def start(home: Path) -> None:
    """Start controller and reader on this cluster's head node, unless they run already.

    Raises JournalUnavailable if the home's journal cannot be opened: a newer Trimtab wrote it, say.
    """
    durable.make(home)
    (home / METRICS).mkdir(exist_ok=True)
    (home / RAY).touch(0o600)
    (home / RAY).write_text(ray.get_runtime_context().gcs_address)
    remote: Any = ray.remote  # its types know of no concurrency groups
    controller, reader = remote(ControllerActor), remote(concurrency_groups={REPLAYS: 1, EXPORTS: 1})(Reader)
    controller = controller.options(name=CONTROLLER, max_concurrency=1000, **detached()).remote(str(home))
    reader = reader.options(name=READER, **detached()).remote(str(home))
    try:
        ray.get([controller.pid.remote(), reader.keys.remote("")])
    except RayTaskError as error:
        ray.kill(controller)
        raise error.cause from None


def detached() -> dict[str, Any]:
    """How the controller, its reader and the API live: once a cluster, restarted by Ray."""
    variables = passed_on()
    return {
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},  # the journal's disk is the head node's
        **({"runtime_env": {"env_vars": variables}} if variables else {}),
    }


def passed_on() -> dict[str, str]:
    """The variables of this process that those it starts on the cluster should have too, wherever they are."""
    return {name: value for name, value in os.environ.items() if name.startswith(TELLING) and not name.endswith(SECRET)}


def running(name: str = CONTROLLER) -> bool:
    """Is there an actor of that name on this cluster?"""
    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def home() -> Path:
    """The home of this cluster's controller, as the head node has it."""
    controller: Any = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    return Path(ray.get(controller.home.remote()))


def call(method: str, *args: Any, patience_s: float = 60.0, timeout_s: float = 35.0) -> Any:
    """Call a method of the Controller from a thread; outlasts restarts of the controller for `patience_s`."""
    until = time.monotonic() + patience_s
    wait = 0.05
    while True:
        try:
            handle = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
            return ray.get(handle.call.remote(method, *args), timeout=timeout_s)
        except RayTaskError as error:  # a subclass of what the controller raised, made on the fly, with its traceback
            raise error.cause from None
        except (ActorDiedError, ActorUnavailableError, GetTimeoutError, ValueError) as error:
            if isinstance(error, ValueError) and "Failed to look up actor" not in str(error):
                raise
            if time.monotonic() + wait > until:
                raise ControllerUnreachable(f"the controller does not answer: {type(error).__name__}") from error
            time.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, 1.0)
