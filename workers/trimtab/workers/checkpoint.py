"""Checkpoints that are there whole or not at all, whatever dies while one is written."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from trimtab.controller.durable import sync
from trimtab.workers.randomness import capture

State = Mapping[str, Any]  # tensors, numbers, strings, None, and containers of them

_NAME = re.compile(r"step-(\d+)")
SHARED = "shared.pt"
BRANCH = "branch.json"  # beside them once the run has gone back to the checkpoint


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says where and what to do."""


class CheckpointStore:
    """The last `keep` checkpoints of a run, in a directory that all its ranks share.

    `step-00000300/` holds `shared.pt`, written by rank 0, and `rank-0-of-2.pt`, the random states of each rank. It is
    made under a hidden name, synced to disk, and gets its own by one atomic rename.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least one checkpoint, got {keep}")
        self.directory = Path(directory).absolute()
        self.place = str(self.directory)
        self.keep = keep
        self.probe()

    def probe(self) -> None:
        """Raise CheckpointError unless a file can be made, synced, renamed and removed in the directory."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor, trial = tempfile.mkstemp(prefix=".probe-", dir=self.directory)
            with open(descriptor, "wb") as file:
                file.write(b"trimtab")
            sync(Path(trial))
            Path(trial).rename(trial + "-renamed").unlink()
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.directory} ({error.strerror}): free space there, let this "
                f"user (uid {os.getuid()}) write to it, or give another directory that all workers share"
            ) from error

    def save(
        self,
        step: int,
        shared: State | None,
        rank: int,
        world_size: int,
        barrier: Callable[[], None],
        wanted: Callable[[], Collection[int]] = tuple,
    ) -> Path:
        """Write the checkpoint of `step`; called by all ranks together, with `shared` from rank 0 (others: None).

        Of the older ones all but `keep` are removed, yet none of the steps that are `wanted`: it is asked when the
        new one is there.

        `barrier` is passed three times. A checkpoint that exists stays as it is, so that no crash can leave none:
        who goes back to an earlier step calls `forget_after` first. Raises CheckpointError for a state that
        `torch.load(weights_only=True)` would refuse, and for a directory that this rank does not share with rank 0.
        """
        final, partial = self._path(step), self.directory / f".{self._path(step).name}.partial"
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        barrier()
        if not partial.is_dir():
            raise CheckpointError(f"rank {rank} does not see {partial}, which rank 0 made: give a directory they share")
        write(partial / rank_file(rank, world_size), capture(), partial)
        if rank == 0:
            write(partial / SHARED, shared or {}, partial)
        barrier()
        if rank == 0:
            self._publish(partial, final, wanted)
        barrier()
        return final

    def load(self, path: Path | str, rank: int, map_location: Any = "cpu") -> tuple[dict[str, Any], State | None]:
        """The shared state, and this rank's random states (None if there was no such rank), for `restore`."""
        path = Path(path)
        shared = torch.load(path / SHARED, map_location=map_location, weights_only=True)
        own = next(path.glob(f"rank-{rank}-of-*.pt"), None)
        return shared, None if own is None else torch.load(own, map_location="cpu", weights_only=True)

    def adopt(self, directory: str | Path, step: int) -> Path:
        """Take in the checkpoint of `step` that another run keeps in `directory`, which is only read.

        Files are linked where the disk can do that: none is ever changed, and the other run may remove its own at any
        time. Raises CheckpointError where it is not there whole.
        """
        final = self._path(step)
        source, partial = Path(directory) / final.name, self.directory / f".{final.name}.partial"
        try:
            shutil.copytree(source, partial, copy_function=_linked)
            if not _complete(partial):
                raise FileNotFoundError("a part of it is missing")
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint {source} cannot be read whole ({error}): the run may have removed it meanwhile, then "
                "take its newest; or this machine does not share the folder"
            ) from error
        partial.rename(final)
        sync(self.directory)
        return final

    def find(self, step: int) -> Path | None:
        """The checkpoint of `step`, if it is there and complete."""
        path = self._path(step)
        return path if _complete(path) else None

    def go_back(self, step: int, number: int, skipped: int) -> None:
        """The run went back to `step` by roll back `number`, and has now `skipped` samples of its data. For rank 0.

        First it is noted there, for whoever begins from that checkpoint later; then the later ones are removed. A
        crash between the two leaves one that has not heard of the roll back, which is then made again.
        """
        branch = self._path(step) / BRANCH
        partial = branch.with_suffix(".partial")
        partial.write_text(json.dumps({"rolled_back": number, "skipped": skipped}))
        sync(partial)
        partial.rename(branch)
        sync(branch.parent)
        self.forget_after(step)

    def branch(self, path: Path | str) -> dict[str, int]:
        """What `go_back` last noted at a checkpoint: `rolled_back` and `skipped`; nothing if no run went back to it."""
        try:
            noted: dict[str, int] = json.loads((Path(path) / BRANCH).read_text())
        except FileNotFoundError:
            return {}
        return noted

    def all(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(
            path for path in self.directory.iterdir() if named_step(path.name) is not None and _complete(path)
        )

    def steps(self) -> list[int]:
        """Those of the complete checkpoints, ascending."""
        return [step_of(path) for path in self.all()]

    def latest(self) -> Path | None:
        return next(reversed(self.all()), None)

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: a run that went back to `step` will write others. For rank 0."""
        for path in self.all():
            if step_of(path) > step:
                shutil.rmtree(path)
        sync(self.directory)

    def clear(self) -> None:
        """Remove all that is here."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.directory / step_name(step)

    def _publish(self, partial: Path, final: Path, wanted: Callable[[], Collection[int]]) -> None:
        if _complete(final):
            shutil.rmtree(partial)
            return
        shutil.rmtree(final, ignore_errors=True)
        sync(partial)
        partial.rename(final)
        sync(self.directory)
        for path in self.all()[: -self.keep]:
            if step_of(path) not in wanted():
                shutil.rmtree(path)


def step_of(path: Path | str) -> int:
    """The step that a checkpoint was named for."""
    return int(str(path).rpartition("step-")[2])


def step_name(step: int) -> str:
    """The name of the checkpoint of `step`."""
    return f"step-{step:08d}"


def named_step(name: str) -> int | None:
    """The step that a name is that of; None if it names no checkpoint."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def rank_file(rank: int, world_size: int) -> str:
    return f"rank-{rank}-of-{world_size}.pt"


def _complete(path: Path) -> bool:
    """Whether all files are there: they may not be where a removal was cut off, or a copy."""
    names = {file.name for file in path.glob("*.pt")}
    world_size = max((int(name[:-3].rsplit("-", 1)[1]) for name in names if name.startswith("rank-")), default=1)
    return names >= {SHARED, *(rank_file(rank, world_size) for rank in range(world_size))}


def _linked(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:
        shutil.copyfile(source, copy)


def write(path: Path, state: State, destination: str | Path) -> None:
    """Raises CheckpointError, which names the destination, for a state that could not be loaded safely."""
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    unsafe = get_unsafe_globals_in_checkpoint(path)
    if unsafe:
        raise CheckpointError(
            f"the state for {destination} holds {', '.join(sorted(unsafe))}, which cannot be loaded safely: keep "
            "tensors, numbers, strings and containers of them"
        )
