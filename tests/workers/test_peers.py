"""Numbers between ranks: every rank hears of every other, strangers are hung up on, a lost rank is told at once."""

import random
import socket
import threading

import pytest

from trimtab.workers import peers
from trimtab.workers.agreement import Agreement
from trimtab.workers.peers import GroupLost, address_towards, distances, rounds


class Post:
    """All ranks of a run in one process: what is sent is there at once."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.boxes: dict[tuple[int, int], list[int]] = {}

    def peers(self, rank: int) -> "Fake":
        return Fake(self, rank)


class Fake(peers.Peers):
    def __init__(self, post: Post, rank: int) -> None:
        self._post, self._rank = post, rank
        self._distances = distances(post.ranks)
        self.rounds = len(self._distances)

    def send(self, index: int, number: int) -> None:
        for distance in self._distances[index]:
            to = (self._rank + distance) % self._post.ranks
            self._post.boxes.setdefault((self._rank, to), []).append(number)

    def receive(self, index: int) -> list[int]:
        ranks = [(self._rank - distance) % self._post.ranks for distance in self._distances[index]]
        return [self._post.boxes[(rank, self._rank)].pop(0) for rank in ranks]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 8, 9, 16, 63, 64, 65, 100, 513])
def test_after_the_rounds_every_rank_has_heard_of_every_other(ranks: int) -> None:
    heard = [{rank} for rank in range(ranks)]
    for distance in distances(ranks):
        assert len(distance) < peers.FAN_OUT
        heard = [set.union(heard[r], *(heard[(r - d) % ranks] for d in distance)) for r in range(ranks)]
    assert all(len(known) == ranks for known in heard)
    assert rounds(ranks) == len(distances(ranks))


@pytest.mark.parametrize("ranks", [2, 8, 9, 20, 70])
def test_ranks_agree_at_every_step_and_lag_by_the_rounds(ranks: int) -> None:
    chance = random.Random(ranks)
    post = Post(ranks)
    agreements = [Agreement(post.peers(rank)) for rank in range(ranks)]
    held = [0] * ranks
    lowest = [0]
    for _ in range(60):
        ruled = {agreement.result() for agreement in agreements}
        assert len(ruled) == 1
        assert ruled.pop() in lowest[-2 * rounds(ranks) - 1 :]
        held = [number + (chance.random() < 0.5) for number in held]
        lowest.append(min(held))
        for agreement, number in zip(agreements, held, strict=True):
            agreement.step(number)


def test_a_stranger_is_hung_up_on() -> None:
    secret = b"s" * 16
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answered: dict[int, socket.socket] = {}
        thread = threading.Thread(target=lambda: answered.update(peers._answer(server, {3}, secret, 10.0)))
        thread.start()
        for hello in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            peers._HELLO.pack(b"x" * 16, 3),
            peers._HELLO.pack(secret, 4),
        ):
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.sendall(hello)
                caller.settimeout(10)
                with pytest.raises((ConnectionResetError, AssertionError)):
                    assert caller.recv(1) != b""
        with peers._call(("127.0.0.1", port, secret), 3, 10.0):
            thread.join(10)
            assert set(answered) == {3}
            answered[3].close()


def pair() -> tuple[peers.Peers, socket.socket]:
    """One rank of two, and the other's end of both of its sockets."""
    ours, theirs = socket.socketpair()
    one = Fake(Post(2), 0)
    one._ahead = one._behind = {1: ours}
    return one, theirs


def test_a_number_arrives_and_a_rank_that_has_gone_is_told() -> None:
    one, other = pair()
    other.sendall(peers._NUMBER.pack(-5))
    assert peers.Peers.receive(one, 0) == [-5]
    other.close()
    with pytest.raises(GroupLost, match="Connection closed by peer"):
        peers.Peers.receive(one, 0)
    with pytest.raises(GroupLost, match="Connection closed by peer"):
        peers.Peers.send(one, 0, 1)
    one.close()


def test_the_own_address_is_one_of_this_machine() -> None:
    assert address_towards("127.0.0.1", 1) == "127.0.0.1"
