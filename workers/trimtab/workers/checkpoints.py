"""Where a run keeps its checkpoints: a folder that all workers share, or an object store that they all reach."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from trimtab.workers.checkpoint import CheckpointStore, State

Place = Path | str  # of one checkpoint, or of all of a run's


class Checkpoints(Protocol):
    """What `CheckpointStore` says of a folder, of any place. A checkpoint is there whole or not at all."""

    @property
    def place(self) -> str: ...

    def save(
        self,
        step: int,
        shared: State | None,
        rank: int,
        world_size: int,
        barrier: Callable[[], None],
        wanted: Callable[[], Collection[int]] = tuple,
    ) -> Place: ...

    def load(self, path: Place, rank: int, map_location: Any = "cpu") -> tuple[dict[str, Any], State | None]: ...

    def adopt(self, directory: Place, step: int) -> Place: ...

    def find(self, step: int) -> Place | None: ...

    def go_back(self, step: int, number: int, skipped: int) -> None: ...

    def branch(self, path: Place) -> dict[str, int]: ...

    def steps(self) -> list[int]: ...

    def latest(self) -> Place | None: ...

    def forget_after(self, step: int) -> None: ...

    def clear(self) -> None: ...


def open_checkpoints(place: Place, keep: int = 2) -> Checkpoints:
    """The checkpoints in a folder, or at a URL that fsspec knows, as `s3://bucket/runs/r`. Raises CheckpointError."""
    if "://" not in str(place):
        return CheckpointStore(place, keep)
    from trimtab.workers.objects import ObjectStore

    return ObjectStore(str(place), keep)


def placed(checkpoints: Place, run: str) -> str:
    """Where the run keeps its own, of all that are in `checkpoints`; a file's URL is a path."""
    text = str(checkpoints).removeprefix("file://")
    return f"{text.rstrip('/')}/{run}" if "://" in text else str(Path(text).absolute() / run)


def beside(checkpoints: Place, run: str) -> str:
    """Where another run keeps its own, beside those of one that keeps them in `checkpoints`."""
    return placed(str(checkpoints).rstrip("/").rpartition("/")[0], run)
