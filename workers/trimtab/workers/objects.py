"""Checkpoints in an object store, which has no rename and no folder: whole is what has a marker, written last."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import torch

from trimtab.workers.checkpoint import BRANCH, SHARED, CheckpointError, State, named_step, rank_file, step_name, write
from trimtab.workers.randomness import capture

_BEGUN = "begun"  # so that each rank sees that all of them mean the same place
_WHOLE = "whole"


class ObjectStore:
    """The last `keep` checkpoints of a run, below `url`, which all its ranks reach through fsspec.

    `step-00000300/` holds what a folder's checkpoint holds, and `whole`, which is written when all else is there and
    removed before anything else is: what is without it does not count. An object is there whole or not at all.
    """

    def __init__(self, url: str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least one checkpoint, got {keep}")
        self.place = url.rstrip("/")
        self._keep = keep
        try:
            self._files, self._root = fsspec.url_to_fs(self.place)
        except (ImportError, ValueError) as error:  # the package or the protocol that is missing
            raise CheckpointError(f"checkpoints cannot be kept at {url}: {error}") from error
        self.probe()

    def probe(self) -> None:
        """Raise CheckpointError unless an object can be written and read; it stays, for all ranks try the same one."""
        trial = f"{self._root}/.probe"
        try:
            self._files.pipe_file(trial, b"trimtab")
            self._files.cat_file(trial)
        except Exception as error:  # each protocol has its own
            raise CheckpointError(
                f"checkpoints cannot be written to {self.place} ({error}): let the workers' credentials write "
                "there, or give another place that all workers reach"
            ) from error

    def save(
        self,
        step: int,
        shared: State | None,
        rank: int,
        world_size: int,
        barrier: Callable[[], None],
        wanted: Callable[[], Collection[int]] = tuple,
    ) -> str:
        """Write the checkpoint of `step`; see `CheckpointStore.save`."""
        path = self._path(step)
        if rank == 0 and not self._has(path, _WHOLE):
            self._remove(path)
            self._files.pipe_file(f"{path}/{_BEGUN}", b"")
        barrier()
        there = self._has(path, _WHOLE)  # it becomes so only when all ranks have looked
        if not there:
            if not self._has(path, _BEGUN):
                raise CheckpointError(f"rank {rank} does not see {path}, which rank 0 made: give a place they share")
            self._put(f"{path}/{rank_file(rank, world_size)}", capture())
            if rank == 0:
                self._put(f"{path}/{SHARED}", shared or {})
        barrier()
        if rank == 0 and not there:
            self._files.pipe_file(f"{path}/{_WHOLE}", json.dumps({"world_size": world_size}).encode())
            for old in self.steps()[: -self._keep]:
                if old not in wanted():
                    self._remove(self._path(old))
        barrier()
        return path

    def load(self, path: Path | str, rank: int, map_location: Any = "cpu") -> tuple[dict[str, Any], State | None]:
        """The shared state, and this rank's random states (None if there was no such rank), for `restore`."""
        shared: dict[str, Any] = self._get(f"{path}/{SHARED}", map_location)
        world_size = json.loads(self._files.cat_file(f"{path}/{_WHOLE}"))["world_size"]
        own = self._get(f"{path}/{rank_file(rank, world_size)}", "cpu") if rank < world_size else None
        return shared, own

    def adopt(self, directory: Path | str, step: int) -> str:
        """Take in the checkpoint of `step` that another run keeps in `directory`; see `CheckpointStore.adopt`."""
        source, path = f"{self._files._strip_protocol(str(directory))}/{step_name(step)}", self._path(step)
        try:
            names = sorted(self._names(source), key=lambda name: name == _WHOLE)  # the marker last
            if _WHOLE not in names:
                raise FileNotFoundError("a part of it is missing")
            for name in names:
                self._files.cp_file(f"{source}/{name}", f"{path}/{name}")
        except FileNotFoundError as error:
            self._remove(path)
            raise CheckpointError(
                f"the checkpoint {source} cannot be read whole ({error}): the run may have removed it meanwhile, then "
                "take its newest"
            ) from error
        return path

    def find(self, step: int) -> str | None:
        """The checkpoint of `step`, if it is there and complete."""
        path = self._path(step)
        return path if self._has(path, _WHOLE) else None

    def go_back(self, step: int, number: int, skipped: int) -> None:
        """The run went back to `step` by roll back `number`; see `CheckpointStore.go_back`."""
        noted = json.dumps({"rolled_back": number, "skipped": skipped})
        self._files.pipe_file(f"{self._path(step)}/{BRANCH}", noted.encode())
        self.forget_after(step)

    def branch(self, path: Path | str) -> dict[str, int]:
        """What `go_back` last noted at a checkpoint; nothing if no run went back to it."""
        try:
            noted: dict[str, int] = json.loads(self._files.cat_file(f"{path}/{BRANCH}"))
        except FileNotFoundError:
            return {}
        return noted

    def steps(self) -> list[int]:
        """Those of the complete checkpoints, ascending."""
        steps = [step for name in self._names(self._root) if (step := named_step(name)) is not None]
        return sorted(step for step in steps if self._has(self._path(step), _WHOLE))

    def latest(self) -> str | None:
        steps = self.steps()
        return self._path(steps[-1]) if steps else None

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: a run that went back to `step` will write others. For rank 0."""
        for later in self.steps():
            if later > step:
                self._remove(self._path(later))

    def clear(self) -> None:
        """Remove all that is here."""
        self._files.rm(self._root, recursive=True)

    def _path(self, step: int) -> str:
        return f"{self._root}/{step_name(step)}"

    def _has(self, path: str, name: str) -> bool:
        self._files.invalidate_cache()  # others write here too
        return bool(self._files.exists(f"{path}/{name}"))

    def _names(self, path: str) -> list[str]:
        self._files.invalidate_cache()
        try:
            return [Path(found).name for found in self._files.ls(path, detail=False)]
        except FileNotFoundError:
            return []

    def _remove(self, path: str) -> None:
        """The marker first."""
        for name in sorted(self._names(path), key=lambda name: name != _WHOLE):
            self._files.rm_file(f"{path}/{name}")

    def _put(self, path: str, state: State) -> None:
        with _scratch() as file:
            write(file, state, path)
            self._files.put_file(str(file), path)

    def _get(self, path: str, map_location: Any) -> Any:
        with _scratch() as file:
            self._files.get_file(path, str(file))
            return torch.load(file, map_location=map_location, weights_only=True)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A file of this machine, for as long as the state travels."""
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        yield Path(folder) / "state.pt"
