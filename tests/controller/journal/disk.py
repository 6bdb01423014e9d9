"""What a disk may hold after a power cut, from the system calls of the processes that wrote to it.

The model is what POSIX promises and no more. A sync makes durable what a file holds, or which names a folder holds; not
both. Of what came later any part may be missing, in any order: sectors of a write, a file's new size, that a file was
made or removed. A write changes no byte beside its own, as SQLite assumes too ("powersafe overwrite").
"""

import os
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

SECTOR = 512  # bytes that a disk writes whole or not at all
TRACED = "trace=openat,?mkdir,mkdirat,write,pwrite64,ftruncate,fsync,fdatasync,?unlink,unlinkat"  # ?: not on ARM
RETURNED = re.compile(r"(\w+)\((.*)\) += (\d+)")  # not -1, nor ? where the process was killed
UNKNOWN = "-shm"  # ends the name of what SQLite's processes share as memory: a power cut leaves anything in it
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that has succeeded."""

    name: str
    arguments: Sequence[str | bytes]  # a string's bytes, all else as it is printed
    result: int


def record(command: Sequence[str], log: Path, *options: str) -> Iterator[Call]:
    """Run a process of one thread to its end, with options of strace's, and tell what it did to files."""
    strace = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", str(2**24), "-e", TRACED, "-o", str(log), *options]
    done = subprocess.run([*strace, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (0, -9), done.stderr
    with log.open() as lines:
        for name, arguments, result in (found.groups() for found in map(RETURNED.search, lines) if found):
            yield Call(name, [_bytes(one) if one[0] == '"' else one for one in arguments.split(", ")], int(result))


def _bytes(printed: str) -> bytes:
    return bytes.fromhex(printed.strip('"').replace("\\x", ""))


def survivors(changes: Sequence[T], chance: random.Random) -> Iterator[T]:
    """Those that came to the disk: none, all, the first, the last, all but some in between, or any."""
    start, end = sorted(chance.choices(range(len(changes) + 1), k=2))
    inside, outside = chance.choice((0, 0.5, 1)), chance.choice((0, 0.5, 1))
    return (one for i, one in enumerate(changes) if chance.random() < (inside if start <= i < end else outside))


@dataclass(slots=True)
class File:
    """Its bytes as they were synced, and since then: bytes at an offset, or None where it was made to end."""

    synced: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        cuts = [0, *range(SECTOR - offset % SECTOR, len(data), SECTOR), len(data)]
        self.waiting += [(offset + start, data[start:end]) for start, end in pairwise(cuts)]

    def after(self, changes: Iterable[tuple[int, bytes | None]]) -> bytearray:
        content = bytearray(self.synced)
        for offset, data in changes:
            content.extend(bytes(max(0, offset - len(content))))  # a hole reads as zeros
            content[offset : None if data is None else offset + len(data)] = data or b""
        return content

    def sync(self) -> None:
        self.synced = self.after(self.waiting)
        self.waiting.clear()


@dataclass(slots=True)
class Folder:
    """What its names stood for when it was synced, and since then; None: the name was taken away."""

    synced: dict[str, "Node"] = field(default_factory=dict)
    waiting: list[tuple[str, "Node | None"]] = field(default_factory=list)

    def after(self, changes: Iterable[tuple[str, "Node | None"]]) -> dict[str, "Node"]:
        return {name: node for name, node in {**self.synced, **dict(changes)}.items() if node is not None}

    def sync(self) -> None:
        self.synced = self.after(self.waiting)
        self.waiting.clear()


Node = File | Folder


class Disk:
    """What processes, one after the other, did in the folder `root`, which is there and empty at first."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = {root: Folder()}
        self._open: dict[str, Node | None] = {}  # by descriptor; None is of no interest here

    def take(self, call: Call) -> None:
        node = self._open.get(str(call.arguments[0]))
        match call.name, *call.arguments:
            case "openat", _, bytes(path), *_:
                self._open[str(call.result)] = self._opened(Path(os.fsdecode(path)))
            case ("mkdir", bytes(path), _) | ("mkdirat", _, bytes(path), _):
                self._made(Path(os.fsdecode(path)))
            case ("unlink", bytes(path)) | ("unlinkat", _, bytes(path), _):
                self._unlinked(Path(os.fsdecode(path)))
            case "pwrite64", _, bytes(data), _, str(offset) if isinstance(node, File):
                node.write(int(offset), data[: call.result])
            case "ftruncate", _, str(size) if isinstance(node, File):
                node.waiting.append((int(size), None))
            case (("fsync" | "fdatasync"), _) if node is not None:
                node.sync()

    def cut(self, destination: Path, chance: random.Random) -> None:
        """Make in `destination` what a power cut at this moment may leave."""
        for path, content in _files(self._folders[self._root], destination, partial(survivors, chance=chance)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(chance.randbytes(len(content)) if path.name.endswith(UNKNOWN) else content)

    def check(self) -> None:
        """What really lies there must be all changes taken together, or one was missed."""
        for path, content in (wanted := dict(_files(self._folders[self._root], self._root, iter))).items():
            assert path.name.endswith(UNKNOWN) or path.read_bytes() == content, path
        assert wanted.keys() == {path for path in self._root.rglob("*") if path.is_file()}

    def _opened(self, path: Path) -> Node | None:
        if path in self._folders or path.parent not in self._folders:
            return self._folders.get(path)
        folder = self._folders[path.parent]
        found = folder.after(folder.waiting).get(path.name)
        if found is None:
            folder.waiting.append((path.name, found := File()))
        return found

    def _made(self, path: Path) -> None:
        if path.parent in self._folders:
            self._folders[path] = Folder()
            self._folders[path.parent].waiting.append((path.name, self._folders[path]))

    def _unlinked(self, path: Path) -> None:
        if path.parent in self._folders:
            self._folders[path.parent].waiting.append((path.name, None))


def _files(folder: Folder, path: Path, came: Callable[[list[Any]], Iterable[Any]]) -> Iterator[tuple[Path, bytes]]:
    for name, node in folder.after(came(folder.waiting)).items():
        if isinstance(node, Folder):
            yield from _files(node, path / name, came)
        else:
            yield path / name, bytes(node.after(came(node.waiting)))
