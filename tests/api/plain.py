"""A controller without Ray and the app over it, for the API's tests; `python plain.py HOME PORT` serves them."""

import asyncio
import inspect
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import numpy as np
from fastapi import FastAPI

from trimtab.api.answers import NodeHealth, ResourceHealth
from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.limits import Limiter, Limits
from trimtab.api.serving import Server, bind
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens
from trimtab.controller.controller import Controller
from trimtab.controller.events import Checkpointed, RunSpec
from trimtab.controller.feed import Batch
from trimtab.controller.health import ControllerHealth, HomeHealth
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.jobs import JobDetails, JobRequest
from trimtab.controller.jobs.outbox import exists
from trimtab.controller.jobs.request import DIGEST
from trimtab.controller.jobs.server import JobStatus
from trimtab.controller.journal import MemoryJournal
from trimtab.controller.metrics import Axis, Series
from trimtab.controller.metrics.grid import Grid, Shared
from trimtab.controller.observation import Horizon
from trimtab.controller.reading import Reader
from trimtab.controller.recorded import replay_entries
from trimtab.controller.records import COLUMNS, Records, Regrouped
from trimtab.controller.replayed import Replayed, Tried
from trimtab.controller.sync import SYNC_PARAMETER
from trimtab.controller.trajectory import Progress

RUN = "bytes-lm-3f9a"
PARAMETERS = (
    HyperParameter(name="batch_size", kind="integer", default=32, min=4, max=4096, unit="samples"),
    HyperParameter(name="lr", default=0.1, min=0.0, max=10.0),
    HyperParameter(name="precision", kind="choice", default="fp32", choices=("fp32", "bf16")),
)
SPEC = RunSpec(
    name="bytes_lm", world_size=1, parameters=PARAMETERS, micro_batch=8, max_micro_batch=8, horizon=Horizon(60_000)
)

GROUP = "grows-1a2b"  # a run whose size can be changed
GROUP_SPEC = replace(
    SPEC,
    name="grows",
    world_size=2,
    parameters=(
        *PARAMETERS,
        HyperParameter(name="workers", kind="integer", default=2, min=1, max=4, unit="places"),
        HyperParameter(name="learners", kind="integer", default=1, min=1, max=2, unit="a place"),
        SYNC_PARAMETER,
    ),
)

UNLIMITED = Limits(Limiter(per_s=1e6, burst=10**9), Limiter(per_s=1e6, burst=10**9))


HOME = HomeHealth(
    host="head",
    node="a" * 56,
    pid=1,
    memory_peak_bytes=2**28,
    path="/var/lib/trimtab",
    journal_bytes=4096,
    disk_free_bytes=2**33,
    disk_total_bytes=2**34,
)
NODE = NodeHealth(
    id="a" * 56,
    host="head",
    address="10.0.0.1",
    head=True,
    draining=False,
    resources={"CPU": ResourceHealth(total=4, free=3)},
)


class LocalGateway:
    """The Gateway to objects of this process; `error` makes every answer fail."""

    def __init__(self, controller: Controller, metrics: Path) -> None:
        self.controller = controller
        self._metrics = metrics
        self._reader = Reader(metrics.parent)
        self.jobs = cast(PlainJobServer, controller._outbox._server)
        self.error: Exception | None = None

    async def ready(self) -> None:
        self._fail()

    async def call(self, method: str, *args: Any) -> Any:
        self._fail()
        answer = getattr(self.controller, method)(*args)
        return await answer if inspect.isawaitable(answer) else answer

    async def health(self) -> tuple[ControllerHealth, HomeHealth]:
        self._fail()
        return self.controller.health(), HOME

    async def nodes(self) -> Sequence[NodeHealth]:
        return [NODE]

    async def events(self, term: int, seq: int, timeout_s: float) -> Batch:
        self._fail()
        return await self.controller.feed.after(term, seq, timeout_s)

    async def keys(self, run: str) -> Sequence[str]:
        return self._reader.keys(run)

    async def query(
        self,
        run: str,
        keys: Sequence[str],
        x: Axis,
        start: float | None,
        end: float | None,
        max_points: int,
        rank: int | None = None,
    ) -> Mapping[str, Series]:
        return self._reader.query(run, keys, x, start, end, max_points, rank)

    async def compare(self, runs: Sequence[str], keys: Sequence[str], grid: Grid) -> Shared:
        return self._reader.compare(runs, keys, grid)

    async def csv(
        self, run: str, keys: Sequence[str], rank: int | None = None, start: float | None = None
    ) -> AsyncIterator[str]:
        for page in self._reader.csv(run, keys, rank, start):
            yield page

    async def replay(self, run: str, tried: Tried | None) -> Replayed:
        return replay_entries(self.controller._journal.read(run=run), self._metrics / f"{run}.metrics", tried)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class PlainJobServer:
    """Takes each id once, as Ray does; jobs run for as long as nobody ends them here, or wait where they are to wait
    for something. `error` makes it fail."""

    def __init__(self) -> None:
        self.asked: list[JobRequest] = []  # all that it was ever asked for
        self.known: dict[str, JobDetails] = {}
        self.printed: dict[str, list[str]] = {}
        self.error: Exception | None = None
        self.waits_for: str | None = None

    def address(self) -> str:
        return "http://127.0.0.1:1"

    async def submit(self, request: JobRequest) -> None:
        self._fail()
        self.asked.append(request)
        found = self.known.get(request.submission_id)
        if found is None:
            self.add(request)
        elif found.metadata.get(DIGEST) != request.digest:
            raise exists(request.submission_id)

    def add(self, request: JobRequest) -> None:
        self.known[request.submission_id] = JobDetails(
            submission_id=request.submission_id,
            status="PENDING" if self.waits_for else "RUNNING",
            message=self.waits_for,
            entrypoint=request.entrypoint,
            start_time=1_700_000_000_000 + len(self.known),
            metadata={**request.metadata, DIGEST: request.digest},
            runtime_env=dict(request.runtime_env),
        )

    def end(self, submission_id: str, status: JobStatus = "SUCCEEDED") -> None:
        self.known[submission_id] = self.known[submission_id].model_copy(update={"status": status})

    async def jobs(self) -> Sequence[JobDetails]:
        self._fail()
        return list(self.known.values())

    async def job(self, submission_id: str) -> JobDetails | None:
        self._fail()
        return self.known.get(submission_id)

    async def stop(self, submission_id: str) -> bool:
        running = self.known[submission_id].status == "RUNNING"
        self.end(submission_id, "STOPPED")
        return running

    async def delete(self, submission_id: str) -> None:
        del self.known[submission_id]

    async def logs(self, submission_id: str) -> str:
        return "".join(self.printed.get(submission_id, ()))

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        for text in self.printed.get(submission_id, ()):
            yield text

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def controller_with_run(metrics: Path) -> Controller:
    metrics.mkdir(exist_ok=True)
    controller = Controller(MemoryJournal(), metrics, job_server=PlainJobServer())
    controller.create_run(RUN, SPEC)
    controller.start_formation(RUN, 1, Progress())
    return controller


def start_group(controller: Controller) -> None:
    """The run GROUP begins, with two workers."""
    controller.create_run(GROUP, GROUP_SPEC)
    controller.start_formation(GROUP, 2, Progress())


def regroup(
    controller: Controller, formation: int, cause: Literal["resize", "loss"], size: int, at: int, lost: int = 0
) -> None:
    """Rank 0 of GROUP reports that another formation has begun in place after step `at`."""
    of = Regrouped(cause, size, Progress(at, at * 32), 0.31, lost)
    controller.ingest(replace(records(range(0), run=GROUP), formation=formation, branch=of))


def records(steps: range, loss: float = 2.0, run: str = RUN) -> Records:
    """What rank 0 ships for `steps`."""
    n = len(steps)
    columns = {name: np.full(n, np.nan, np.float32) for name in COLUMNS}
    columns["loss"] = np.linspace(loss, loss / 2, n, dtype=np.float32)
    columns["step_time"] = np.full(n, 0.02, np.float32)
    numbers = np.arange(steps.start, steps.stop, dtype=np.int64)
    return Records(run, 0, 1, numbers, numbers * 32, 1.7e9 + numbers * 0.02, columns, produced=n)


def train(controller: Controller, steps: range, loss: float = 2.0) -> None:
    controller.ingest(records(steps, loss))


def keep_checkpoints(controller: Controller, *steps: int) -> None:
    """Rank 0 reports checkpoints of `steps`, of which all are kept."""
    for i, step in enumerate(steps, 1):
        report = Checkpointed(step, step * 32, 1, steps[:i])
        controller.ingest(replace(records(range(0)), reports=(report,)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclass(frozen=True)
class Door:
    """An app and what opens it."""

    app: FastAPI
    gateway: LocalGateway
    tokens: Tokens
    token: str
    hub: Hub
    page: Path

    def client(self, token: str | None = "", base_url: str = "http://127.0.0.1:8270") -> httpx.AsyncClient:
        """Asks the app with the admin's token, another, or (None) without one."""
        token = self.token if token == "" else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers)

    def again(self) -> tuple[FastAPI, Hub]:
        """The same behind another app, as after a restart of the API."""
        hub = Hub(self.gateway)
        return create_app(self.gateway, self.tokens, hub, self.page, Hosts("127.0.0.1"), UNLIMITED), hub


def door_to(folder: Path) -> Door:
    """An app over a run, and the token of its admin."""
    gateway = LocalGateway(controller_with_run(folder / "metrics"), folder / "metrics")
    tokens = Tokens(folder / "tokens.json")
    token = tokens.new("alice", Role.ADMIN)
    hub = Hub(gateway)
    page = folder / "page"
    app = create_app(gateway, tokens, hub, page, Hosts("127.0.0.1"), UNLIMITED)
    return Door(app, gateway, tokens, token, hub, page)


@contextmanager
def serving(app: FastAPI, hub: Hub, port: int = 0) -> Iterator[str]:
    """The URL of the app, served by uvicorn in a thread."""
    listening = bind("127.0.0.1", port)
    server = Server(app, hub)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


Trimtab = Callable[..., tuple[int, str, str]]  # runs a command: (exit code, stdout, stderr)


def answer(trimtab: Trimtab, *arguments: str) -> Any:
    code, out, err = trimtab(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


async def _main(home: Path, port: int) -> None:
    controller = controller_with_run(home / "metrics")
    gateway = LocalGateway(controller, home / "metrics")
    tokens = Tokens(home / "tokens.json")
    sys.stdout.write(tokens.new("admin", Role.ADMIN) + "\n")
    sys.stdout.flush()
    hub = Hub(gateway)
    app = create_app(gateway, tokens, hub, home / "no-page", Hosts("127.0.0.1"))
    await Server(app, hub).serve([bind("127.0.0.1", port)])


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
