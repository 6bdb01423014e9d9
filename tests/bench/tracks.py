"""What the workers of a run leave in files, step by step, and what can be told from it afterwards.

Each worker appends to two files of its own. In `PID-offers.jsonl` stands every micro-batch that it was given, with the
group, the rank and the samples; in `PID-steps.jsonl` every step that it has completed, with the time, the samples that
the run has consumed and the CRC-32 of its parameters. A kill cannot take back what was written.

A step counts if a worker that was not killed has completed it, or went on from it; what it has trained on is what all
ranks of that group were offered for it. The ranks' samples together must be those of the stream from the end of the
last step that counts to the end of this one, each once.
"""

import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cluster import SAMPLES, data, net
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from trimtab.workers import Session


class Track:
    """A worker's own files."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        folder.mkdir(exist_ok=True)
        name = name or str(os.getpid())
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._steps, self._offers = (os.open(folder / f"{name}-{kind}.jsonl", flags) for kind in ("steps", "offers"))

    def ready(self) -> None:
        self._write(self._steps, {"pid": os.getpid(), "ready": time.time()})

    def offered(self, step: int, group: int, rank: int, samples: list[int]) -> None:
        self._write(self._offers, {"step": step, "group": group, "rank": rank, "t": time.time(), "samples": samples})

    def completed(self, step: int, group: int, rank: int, size: int, consumed: int, model: nn.Module) -> None:
        at, crc = time.time(), digest(model)
        self._write(
            self._steps,
            {"pid": os.getpid(), "t": at, "step": step, "group": group, "rank": rank, "size": size}
            | {"consumed": consumed, "crc": crc},
        )

    @staticmethod
    def _write(file: int, line: dict[str, Any]) -> None:
        os.write(file, (json.dumps(line) + "\n").encode())


def digest(model: nn.Module) -> int:
    crc = 0
    for parameter in model.parameters():
        crc = zlib.crc32(parameter.detach().contiguous().numpy().data, crc)
    return crc


def make_train(folder: Path) -> Callable[[Session], None]:
    """Trains the benchmarks' net on samples in the order of the data set, and leaves a track."""

    def train(session: Session) -> None:
        module = net()
        model, _ = session.prepare(module, SGD(module.parameters(), lr=0.01, momentum=0.9))
        rows = (torch.arange(SAMPLES), *data())
        track = Track(folder)
        track.ready()
        for index, inputs, labels in session.batches(rows, shuffle=False):
            group = session._group
            assert group is not None
            track.offered(session.progress.steps + 1, group.number, group.rank, index.tolist())
            if session.step(cross_entropy(model(inputs), labels)):
                progress = session.progress
                track.completed(progress.steps, group.number, group.rank, group.size, progress.samples, module)

    return train


@dataclass(frozen=True, slots=True)
class Done:
    """A step that a worker has completed."""

    pid: int
    t: float  # unix seconds
    step: int
    group: int
    rank: int
    size: int
    consumed: int
    crc: int


class Watch:
    """Reads the tracks while they grow."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.done: list[Done] = []
        self.ready: set[int] = set()  # workers that have come to their batches

    def look(self) -> None:
        for path in self._folder.glob("*-steps.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in map(json.loads, whole.splitlines()):
                if "ready" in line:
                    self.ready.add(line["pid"])
                else:
                    self.done.append(Done(**line))

    def until(self, condition: Callable[[], bool], going: Callable[[], bool], timeout_s: float = 180.0) -> None:
        """Look until `condition`; raises TimeoutError, or RuntimeError if nothing is `going` any more."""
        deadline = time.monotonic() + timeout_s
        self.look()
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for {timeout_s:.0f} s; last: {self.done[-1:]}")
            if not going():
                raise RuntimeError("the run has ended")
            time.sleep(0.1)
            self.look()

    def newest(self) -> tuple[int, dict[int, Done]]:
        """The newest group that has completed a step, and the last step of each of its workers."""
        group = max((done.group for done in self.done), default=0)
        return group, {done.pid: done for done in self.done if done.group == group}

    def spares(self) -> set[int]:
        """Workers that are ready and have never been called."""
        return {pid for pid in self.ready - {done.pid for done in self.done} if Path(f"/proc/{pid}").exists()}


@dataclass(frozen=True, slots=True)
class Count:
    """How often the samples of a run were counted, and whether its ranks agree."""

    steps: int
    samples: int
    lost: int  # positions of the stream that no step has trained on
    doubled: int  # times that a position was trained on beyond the first
    unequal: int  # steps after which ranks had different parameters, sizes or places in the stream
    void: int  # steps completed by killed workers alone, and made anew by the others


def count(folder: Path, done: Iterable[Done], killed: Collection[int]) -> Count:
    """From all offers in `folder` and all steps `done`."""
    offers: dict[tuple[int, int], dict[int, list[int]]] = {}  # by step and group, then by rank
    for path in folder.glob("*-offers.jsonl"):
        for line in path.read_text().splitlines():
            offer = json.loads(line)
            ranks = offers.setdefault((offer["step"], offer["group"]), {})
            ranks.setdefault(offer["rank"], []).extend(offer["samples"])
    by_step: dict[int, dict[int, list[Done]]] = {}  # then by group
    for one in done:
        by_step.setdefault(one.step, {}).setdefault(one.group, []).append(one)
    void = unequal = at = 0
    seen: Counter[int] = Counter()
    for step in sorted(by_step):
        groups = by_step[step]
        for group in sorted(groups)[:-1]:
            void += 1
            unequal += not all(one.pid in killed for one in groups[group])
        last = max(groups)
        unequal += len({(one.size, one.consumed, one.crc) for one in groups[last]}) > 1
        size, consumed = groups[last][0].size, groups[last][0].consumed
        ranks = offers.get((step, last), {})
        unequal += sorted(ranks) != list(range(size))
        seen.update(_positions(ranks.values(), at, consumed))
        at = consumed
    lost = sum(1 for position in range(at) if not seen[position])
    doubled = sum(times - 1 for times in seen.values()) + sum(times for p, times in seen.items() if not 0 <= p < at)
    return Count(len(by_step), at, lost, doubled, unequal, void)


def _positions(offered: Iterable[list[int]], begin: int, end: int) -> Iterable[int]:
    """The places in the stream of samples that were offered for the step from `begin` to `end`; others as -1, ..."""
    for samples in offered:
        for index in samples:
            epoch = begin // SAMPLES
            position = epoch * SAMPLES + index
            position += SAMPLES if position < begin else 0
            yield position if position < end else -1 - index
