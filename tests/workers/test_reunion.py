"""Groups that lose ranks, grow and shrink in place: real gloo groups, a scripted controller, the test as the driver.

A worker writes a line for every step that it has made, and waits for files of the test's at steps that the test wants
to see.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import test_session as base
import torch
from ranks import start
from torch.nn.functional import cross_entropy

from trimtab.controller.hyperparameters import Version, initial_parameter
from trimtab.controller.records import Regrouped
from trimtab.controller.sync import STRATEGIES, SYNC_PARAMETER
from trimtab.workers.peers import GroupLost
from trimtab.workers.rendezvous import Departed, Doorkeeper, Rendezvous
from trimtab.workers.reunion import Reunion
from trimtab.workers.session import Session
from trimtab.workers.stream import SampleStream

BATCH = 24
STEPS = 60


# ---- a worker -----------------------------------------------------------------------------------------------------


def work(directory: Path, name: str, given: dict[str, Any]) -> None:
    """One worker with what the test has `given` it: see `Workers.start`."""
    lines, park = Rendezvous(("127.0.0.1", given["port"]), name), (directory / f"{name}-parked").touch
    reunion = Reunion(lines, "gloo", park, lambda rank: write(directory, name, {"rank": rank}))
    group = None if given["joins"] else reunion.first()
    size = given["size"]
    place = base.assignment(directory, 0, size, BATCH, STEPS, worker=name, joins=given["joins"], micro_batch=4)
    version = with_sync(place.version, given["sync"])
    number = given["groups"][0]
    due = {at: resized(*group) for at, group in zip(given["resize_at"], given["groups"][1:], strict=False)}
    version = replace(resized(*number)(version), number=number[0])
    controller = base.Scripted(version, due)
    session = Session(replace(place, rank=group.rank if group else 0, version=version), controller, group, reunion)
    try:
        train(directory, name, session, given)
    except Departed:
        write(directory, name, {"departed": session.progress.steps})
    finally:
        session.leave()
        session.close()
    begun = [r.branch for r in controller.records if r.branch is not None]
    facts = [
        [b.cause, b.world_size, b.lost, b.progress.steps] for b in dict.fromkeys(begun) if isinstance(b, Regrouped)
    ]
    applied = [pair for r in controller.records for pair in r.applied]
    write(directory, name, {"begun": facts, "applied": applied})


def with_sync(version: Version, sync: str) -> Version:
    parameters = [replace(SYNC_PARAMETER, default=sync), *STRATEGIES[sync]]
    for parameter in parameters:
        version = version.with_parameter(initial_parameter(parameter))
    return version


def resized(group: int, size: int) -> Any:
    return lambda v: replace(v, group=group, batching=v.batching.regrouped(size))


def train(directory: Path, name: str, session: Session, given: dict[str, Any]) -> None:
    x, y = base.data()
    model = base.net()
    wrapped, _ = session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=given["momentum"]))
    seen: list[int] = []
    fall_behind(session, given["behind_at"])
    for index, inputs, labels in session.batches((torch.arange(base.DATA), x, y)):
        steps = session.progress.steps
        for step, file in given["wait"].items():
            if steps == int(step):
                until(directory / file)
        time.sleep(given["pause_s"])
        loss = cross_entropy(wrapped(inputs), labels)
        if steps == given["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        made = session.step(loss)
        if session.progress.steps == steps and not session._lost:
            seen += index.tolist()  # of a step that has not ended
        elif made:
            seen += index.tolist()
            shown = [session.progress.steps, session.world_size, sorted(seen), base.digest(model)]
            write(directory, name, {"step": shown})
            if given["sync"] == "sma":
                with torch.no_grad():
                    write(directory, name, {"centre": [session.progress.steps, float(wrapped(x[:8]).double().sum())]})
            seen = []
        else:
            seen = []


def fall_behind(session: Session, at: int | None) -> None:
    """In step `at` the gradients arrive, and this rank thinks that they have not."""
    training = session._training
    assert training is not None
    finish = training.finish

    def late() -> Any:
        measured = finish()
        if session.progress.steps == at:
            raise GroupLost("the test says so")
        return measured

    training.finish = late  # type: ignore[method-assign]


def write(directory: Path, name: str, line: dict[str, Any]) -> None:
    with (directory / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def until(file: Path, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} did not come"
        time.sleep(0.01)


# ---- the test's side ----------------------------------------------------------------------------------------------


class Workers:
    """Processes by name, and the door that they meet at."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.door = Doorkeeper("127.0.0.1")
        self.processes: dict[str, ForkServerProcess] = {}

    def start(self, name: str, **given: Any) -> None:
        """`groups`: the numbers and sizes of the groups that versions will name, the first one that it begins with."""
        usual = {
            "port": self.door.address[1],
            "joins": False,
            "size": 2,
            "groups": [(1, 2)],
            "resize_at": [20, 45],
            "pause_s": 0.0,
            "wait": {},
            "die_at": None,
            "behind_at": None,
            "momentum": 0.9,
            "sync": "allreduce",
        }
        self.processes[name] = start(work, self.directory, name, usual | given)

    def file(self, name: str) -> None:
        (self.directory / name).touch()

    def wait(self, *names: str) -> None:
        for name in names:
            assert self.ended(name) == 0, name

    def ended(self, name: str) -> int | None:
        """The exit code; None if it goes on."""
        self.processes[name].join(90)
        return self.processes[name].exitcode

    def told(self, name: str, key: str) -> list[Any]:
        lines = [json.loads(line) for line in (self.directory / f"{name}.jsonl").read_text().splitlines()]
        return [line[key] for line in lines if key in line]

    def steps(self, *names: str) -> dict[int, dict[str, list[Any]]]:
        """By step, what each worker told of it."""
        found: dict[int, dict[str, list[Any]]] = {}
        for name in names:
            for step, *rest in self.told(name, "step"):
                assert name not in found.setdefault(step, {}), "a step was made twice"
                found[step][name] = rest
        return found


@contextmanager
def workers(directory: Path) -> Iterator[Workers]:
    crowd = Workers(directory)
    try:
        yield crowd
    finally:
        for process in crowd.processes.values():
            process.kill()


def assert_each_sample_once(steps: dict[int, dict[str, list[Any]]], besides: dict[int, set[str]] | None = None) -> None:
    """Every step takes the next samples of the stream, shared out to its ranks; all end it with the same parameters."""
    stream = SampleStream(base.DATA, 3)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for step, ranks in steps.items():
        wanted = stream.indices(torch.arange((step - 1) * BATCH, step * BATCH).numpy()).tolist()
        there = [index for _, seen, _ in ranks.values() for index in seen]
        assert len({size for size, *_ in ranks.values()}) == 1, step
        assert len({digest for *_, digest in ranks.values()}) == 1, step
        if besides and step in besides:  # of a worker that died in the next step nothing is missing but its line
            assert set(there) <= set(wanted)
        else:
            assert sorted(there) == sorted(wanted), step


@pytest.mark.parametrize("dies", ["a", "c"])
def test_who_is_left_goes_on_without_a_sample_lost_or_seen_twice(tmp_path: Path, dies: str) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a", "b", "c"])
        for name in "abc":
            crowd.start(name, size=3, groups=[(1, 3)], die_at=30 if name == dies else None)
        assert crowd.ended(dies) == -signal.SIGKILL
        left = [name for name in "abc" if name != dies]
        crowd.door.name(left)
        crowd.wait(*left)
        steps = crowd.steps("a", "b", "c")
        assert_each_sample_once(steps)
        assert [len(steps[step]) for step in (30, 31, STEPS)] == [3, 2, 2]
        for rank, name in enumerate(left):
            assert crowd.told(name, "begun") == [[["loss", 2, 1, 30]]]
            assert crowd.told(name, "rank") == ["abc".index(name), rank]


def test_a_rank_that_is_behind_takes_over_the_state_of_the_one_that_is_ahead(tmp_path: Path) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a", "b"])
        crowd.start("a", behind_at=30)
        crowd.start("b")
        deadline = time.monotonic() + 60
        while not crowd.door.complained():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        crowd.door.name(["a", "b"])
        crowd.wait("a", "b")
        steps = crowd.steps("a", "b")
        assert list(steps[31]) == ["b"]  # the other one took it over
        assert_each_sample_once({s: r for s, r in steps.items() if s != 31} | {31: steps[31]}, besides={31: set("a")})


def test_a_run_resized_from_2_to_3_to_2_sees_the_samples_in_the_order_of_one_that_was_not(tmp_path: Path) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a", "b"])
        groups = [(1, 2), (2, 3), (3, 2)]
        for name in "ab":
            crowd.start(name, groups=groups, wait={20: "three", 45: "two"}, pause_s=0.05)
        crowd.start("c", joins=True, size=3, groups=groups[1:], resize_at=[45], wait={45: "two"}, pause_s=0.05)
        until(tmp_path / "a.jsonl")
        until(tmp_path / "c-parked")
        crowd.door.name(["a", "b", "c"])
        crowd.file("three")
        deadline = time.monotonic() + 60
        while len(crowd.told("a", "step")) < 45:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        crowd.door.name(["a", "b"])
        crowd.file("two")
        crowd.wait("a", "b", "c")
        steps = crowd.steps("a", "b", "c")
        assert_each_sample_once(steps)
        sizes = [len(steps[step]) for step in range(1, STEPS + 1)]
        assert (sizes[19], sizes[44], sizes[-1]) == (2, 3, 2)
        assert sorted(set(sizes)) == [2, 3]
        [[grown, shrunk]] = crowd.told("a", "begun")
        assert grown[:3] == ["resize", 3, 0]
        assert shrunk[:3] == ["resize", 2, 1]
        assert crowd.told("c", "departed") == [shrunk[3]]
        assert crowd.told("a", "applied") == crowd.told("b", "applied")


def test_a_newcomer_takes_over_the_central_model_and_its_momentum(tmp_path: Path) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a", "b"])
        groups = [(1, 2), (2, 3)]
        for name in "ab":
            crowd.start(name, groups=groups, sync="sma", wait={20: "three"}, pause_s=0.05)
        crowd.start("c", joins=True, size=3, groups=groups[1:], sync="sma", pause_s=0.05)
        until(tmp_path / "a.jsonl")
        until(tmp_path / "c-parked")
        crowd.door.name(["a", "b", "c"])
        crowd.file("three")
        crowd.wait("a", "b", "c")
        centres = {name: dict(crowd.told(name, "centre")) for name in "abc"}
        assert 5 < len(centres["c"]) < STEPS
        for step, centre in centres["c"].items():
            assert centre == centres["a"][step] == centres["b"][step], step


def test_a_newcomer_that_dies_at_the_door_holds_up_nobody(tmp_path: Path) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a", "b"])
        for name in "ab":
            crowd.start(name, groups=[(1, 2), (2, 3)], wait={20: "go"}, pause_s=0.05)
        until(tmp_path / "a.jsonl")
        crowd.door.name(["a", "b", "nobody"])
        crowd.file("go")
        deadline = time.monotonic() + 60
        while crowd.door.absent(["a", "b"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        crowd.door.name(["a", "b"])
        crowd.wait("a", "b")
        assert_each_sample_once(crowd.steps("a", "b"))


def test_newcomers_whom_nobody_hands_anything_over_do_not_begin_anew(tmp_path: Path) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a"])
        crowd.start("a", size=1, groups=[(1, 1)], die_at=30)
        for name in "bc":
            crowd.start(name, joins=True, size=2, groups=[(2, 2)])
        assert crowd.ended("a") == -signal.SIGKILL
        for name in "bc":
            until(tmp_path / f"{name}-parked")
        crowd.door.name(["b", "c"])
        for name in "bc":
            assert crowd.ended(name) == 1
            assert not crowd.told(name, "step")


@pytest.mark.parametrize("sync", ["sma", "local", "pair"])
def test_replicas_that_train_apart_outlast_a_loss_too(tmp_path: Path, sync: str) -> None:
    with workers(tmp_path) as crowd:
        crowd.door.name(["a", "b", "c"])
        for name in "abc":
            crowd.start(name, size=3, groups=[(1, 3)], sync=sync, die_at=30 if name == "b" else None)
        assert crowd.ended("b") == -signal.SIGKILL
        crowd.door.name(["a", "c"])
        crowd.wait("a", "c")
        assert max(crowd.steps("a", "c")) == STEPS
        assert [sorted(size for size, *_ in crowd.steps("a", "c")[s].values()) for s in (25, STEPS)] == [[3, 3], [2, 2]]
