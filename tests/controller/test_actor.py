"""The controller's actor: where its journal cannot be opened, and where Ray loses a call."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from trimtab.controller import actor
from trimtab.controller.events import RunSpec
from trimtab.controller.home import JOURNAL
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.journal import JournalUnavailable, SqliteJournal
from trimtab.controller.journal.sqlite import MIGRATIONS

BATCH = HyperParameter(name="batch_size", kind="integer", default=32, min=1, max=64)
SPEC = RunSpec(name="r", world_size=1, parameters=(BATCH,), micro_batch=32, max_micro_batch=32)
APART = "apart"  # a namespace: the controller that other tests share stays as it is


@pytest.fixture
def home(ray_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # noqa: ARG001
    monkeypatch.setattr(actor, "NAMESPACE", APART)
    SqliteJournal(tmp_path / JOURNAL).close()
    yield tmp_path
    for name in (actor.CONTROLLER, actor.READER):
        ray.kill(ray.get_actor(name, namespace=APART))


def set_version(home: Path, version: int) -> None:
    with closing(sqlite3.connect(home / JOURNAL)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


def test_a_journal_that_cannot_be_opened_is_told_and_waited_for_after_a_crash(home: Path) -> None:
    set_version(home, 99)
    with pytest.raises(JournalUnavailable, match=r"written by a newer Trimtab.*upgrade Trimtab"):
        actor.start(home)
    set_version(home, len(MIGRATIONS))
    actor.start(home)

    controller: Any = ray.get_actor(actor.CONTROLLER, namespace=APART)
    killed = ray.get(controller.pid.remote())
    set_version(home, 99)
    (home / JOURNAL).chmod(0o640)
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 60
    while (home / JOURNAL).stat().st_mode & 0o777 != 0o600:  # Ray's new one has looked at it
        assert time.monotonic() < until
        time.sleep(0.05)
    set_version(home, len(MIGRATIONS))
    while True:
        try:
            assert ray.get(controller.pid.remote(), timeout=30) != killed
            break
        except RayActorError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_controller_that_was_replaced_ends_for_good(home: Path) -> None:
    actor.start(home)
    controller: Any = ray.get_actor(actor.CONTROLLER, namespace=APART)
    with closing(SqliteJournal(home / JOURNAL)) as journal:
        term = journal.take_over()
        with pytest.raises(ActorDiedError):
            ray.get(controller.call.remote("create_run", "r", SPEC))
        until = time.monotonic() + 30
        while actor.running():
            assert time.monotonic() < until
            time.sleep(0.05)
        journal.check(term)  # nobody took over in turn
    actor.start(home)  # as somebody may, who knows what they do


def test_a_call_that_ray_loses_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "INSIST_S", 0.0)
    answers = iter([ActorUnavailableError("The actor is restarting.", None), RayActorError(), None])
    calls = []

    def call() -> None:
        calls.append(answer := next(answers))
        if answer is not None:
            raise answer

    actor.insist(call)
    assert len(calls) == 3
