"""Checkpoints in an object store: fsspec's own in memory, which has no rename either."""

import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stored import alone, check, save

from trimtab.workers.checkpoint import CheckpointError, CheckpointStore
from trimtab.workers.checkpoints import beside, open_checkpoints, placed
from trimtab.workers.objects import ObjectStore


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4()}"


def test_the_last_are_kept_and_found_again(url: str) -> None:
    store = ObjectStore(url, keep=2)
    assert store.latest() is None
    for step in (5, 10, 15):
        save(store, step)
    again = ObjectStore(url + "/")
    assert (again.steps(), check(again)) == ([10, 15], 15)
    assert again.find(5) is None
    assert again.load(str(again.find(10)), 3)[1] is None
    again.go_back(10, 7, 64)
    assert (again.steps(), again.branch(str(again.find(10)))) == ([10], {"rolled_back": 7, "skipped": 64})
    save(again, 15)
    assert again.branch(str(again.find(15))) == {}
    again.clear()
    assert ObjectStore(url).steps() == []


def test_ranks_write_together(url: str) -> None:
    barrier, paths = Barrier(3, timeout=20), {}

    def work(rank: int) -> None:
        store = ObjectStore(url)
        for _ in range(2):  # the second time it is there already
            paths[rank] = store.save(4, {"step": 4} if rank == 0 else None, rank, 3, lambda: void(barrier.wait()))

    threads = [Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = set(paths.values())
    assert all(ObjectStore(url).load(path, rank)[1] is not None for rank in range(3))


def void(_: object) -> None:
    pass


def test_a_crash_at_any_call_leaves_a_whole_checkpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, calls, crash_at = ObjectStore(url, keep=1), 0, 0

    class Crash(Exception):
        pass

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise Crash
            return function(*args, **options)

        return call

    save(store, 1)
    for name in ("pipe_file", "put_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, counted(getattr(MemoryFileSystem, name)))
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
    assert crash_at > 6


def test_another_run_s_checkpoint_is_taken_in(url: str) -> None:
    theirs, mine = ObjectStore(placed(url, "r")), ObjectStore(beside(placed(url, "r"), "branch"))
    assert mine.place == f"{url}/branch"
    save(theirs, 300)
    theirs.go_back(300, 7, 64)
    path = mine.adopt(theirs.place, 300)
    theirs.clear()
    assert check(mine) == 300
    assert mine.branch(path) == {"rolled_back": 7, "skipped": 64}
    with pytest.raises(CheckpointError, match="step-00000300 cannot be read whole"):
        mine.adopt(theirs.place, 300)


def test_a_state_that_could_not_be_loaded_is_refused_when_saved(url: str) -> None:
    store = ObjectStore(url)
    save(store, 1)
    with pytest.raises(CheckpointError, match=r"step-00000002/shared.pt holds pathlib\.\w*Path"):
        store.save(2, {"path": Path()}, 0, 1, alone)
    assert check(store) == 1


def test_where_checkpoints_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert placed("runs", "r") == placed(f"file://{tmp_path}/runs", "r") == str(tmp_path / "runs" / "r")
    assert beside(placed(Path("runs"), "r"), "b") == str(tmp_path / "runs" / "b")
    assert placed("s3://bucket/runs/", "r") == "s3://bucket/runs/r"
    store = open_checkpoints(placed("runs", "r"))
    assert isinstance(store, CheckpointStore)
    assert (store.place, store.steps()) == (str(tmp_path / "runs" / "r"), [])
    assert isinstance(open_checkpoints("memory://runs/r"), ObjectStore)
    with pytest.raises(CheckpointError, match="cannot be kept at nix://x: Protocol not known: nix"):
        open_checkpoints("nix://x")
