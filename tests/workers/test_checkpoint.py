import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from stored import alone, check, save

from trimtab.workers.checkpoint import CheckpointError, CheckpointStore, step_of
from trimtab.workers.randomness import capture, restore


def test_a_checkpoint_holds_model_optimizer_and_randomness(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    store = CheckpointStore(tmp_path)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"samples": 7}}
    np.random.seed(3)
    path = store.save(300, state, 0, 1, alone)
    drawn = torch.rand(2).tolist(), np.random.randn(3).tolist(), random.random()
    assert path.name == "step-00000300"
    shared, own = store.load(path, 0)
    assert own is not None
    restore(own)
    assert (torch.rand(2).tolist(), np.random.randn(3).tolist(), random.random()) == drawn
    optimizer.load_state_dict(shared["optimizer"])
    assert torch.equal(shared["model"]["weight"], model.weight)
    assert shared["progress"] == {"samples": 7}
    assert store.load(path, 1)[1] is None


def test_a_random_state_survives_half_a_pair_of_normals() -> None:
    np.random.randn()
    state = capture()
    drawn = np.random.randn(3).tolist()
    restore(state)
    assert np.random.randn(3).tolist() == drawn


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a" / "b", keep=2)
    for step in (5, 10, 15, 100_000_000):
        save(store, step)
    assert [step_of(path) for path in store.all()] == [15, 100_000_000]
    assert check(CheckpointStore(store.directory)) == 100_000_000


def test_ranks_write_together(tmp_path: Path) -> None:
    barrier, paths = Barrier(3, timeout=20), {}

    def wait() -> None:
        barrier.wait()

    def work(rank: int) -> None:
        store = CheckpointStore(tmp_path)
        paths[rank] = store.save(4, {"step": 4} if rank == 0 else None, rank, 3, wait)

    threads = [Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(paths.values()) == {tmp_path / "step-00000004"}
    assert sorted(file.name for file in paths[0].iterdir()) == [f"rank-{r}-of-3.pt" for r in range(3)] + ["shared.pt"]


@pytest.mark.parametrize("lost", ["shared.pt", "rank-0-of-1.pt"])
def test_an_incomplete_one_is_not_the_latest_and_is_replaced(tmp_path: Path, lost: str) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (save(store, 2) / lost).unlink()
    assert check(store) == 1
    save(store, 2)
    assert check(store) == 2


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2, 3):
        save(store, step)
    store.forget_after(1)
    assert check(store) == 1


def test_an_unwritable_place_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*file/below .*give another directory"):
        CheckpointStore(tmp_path / "file" / "below")


def test_a_state_that_could_not_be_loaded_is_refused_when_saved(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    with pytest.raises(CheckpointError, match=r"pathlib\.\w*Path, which cannot be loaded safely"):
        store.save(2, {"path": tmp_path}, 0, 1, alone)
    assert check(store) == 1


class Crash(Exception):
    pass


def test_a_crash_at_any_call_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, calls, crash_at = CheckpointStore(tmp_path, keep=1), 0, 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise Crash
            return function(*args, **options)

        return call

    save(store, 1)
    for name in ("mkdir", "rename", "fsync", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(torch, "save", counted(torch.save))
    step, completed = 1, 0
    while completed < 2 and crash_at < 100:
        calls, crash_at, step = 0, crash_at + 1, step + 1
        before = check(store)
        try:
            save(store, step)
            completed += 1
        except Crash:
            assert check(store) in (before, step)
    assert completed == 2
    assert crash_at > 10


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    store, chance, step = CheckpointStore(tmp_path, keep=2), random.Random(1), 1
    save(store, step)
    kills = 0
    while kills < 10 or step <= 10:  # where the disk is slow a child may not get far
        kills += 1
        child = os.fork()
        if child == 0:
            while True:
                step += 1
                save(store, step)
        time.sleep(0.02 + chance.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert check(store) >= step
        step = check(store)


def test_another_run_s_checkpoint_is_taken_in_and_outlasts_its_removal(tmp_path: Path) -> None:
    theirs, mine = CheckpointStore(tmp_path / "theirs"), CheckpointStore(tmp_path / "mine")
    save(theirs, 300)
    theirs.go_back(300, 7, 64)
    save(theirs, 400)
    path = mine.adopt(theirs.directory, 300)
    shutil.rmtree(theirs.directory)
    assert check(mine) == 300
    assert mine.branch(path) == {"rolled_back": 7, "skipped": 64}


def test_a_checkpoint_that_is_not_there_whole_is_not_taken_in(tmp_path: Path) -> None:
    theirs, mine = CheckpointStore(tmp_path / "theirs"), CheckpointStore(tmp_path / "mine")
    (save(theirs, 300) / "shared.pt").unlink()
    for step in (200, 300):
        with pytest.raises(CheckpointError, match=f"step-00000{step} cannot be read whole"):
            mine.adopt(theirs.directory, step)
    assert list(mine.directory.iterdir()) == []


def test_checkpoints_are_copied_where_a_disk_cannot_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, copy: str) -> None:
        raise OSError(f"no link from {source} to {copy}")

    monkeypatch.setattr(os, "link", refuse)
    theirs, mine = CheckpointStore(tmp_path / "theirs"), CheckpointStore(tmp_path / "mine")
    save(theirs, 300)
    mine.adopt(theirs.directory, 300)
    assert check(mine) == 300
