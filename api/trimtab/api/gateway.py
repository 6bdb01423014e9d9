"""What the API needs of the controller and its metrics, whoever brings it: Ray in service, plain objects in tests."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from trimtab.api.answers import NodeHealth
from trimtab.controller.feed import Batch
from trimtab.controller.health import ControllerHealth, HomeHealth
from trimtab.controller.jobs import JobServer
from trimtab.controller.metrics import Axis, Series
from trimtab.controller.metrics.grid import Grid, Shared
from trimtab.controller.replayed import Replayed, Tried


class Gateway(Protocol):
    """Every method raises ControllerUnreachable when nobody answers."""

    @property
    def jobs(self) -> JobServer:
        """Ray's own job server; it raises JobServerUnreachable instead."""

    async def ready(self) -> None:
        """Return if the controller answers now."""

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the Controller; raises what it raises."""

    async def health(self) -> tuple[ControllerHealth, HomeHealth]:
        """What the controller says of itself now."""

    async def nodes(self) -> Sequence[NodeHealth]:
        """The nodes of the cluster that are alive."""

    async def events(self, term: int, seq: int, timeout_s: float) -> Batch:
        """Events of the controller's feed after (term, seq); see `Feed.after`."""

    async def keys(self, run: str) -> Sequence[str]:
        """The names of a run's metrics."""

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
        """Metrics in buckets, of all ranks or of one; a key without points may be missing."""

    async def compare(self, runs: Sequence[str], keys: Sequence[str], grid: Grid) -> Shared:
        """Metrics of several runs on one grid; a run without any may be missing."""

    def csv(
        self, run: str, keys: Sequence[str], rank: int | None = None, start: float | None = None
    ) -> AsyncIterator[str]:
        """All points from step `start` on, or those of one rank that are kept, as pages of CSV."""

    async def replay(self, run: str, tried: Tried | None) -> Replayed:
        """The recorded run decided again: as it was, or with other policies tried; raises what `replay` raises."""
