"""Pair averaging: the rule by hand, models that are whole, the bound on staleness, and ranks that are gone."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from threads import Meeting, ThreadRanks, in_threads

from trimtab.controller.sync import STRATEGIES
from trimtab.workers.peers import GroupLost
from trimtab.workers.sync import published
from trimtab.workers.sync.pair import PairAveraging, draw
from trimtab.workers.sync.published import Puller, Server, Shelf

DEFAULTS = {option.name: option.default for option in STRATEGIES["pair"]}


def make(ranks: ThreadRanks, w: list[float], buffers: list[float], **options: Any) -> Any:
    """A strategy over one parameter, `.w`, and one buffer, `.b`; `.options` may be changed."""
    parameter, buffer = torch.nn.Parameter(torch.tensor(w)), torch.tensor(buffers)
    values = DEFAULTS | options
    strategy: Any = PairAveraging([parameter], [buffer], ranks, values.__getitem__)
    strategy.w, strategy.b, strategy.options = parameter, buffer, values
    return strategy


def advance(strategy: Any, number: int, move: float) -> float:
    strategy.before_update(number)
    with torch.no_grad():
        strategy.w.add_(move)
    strategy.after_update(number)
    return float(strategy.w.detach()[0])


def finish(strategy: Any, ranks: ThreadRanks) -> None:
    ranks.gather(None)  # all have made their last step
    strategy.close()


def test_two_ranks_by_hand() -> None:
    def train(ranks: ThreadRanks) -> list[tuple[float, float]]:
        strategy = make(ranks, [2.0 * ranks.rank], [8.0 * ranks.rank], pair_staleness=0)  # in step
        seen = []
        for number in (1, 2):
            strategy.before_update(number)
            ranks.gather(None)  # neither publishes before the other has pulled
            with torch.no_grad():
                strategy.w.add_(1.0 + ranks.rank)
            strategy.after_update(number)
            seen.append((strategy.w.item(), strategy.b.item()))
        finish(strategy, ranks)
        return seen

    # (0 + 2) / 2 + 1 and + 2; then (2 + 3) / 2 + 1 and + 2
    assert in_threads(2, train) == [[(2.0, 4.0), (3.5, 4.0)], [(3.0, 4.0), (4.5, 4.0)]]


def test_replicas_come_together() -> None:
    def train(ranks: ThreadRanks) -> float:
        strategy = make(ranks, [float(ranks.rank)], [0.0])
        for number in range(1, 60):
            last = advance(strategy, number, 0.0)
        finish(strategy, ranks)
        return last

    results = in_threads(4, train)
    assert max(results) - min(results) < 1e-3
    assert 0 < min(results) < 3


def test_peers_are_drawn_uniformly_and_the_same_again() -> None:
    drawn = [draw(2, 5, step) for step in range(4000)]
    assert drawn == [draw(2, 5, step) for step in range(4000)]
    assert drawn[:100] != [draw(1, 5, step) for step in range(100)]
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 3, 4}
    assert all(900 < count < 1100 for count in counts.values())
    assert draw(0, 2, 1) == 1
    assert draw(1, 2, 1) == 0


@pytest.mark.parametrize("bound", [1, 3])
def test_nobody_waits_for_a_slow_rank_until_it_is_too_far_behind(bound: int) -> None:
    made = [0, 0]  # updates
    halted = []  # how many the fast rank had made when it came no further

    def train(ranks: ThreadRanks) -> list[float]:
        strategy = make(ranks, [0.0] * 2000, [0.0], pair_staleness=bound)
        stale = []
        for number in range(1, 21):
            strategy.before_update(number)
            stale.append(strategy.measured()["staleness"])
            if ranks.rank and number in (1, 8):
                wait_for(lambda: made[0] >= number + bound)  # noqa: B023
                time.sleep(0.03)
                halted.append(made[0])
            strategy.after_update(number)
            made[ranks.rank] = number
        finish(strategy, ranks)
        return stale

    fast, _ = in_threads(2, train)
    assert halted == [bound + 1, bound + 8]
    assert fast[: bound + 1] == list(range(bound + 1))
    assert max(fast) == bound


def test_the_bound_is_live() -> None:
    made = [0, 0]

    def train(ranks: ThreadRanks) -> list[float]:
        strategy = make(ranks, [0.0], [0.0], pair_staleness=5)
        stale = []
        for number in range(1, 31):
            strategy.before_update(number)
            stale.append(strategy.measured()["staleness"])
            if ranks.rank:
                wait_for(lambda: made[0] >= min(30, number + (5 if number < 9 else 2)))  # noqa: B023
            if number == 14:
                strategy.options["pair_staleness"] = 2
            strategy.after_update(number)
            made[ranks.rank] = number
        finish(strategy, ranks)
        return stale

    fast, _ = in_threads(2, train)
    assert max(fast[:14]) == 5
    assert max(fast[14:]) == 2


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_rank_alone_trains_on_its_own() -> None:
    (ranks,) = Meeting(1).ranks()
    strategy = make(ranks, [1.0], [1.0])
    assert [advance(strategy, number, 0.5) for number in (1, 2)] == [1.5, 2.0]
    assert strategy.measured() == {}
    assert [tensor.item() for tensor in strategy.consensus()] == [2.0, 1.0]
    strategy.close()


def test_the_consensus_is_the_mean_and_leaves_the_replicas() -> None:
    def train(ranks: ThreadRanks) -> tuple[list[float], float]:
        strategy = make(ranks, [2.0 * ranks.rank], [4.0 * ranks.rank])
        found = [tensor.item() for tensor in strategy.consensus()], strategy.w.item()
        finish(strategy, ranks)
        return found

    assert in_threads(2, train) == [([1.0, 2.0], 0.0), ([1.0, 2.0], 2.0)]


def test_a_replica_that_is_loaded_before_the_first_step_is_what_peers_see() -> None:
    def train(ranks: ThreadRanks) -> float:
        strategy = make(ranks, [-100.0], [0.0])
        with torch.no_grad():
            strategy.w.fill_(3.0)
        strategy.load({})
        last = advance(strategy, 1, 0.0)
        finish(strategy, ranks)
        return last

    assert in_threads(2, train) == [3.0, 3.0]


@contextmanager
def served(values: list[float]) -> Iterator[tuple[Shelf, Server, Puller]]:
    """One rank's shelf behind its server, and a peer that pulls from it."""
    shelf = Shelf()
    server = Server("127.0.0.1", shelf, 5.0)
    puller = Puller([server.place], [torch.tensor(values)], 5.0)
    try:
        yield shelf, server, puller
    finally:
        puller.close()
        server.close()


def test_a_dead_peer_is_told_at_once() -> None:
    with served([1.0]) as (shelf, server, puller):
        shelf.publish([torch.tensor([1.0])], 1)
        puller.ask(0, 0)
        assert puller.take()[0] == 1
        puller.ask(0, 2)  # waits for a second update
        threading.Timer(0.02, server.close).start()
        begin = time.monotonic()
        with pytest.raises(GroupLost, match="could not be pulled"):
            puller.take()
        assert time.monotonic() - begin < 1
        puller.ask(0, 0)  # the connection is closed for good
        with pytest.raises(GroupLost):
            puller.take()


def test_a_peer_that_was_never_there_and_one_that_is_silent_are_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        place = (*deaf.getsockname(), b"s" * 16)
        puller = Puller([place], [torch.zeros(1)], 0.05)
        puller.ask(0, 0)
        with pytest.raises(GroupLost, match="timed out"):
            puller.take()
        puller.close()
    puller = Puller([place], [torch.zeros(1)], 0.05)
    puller.ask(0, 0)
    with pytest.raises(GroupLost, match="refused"):
        puller.take()
    puller.close()


def test_a_stranger_gets_nothing() -> None:
    with served([1.0]) as (shelf, server, puller):
        shelf.publish([torch.tensor([1.0])], 1)
        with socket.create_connection(server.place[:2]) as stranger:
            stranger.sendall(b"x" * 16 + struct.pack("<q", 0))
            stranger.settimeout(5)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        puller.ask(0, 0)
        assert puller.take()[1].tolist() == [1.0]


def test_a_pulled_model_is_never_half_old_half_new() -> None:
    sizes = [300_000, 7, 200_000]  # more than the sockets hold
    with served([0.0] * sum(sizes)) as (shelf, _, puller):
        shelf.publish([torch.zeros(size) for size in sizes], 0)
        stop = threading.Event()

        def publish() -> None:
            updates = 0
            while not stop.is_set():
                updates += 1
                shelf.publish([torch.full((size,), float(updates)) for size in sizes], updates)

        thread = threading.Thread(target=publish)
        thread.start()
        seen = []
        for _ in range(30):
            puller.ask(0, 0)
            updates, model = puller.take()
            assert bool((model == updates).all())
            seen.append(updates)
        stop.set()
        thread.join()
        assert seen == sorted(seen)
        assert seen[-1] > seen[0]
        assert len(shelf._free) <= 2  # the memory is used again


def test_close_ends_all_threads_quickly() -> None:
    def alive() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("sync-")}

    def train(ranks: ThreadRanks) -> float:
        strategy = make(ranks, [0.0], [0.0], pair_staleness=1)
        for number in range(1, 6):
            advance(strategy, number, 1.0)
        assert {"sync-accept", "sync-pull"} <= alive()
        ranks.gather(None)
        begin = time.monotonic()
        strategy.close()  # a pull asked for ahead may be waiting
        return time.monotonic() - begin

    assert max(in_threads(3, train)) < 0.5
    assert alive() == set()


def test_models_keep_their_type() -> None:
    tensors = [torch.tensor([1.5, 2.5], dtype=torch.bfloat16), torch.tensor([3.0], dtype=torch.bfloat16)]
    assert published.host_buffer(tensors).dtype == torch.bfloat16
    shelf = Shelf()
    server = Server("127.0.0.1", shelf, 5.0)
    puller = Puller([server.place], tensors, 5.0)
    shelf.publish(tensors, 7)
    puller.ask(0, 0)
    updates, model = puller.take()
    assert (updates, model.tolist()) == (7, [1.5, 2.5, 3.0])
    puller.close()
    server.close()
