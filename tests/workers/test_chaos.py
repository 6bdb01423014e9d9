"""Everything at once, by chance: kills, silences, other sizes, strategies and values, while policies act on the run.

`TRIMTAB_SEED` gives it another seed (what comes out still depends on the machine's load); `TRIMTAB_LONG=1` makes it go
on for ten minutes. Workers append to files what they were given and what they have made, which `faults` looks through
afterwards; that it finds faults is tested too. A run in which too little has come about says nothing, and fails.
"""

import faulthandler
import json
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trimtab.controller.actor import call
from trimtab.controller.errors import ControllerUnreachable, Refused
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.policies.noise_scale import NoiseScale
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.policies.warmup import Warmup
from trimtab.workers import Session, launch
from trimtab.workers.crew import Resources

LONG = os.environ.get("TRIMTAB_LONG") == "1"
SEED = int(os.environ.get("TRIMTAB_SEED", "1"))
CHAOS_S, MOST_S = (600.0, 900.0) if LONG else (20.0, 90.0)  # it goes on until enough has come about, or for so long
STEPS = 40_000 if LONG else 3_000
LEAST = {"recoveries": 40, "resizes": 20, "silences": 40} if LONG else {"recoveries": 2, "resizes": 2, "silences": 2}
PAUSE_S = 0.008  # a step, as long as there is chaos
STALL_S = 15.0  # without a step, after which workers are asked where they are
TAIL = 300  # steps that are left to be made in peace
SAMPLES = 2000
TARGET = 0.35  # loss; of a coin it is 0.69
STRATEGIES = ("allreduce", "sma", "local", "pair")
HP: dict[str, Any] = {
    "batch_size": HyperParameter(name="batch_size", kind="integer", default=32, max=256),
    "lr": HyperParameter(name="lr", default=0.1, min=0.0, max=1.0, max_ratio=100.0),
    "noise_every": 5,
}


# ---- the run ------------------------------------------------------------------------------------------------------


def make_train(folder: Path) -> Callable[[Session], None]:
    def train(session: Session) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(SAMPLES, 10, generator=generator)
        y = (x.sum(1) > 0).long()
        torch.manual_seed(0)
        model = nn.Linear(10, 2)
        wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5))
        faulthandler.register(signal.SIGUSR1, (folder / f"{os.getpid()}-stacks").open("w"), all_threads=True)
        file = os.open(folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def write(**line: Any) -> None:
            os.write(file, (json.dumps({"pid": os.getpid()} | line) + "\n").encode())

        for index, inputs, labels in session.batches((torch.arange(SAMPLES), x, y), shuffle=False):
            at = {"step": session.progress.steps + 1, "formation": session._course.formation, "rank": session.rank}
            write(**at, offered=index.tolist())
            loss = cross_entropy(wrapped(inputs), labels)
            if not session.step(loss):
                continue
            crc = 0
            for parameter in model.parameters():
                crc = zlib.crc32(parameter.detach().numpy().tobytes(), crc)
            values = {name: getattr(session.hp, name) for name in ("lr", "batch_size", "sync")}
            write(
                **at,
                size=session.world_size,
                consumed=session.progress.samples,
                version=session.version,
                values=values,
                crc=crc,
            )
            if not (folder / "peace").exists():
                time.sleep(PAUSE_S)
            if session.every(steps=20):
                session.log(val_loss=loss)

    return train


# ---- what is found afterwards -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """A step that a worker has completed."""

    pid: int
    step: int
    formation: int
    rank: int
    size: int
    consumed: int
    version: int
    values: Mapping[str, Any]
    crc: int


@dataclass(slots=True)
class Tracks:
    """What the workers have written so far."""

    folder: Path
    done: list[Done] = field(default_factory=list)
    offers: dict[tuple[int, int], dict[int, list[int]]] = field(default_factory=dict)  # by formation and step; by rank
    read: dict[Path, int] = field(default_factory=dict)

    def look(self) -> None:
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self.read[path] = self.read.get(path, 0) + len(whole)
            for line in map(json.loads, whole.splitlines()):
                if "offered" in line:
                    ranks = self.offers.setdefault((line["formation"], line["step"]), {})
                    ranks.setdefault(line["rank"], []).extend(line["offered"])
                else:
                    self.done.append(Done(**line))

    def newest(self) -> dict[int, Done]:
        """The last step of each worker of the newest group."""
        formation = max((one.formation for one in self.done), default=0)
        return {one.pid: one for one in self.done[-1000:] if one.formation == formation}


def faults(
    done: Sequence[Done], offers: Mapping[tuple[int, int], Mapping[int, Sequence[int]]], killed: set[int]
) -> list[str]:
    """Promises that were broken."""
    found: list[str] = []
    by_step: dict[int, dict[int, list[Done]]] = {}
    last: dict[int, int] = {}
    for one in done:
        by_step.setdefault(one.step, {}).setdefault(one.formation, []).append(one)
        if one.step <= last.get(one.pid, 0):
            found.append(f"worker {one.pid} made step {one.step} after step {last[one.pid]}")
        last[one.pid] = one.step
    before = 0
    for step in sorted(by_step):
        formations = by_step[step]
        for ranks in formations.values():
            found += mixed(step, ranks)
        newest = max(formations)
        for formation in set(formations) - {newest}:
            if any(one.pid not in killed for one in formations[formation]):
                found.append(f"step {step} was made in formations {sorted(formations)}")
        one = formations[newest][0]
        if one.values["sync"] == "allreduce":
            own = offers.get((newest, step), {})
            there = sorted(index for samples in own.values() for index in samples)
            wanted = sorted(position % SAMPLES for position in range(before, one.consumed))
            if there != wanted:
                found.append(f"step {step}: {len(there)} samples, not the {len(wanted)} from {before} on")
        before = one.consumed
    return found


def mixed(step: int, ranks: Sequence[Done]) -> list[str]:
    """Do ranks of one group differ in a step?"""
    alike = ("size", "consumed", "version", "values")
    found = [
        f"step {step}: {name} is {[getattr(one, name) for one in ranks]}"
        for name in alike
        if any(getattr(one, name) != getattr(ranks[0], name) for one in ranks)
    ]
    if ranks[0].values["sync"] == "allreduce" and len({one.crc for one in ranks}) > 1:
        found.append(f"step {step}: parameters differ")
    if len({one.rank for one in ranks}) < len(ranks) or len(ranks) > ranks[0].size:
        found.append(f"step {step}: {len(ranks)} workers as ranks {[one.rank for one in ranks]} of {ranks[0].size}")
    return found


# ---- chaos --------------------------------------------------------------------------------------------------------


class Chaos:
    """Does by chance what may happen to a run."""

    def __init__(self, run: str, tracks: Tracks, chance: random.Random) -> None:
        self.killed: set[int] = set()
        self.counts = {"recoveries": 0, "resizes": 0, "silences": 0, "switches": 0, "pins": 0, "refused": 0}
        self._run = run
        self._tracks = tracks
        self._chance = chance
        self._fallen = 0  # formation of the last victim, until the others have gone on
        self._asked = 0  # the size that is asked for, until it is there
        self._timers: list[tuple[int, threading.Timer]] = []
        self._steps, self._moved, self._looked_into = 0, time.monotonic(), False

    def go_on(self, going: Callable[[], bool]) -> None:
        """Until enough has come about; `going`: as long as the run does."""
        acts = [self._kill, self._kill, self._silence, self._resize, self._switch, self._pin, self._unpin]
        begin = time.monotonic()
        while going() and time.monotonic() - begin < MOST_S:
            enough = all(self.counts[name] >= least for name, least in LEAST.items())
            if enough and time.monotonic() - begin > CHAOS_S:
                break
            if max((one.step for one in self._tracks.newest().values()), default=0) > STEPS - TAIL:
                break
            for act in self._chance.sample(acts, len(acts)):
                self._wait(self._chance.uniform(0.1, 0.6))
                with suppress(ControllerUnreachable):
                    act()
        for pid, timer in self._timers:
            timer.cancel()
            send(pid, signal.SIGCONT)

    def _wait(self, duration_s: float) -> None:
        until = time.monotonic() + duration_s
        while time.monotonic() < until:
            time.sleep(0.1)
            self._tracks.look()
            group = self._tracks.newest()
            self._stalls(len(self._tracks.done))
            if self._fallen and any(one.formation > self._fallen for one in group.values()):
                self._fallen = 0
                self.counts["recoveries"] += 1
            if self._asked and any(one.size == self._asked for one in group.values()):
                self._asked = 0
                self.counts["resizes"] += 1

    def _stalls(self, steps: int) -> None:
        """Let all workers write down where they are, once, if nobody has made a step for long."""
        if steps != self._steps:
            self._steps, self._moved = steps, time.monotonic()
        elif time.monotonic() - self._moved > STALL_S and not self._looked_into:
            self._looked_into = True
            stacks(self._tracks)

    def _kill(self) -> None:
        """One of a group of two or more, unless the last victim is still being mourned, or one may be all by now:
        where none is left the run goes back to its checkpoint, and makes steps again that others have made."""
        group = self._tracks.newest()
        if self._fallen or self._asked == 1 or len(group) < 2 or len(group) != next(iter(group.values())).size:
            return
        victim = self._chance.choice(sorted(group))
        if send(victim, signal.SIGKILL):
            self.killed.add(victim)
            self._fallen = group[victim].formation

    def _silence(self) -> None:
        group = self._tracks.newest()
        pid = self._chance.choice(sorted(group)) if group else 0
        if pid and send(pid, signal.SIGSTOP):
            timer = threading.Timer(self._chance.uniform(0.1, 3.0), send, (pid, signal.SIGCONT))
            timer.start()
            self._timers.append((pid, timer))
            self.counts["silences"] += 1

    def _resize(self) -> None:
        group = self._tracks.newest()
        size = next(iter(group.values())).size if group else 0
        wanted = self._chance.choice([n for n in range(1, 5) if n != size])
        if self._set("workers", wanted):
            self._asked = wanted

    def _switch(self) -> None:
        self.counts["switches"] += self._set("sync", self._chance.choice(STRATEGIES))

    def _pin(self) -> None:
        self.counts["pins"] += self._set("lr", round(self._chance.uniform(0.02, 0.2), 4))
        self.counts["pins"] += self._set("batch_size", self._chance.choice([16, 32, 48, 64, 128]))

    def _unpin(self) -> None:
        for name in ("lr", "batch_size"):
            with suppress(Refused):
                call("unpin", self._run, name, "chaos", "by chance", None)

    def _set(self, name: str, value: Any) -> bool:
        try:
            call("pin", self._run, name, value, "chaos", "by chance", None)
        except Refused as refusal:
            self.counts["refused"] += 1
            print(f"{name}={value} was refused: {refusal}")
            return False
        return True


def stacks(tracks: Tracks) -> None:
    """Print where each worker is."""
    for path in tracks.folder.glob("*-stacks"):
        pid = int(path.name.removesuffix("-stacks"))
        if send(pid, signal.SIGUSR1):
            time.sleep(0.5)
            print(f"worker {pid}, which has made no step for {STALL_S:.0f} s:\n{path.read_text()}")


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a worker of ours, if it is still there."""
    with suppress(OSError):
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)
            return True
    return False


@pytest.mark.usefixtures("controller")
@pytest.mark.timeout(2 * MOST_S + 300)
def test_a_run_outlasts_whatever_happens_to_it(tmp_path: Path) -> None:
    print(f"seed {SEED}: TRIMTAB_SEED={SEED} repeats it")
    ended: list[Any] = []
    begun: list[str] = []

    def body() -> None:
        try:
            ended.append(
                launch(
                    make_train(tmp_path),
                    workers=3,
                    max_workers=4,
                    spares=1,
                    hp=HP,
                    policies=[NoiseScale(), Warmup(steps=200, start=0.1), Plateau(patience=20, factor=0.5)],
                    steps=STEPS,
                    name="chaos",
                    seed=SEED,
                    checkpoint_steps=200,
                    resources=Resources(cpus=0.8),  # five fit into the cluster of the tests
                    on_start=begun.append,
                )
            )
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    tracks = Tracks(tmp_path)
    while thread.is_alive() and len(tracks.newest()) < 3:
        time.sleep(0.1)
        tracks.look()
    chaos = Chaos(begun[0], tracks, random.Random(SEED))
    chaos.go_on(thread.is_alive)
    (tmp_path / "peace").touch()
    seen = -1
    while thread.is_alive() and len(tracks.done) > seen:  # on a busy machine the rest may take long
        seen = len(tracks.done)
        thread.join(60)
        tracks.look()
    if thread.is_alive():
        stacks(tracks)
    steps = max((one.step for one in tracks.done), default=0)
    print(f"{chaos.counts}, {steps} steps in {len({one.formation for one in tracks.done})} formations")
    assert not thread.is_alive(), f"the run stands still after step {steps}: {tracks.done[-3:]}"
    [summary] = ended
    assert isinstance(summary, dict), summary
    assert (summary["state"], summary["steps"]) == ("finished", STEPS)
    found = faults(tracks.done, tracks.offers, chaos.killed)
    assert not found, f"{len(found)} faults: {found[:10]}"
    applied = [v for v in summary["versions"] if v["status"] == "applied"]
    apart = [v for v in applied if len(set(v["applied"].values())) > 1]
    assert not apart, f"{len(apart)} of {len(applied)} versions were applied at several steps: {apart[:3]}"
    assert summary["metrics"]["loss"] < TARGET
    for name, least in LEAST.items():
        assert chaos.counts[name] >= least, f"invalid: only {chaos.counts}"


def made(steps: int = 4) -> tuple[list[Done], dict[tuple[int, int], dict[int, list[int]]]]:
    """Two ranks that have done everything right."""
    values = {"lr": 0.1, "batch_size": 4, "sync": "allreduce"}
    done = [Done(100 + rank, s, 1, rank, 2, 4 * s, s // 2, values, s) for s in range(1, steps + 1) for rank in (0, 1)]
    offers = {(1, s): {rank: [4 * s - 4 + rank, 4 * s - 2 + rank] for rank in (0, 1)} for s in range(1, steps + 1)}
    return done, offers


def test_a_faultless_run_has_no_faults_and_one_whose_victim_was_ahead_neither() -> None:
    done, offers = made()
    assert faults(done, offers, set()) == []
    ahead = replace(done[-1], step=5, consumed=20, formation=1)
    after = [replace(done[-2], step=5, consumed=20, formation=2, size=1, crc=9)]
    offers |= {(1, 5): {1: [17, 19], 0: [16, 18]}, (2, 5): {0: [16, 17, 18, 19]}}
    assert faults([*done, ahead, *after], offers, {ahead.pid}) == []
    assert faults([*done, ahead, *after], offers, set()) == ["step 5 was made in formations [1, 2]"]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"version": 7}, "step 4: version is [2, 7]"),
        ({"crc": 7}, "step 4: parameters differ"),
        ({"values": {"lr": 0.2, "batch_size": 4, "sync": "allreduce"}}, "step 4: values is"),
        ({"consumed": 15}, "step 4: consumed is [16, 15]"),
        ({"rank": 0}, "step 4: 2 workers as ranks [0, 0] of 2"),
        ({"step": 3}, "worker 101 made step 3 after step 3"),
    ],
)
def test_a_broken_run_is_found_out(broken: dict[str, Any], told: str) -> None:
    done, offers = made()
    done[-1] = replace(done[-1], **broken)
    assert any(fault.startswith(told) for fault in faults(done, offers, set()))


@pytest.mark.parametrize("samples", [[13], [13, 15, 15], [13, 14]])
def test_samples_lost_or_doubled_are_found_out(samples: list[int]) -> None:
    done, offers = made()
    offers[1, 4][1] = samples
    assert any(fault.startswith("step 4: ") for fault in faults(done, offers, set()))
