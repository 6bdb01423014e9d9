"""Agreement among three ranks whose versions arrive late, doubled and out of order."""

import random
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import answers
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from trimtab.workers.agreement import Agreement
from trimtab.workers.peers import Peers

VERSIONS, STEPS = 30, 400


def test_no_step_mixes_versions(tmp_path: Path) -> None:
    ranks = answers(pushed_and_settled, 3, tmp_path)
    ruled = [rank["ruled"] for rank in ranks]
    held = [rank["held"] for rank in ranks]
    assert ruled[0] == ruled[1] == ruled[2]
    assert ruled[0] == sorted(ruled[0])
    assert len(set(ruled[0])) > 5
    lowest = [0] + [min(step) for step in zip(*held, strict=True)]
    assert ruled[0] == [max(5, *lowest[: i + 1]) for i in range(STEPS)]
    assert all(rank["settled"] == [9, 9, 12, 12] for rank in ranks)


def test_a_rank_alone_agrees_at_once() -> None:
    agreement = Agreement(None)
    assert [agreement.settle(held) for held in (0, 3, 2, 5)] == [0, 3, 3, 5]
    agreement.start(2)
    assert agreement.settle(1) == 2


def receive(held: list[int], rank: int) -> None:
    chance = random.Random(rank)
    arrivals = sorted((v * 0.02 + chance.expovariate(20), v) for v in range(1, VERSIONS + 1) for _ in range(2))
    begin = time.monotonic()
    for due, version in arrivals:
        time.sleep(max(0.0, begin + due - time.monotonic()))
        held[0] = version if chance.random() < 0.3 else max(held[0], version)  # even if it were to go back


def peers(group: dist.ProcessGroup, name: str) -> Peers:
    return Peers(PrefixStore(name, _get_default_store()), group.rank(), group.size(), "127.0.0.1")


def pushes(group: dist.ProcessGroup) -> dict[str, list[int]]:
    agreement, held = Agreement(peers(group, "pushes")), [0]
    ruled, held_at = [], []
    agreement.start(5)
    thread = threading.Thread(target=receive, args=(held, group.rank()), daemon=True)
    thread.start()
    chance = random.Random(100 + group.rank())
    for _ in range(STEPS):
        ruled.append(agreement.result())
        held_at.append(held[0])
        agreement.step(held_at[-1])
        time.sleep(0.002 * chance.random())
        dist.all_reduce(torch.zeros(8))
    thread.join()
    return {"ruled": ruled, "held": held_at}


def settle(group: dist.ProcessGroup, rank: int) -> list[int]:
    agreement = Agreement(peers(group, "settle"))
    agreement.start(1)
    agreement.step(9)
    settled = [agreement.settle(9 + rank), agreement.settle(9)]
    agreement.step(12 + rank)
    return [*settled, agreement.result(), agreement.settle(12)]


def pushed_and_settled(_: Path, rank: int, __: int, group: dist.ProcessGroup) -> dict[str, list[int]]:
    return pushes(group) | {"settled": settle(group, rank)}
