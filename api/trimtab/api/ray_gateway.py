"""The Gateway to the actors of a Ray cluster; while serving, nothing else in the API speaks to Ray."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from trimtab.api import cluster
from trimtab.api.answers import NodeHealth
from trimtab.controller.actor import CONTROLLER, EXPORTS, NAMESPACE, READER, REPLAYS
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.feed import Batch
from trimtab.controller.health import ControllerHealth, HomeHealth
from trimtab.controller.jobs.ray_server import RayJobServer
from trimtab.controller.metrics import Axis, Series
from trimtab.controller.metrics.grid import Grid, Shared
from trimtab.controller.replayed import Replayed, Tried
from trimtab.controller.tracing import carried

READS = frozenset({"runs", "audit", "run", "hyperparameters", "changes", "policies", "policy", "policy_kinds"}) | {
    "prepare_policies",
    "prepare_kinds",
    "check_policy",
    "asked_jobs",
    "asked_job",
}
REPEATABLE = READS | {"submit_job"}  # the same again changes nothing
PATIENCE_S = 10.0  # about how long a controller takes to come back
ANSWER_S = 10.0
REPLAY_S = 120.0  # of two million observations, or of a few while others wait
FRESH_S = 1.0  # who answered so lately is taken to be there

Answer = TypeVar("Answer")


class RayGateway:
    """Reads outlast a restart of the controller.

    A change is sent at most once: when the controller is known to answer. If it dies meanwhile nobody knows whether
    the change was made, so the caller is told instead of served again.
    """

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self.jobs = RayJobServer()
        self._heard = -FRESH_S  # when the controller last answered

    async def ready(self) -> None:
        await _patiently(lambda: self._ask(CONTROLLER, "pid"), patience_s=2.0)

    async def call(self, method: str, *args: Any) -> Any:
        trace = carried()
        asked = ("traced", trace, method, *args) if trace else ("call", method, *args)
        if method in REPEATABLE:
            return await _patiently(lambda: self._ask(CONTROLLER, *asked))
        if time.monotonic() - self._heard > FRESH_S:
            await _patiently(lambda: self._ask(CONTROLLER, "pid"))
        return await self._ask(CONTROLLER, *asked)

    async def health(self) -> tuple[ControllerHealth, HomeHealth]:
        answer: tuple[ControllerHealth, HomeHealth] = await self._ask(CONTROLLER, "health")
        return answer

    async def nodes(self) -> Sequence[NodeHealth]:
        return await asyncio.to_thread(cluster.nodes)

    async def events(self, term: int, seq: int, timeout_s: float) -> Batch:
        batch: Batch = await self._ask(CONTROLLER, "events", term, seq, timeout_s, within_s=timeout_s + ANSWER_S)
        return batch

    async def keys(self, run: str) -> Sequence[str]:
        keys: list[str] = await _patiently(lambda: self._ask(READER, "keys", run))
        return keys

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
        asked = (run, list(keys), x, start, end, max_points, rank)
        found: dict[str, Series] = await _patiently(lambda: self._ask(READER, "query", *asked))
        return found

    async def compare(self, runs: Sequence[str], keys: Sequence[str], grid: Grid) -> Shared:
        found: Shared = await _patiently(lambda: self._ask(READER, "compare", list(runs), list(keys), grid))
        return found

    async def csv(
        self, run: str, keys: Sequence[str], rank: int | None = None, start: float | None = None
    ) -> AsyncIterator[str]:
        await _patiently(lambda: self._ask(READER, "keys", run))  # one that has died is there again before we begin
        reader = await self._handle(READER)
        stream = reader.csv.options(num_returns="streaming", concurrency_group=EXPORTS)
        pages = stream.remote(run, list(keys), rank, start)
        async for page in pages:
            yield await page

    async def replay(self, run: str, tried: Tried | None) -> Replayed:
        replayed: Replayed = await self._ask(READER, "replay", run, tried, within_s=REPLAY_S, group=REPLAYS)
        return replayed

    async def _ask(
        self, name: str, method: str, *args: Any, within_s: float = ANSWER_S, group: str | None = None
    ) -> Any:
        asked = getattr(await self._handle(name), method)
        if group is not None:
            asked = asked.options(concurrency_group=group)
        try:
            answer = await asyncio.wait_for(asked.remote(*args), within_s)
        except RayTaskError as error:
            raise error.cause from None  # Ray raises a subclass made on the fly; the exception itself is its cause
        except (RayActorError, TimeoutError) as error:
            self._handles.pop(name, None)
            self._heard = -FRESH_S
            raise ControllerUnreachable(f"the {name} does not answer ({type(error).__name__}); try again") from error
        if name == CONTROLLER:
            self._heard = time.monotonic()
        return answer

    async def _handle(self, name: str) -> Any:
        if name not in self._handles:
            try:
                self._handles[name] = await asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE)
            except ValueError as error:
                raise ControllerUnreachable(f"there is no {name} on this cluster; start it with trimtab up") from error
        return self._handles[name]


async def _patiently(ask: Callable[[], Awaitable[Answer]], patience_s: float = PATIENCE_S) -> Answer:
    until = time.monotonic() + patience_s
    wait = 0.05
    while True:
        try:
            return await ask()
        except ControllerUnreachable:
            if time.monotonic() + wait > until:
                raise
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, 1.0)
