"""What ranks tell one another beside gradients: a number each step, and now and then an object, on the host's network.

The numbers go over sockets that the kernel alone serves, so that nothing waits for a thread to be given a core.
"""

import errno
import hmac
import secrets
import socket
import struct
from collections.abc import Sequence
from typing import TypeVar

from torch._C._distributed_c10d import Store

from trimtab.workers.meeting import GroupLost, Meeting

__all__ = ["TIMEOUT_S", "GroupLost", "Peers", "address_towards"]

T = TypeVar("T")

TIMEOUT_S = 120.0  # how long a rank that is silent is waited for, here and in collectives
FAN_OUT = 8  # a round reaches 8 times as many ranks; 7 messages each way a step at most
_NUMBER = struct.Struct("<q")
_HELLO = struct.Struct("<16sq")  # the secret of the rank that is called, the caller's rank
_TIMEVAL = struct.Struct("@ll")


def rounds(ranks: int) -> int:
    """How many rounds bring every rank's number to every other."""
    count, reach = 0, 1
    while reach < ranks:
        count, reach = count + 1, reach * FAN_OUT
    return count


def distances(ranks: int) -> list[list[int]]:
    """By round: how far ahead each rank sends. After round i it has heard of the FAN_OUT^(i+1) ranks up to itself."""
    steps = [FAN_OUT**i for i in range(rounds(ranks))]
    return [[j * step for j in range(1, FAN_OUT) if j * step < ranks] for step in steps]


class Peers:
    """One rank's lines to the others. All ranks must make theirs together, with a store that only they use.

    A message of 8 bytes costs a call into the kernel on either side. Sends never wait: a rank that had a thousand
    unread messages would have left every collective long before.
    """

    def __init__(self, store: Store, rank: int, ranks: int, host: str, timeout_s: float = TIMEOUT_S) -> None:
        """`host`: this machine's address for the other ranks. Raises GroupLost if one does not come."""
        self._meeting = Meeting(store, rank, ranks, timeout_s)
        self._distances = distances(ranks)
        self.rounds = len(self._distances)
        secret = secrets.token_bytes(16)
        try:
            with socket.create_server((host, 0), family=_family(host), backlog=ranks) as server:
                places = self._meeting.gather((host, int(server.getsockname()[1]), secret))
                ahead = {d: (rank + d) % ranks for distance in self._distances for d in distance}
                self._ahead = {d: _call(places[to], rank, timeout_s) for d, to in ahead.items()}
                callers = _answer(server, {(rank - d) % ranks for d in ahead}, secret, timeout_s)
                self._behind = {d: callers[(rank - d) % ranks] for d in ahead}
        except OSError as error:
            raise GroupLost(f"ranks do not reach one another (this one at {host}): {error}") from error
        wait = _TIMEVAL.pack(int(timeout_s), 0)
        for sock in self._sockets():
            sock.settimeout(None)  # the kernel's own time-out saves a poll() a message
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._meeting.lost = self.lost

    def lost(self) -> bool:
        """Has one of the ranks at the other ends closed its own?"""
        return any(map(_closed, self._sockets()))

    def send(self, index: int, number: int) -> None:
        """Give the ranks of round `index` a number."""
        message = _NUMBER.pack(number)
        try:
            for distance in self._distances[index]:
                self._ahead[distance].send(message)
        except OSError as error:
            raise GroupLost(f"Connection closed by peer {distance} ranks ahead: {error}") from error

    def receive(self, index: int) -> list[int]:
        """What the ranks of round `index` have sent, waiting for each."""
        numbers = []
        for distance in self._distances[index]:
            try:
                message = self._behind[distance].recv(_NUMBER.size, socket.MSG_WAITALL)
            except OSError as error:
                reason = "silent for too long" if error.errno == errno.EAGAIN else str(error)
                raise GroupLost(f"Connection closed by peer {distance} ranks behind: {reason}") from error
            if len(message) < _NUMBER.size:
                raise GroupLost(f"Connection closed by peer {distance} ranks behind")
            numbers.append(_NUMBER.unpack(message)[0])
        return numbers

    def broadcast(self, value: T, source: int = 0) -> T:
        """The value of the rank `source`, on all ranks."""
        return self._meeting.broadcast(value, source)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        return self._meeting.gather(value)

    def barrier(self) -> None:
        self._meeting.barrier()

    def close(self) -> None:
        """Ranks that wait for this one learn at once that it is gone."""
        for sock in self._sockets():
            sock.close()

    def _sockets(self) -> Sequence[socket.socket]:
        return [*self._ahead.values(), *self._behind.values()]


def _closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def address_towards(host: str, port: int) -> str:
    """This machine's address on the network over which `host` is reached. Sends nothing."""
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.connect(place)
        return str(sock.getsockname()[0])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _call(place: tuple[str, int, bytes], rank: int, timeout_s: float) -> socket.socket:
    host, port, secret = place
    sock = socket.create_connection((host, port), timeout=timeout_s)
    sock.sendall(_HELLO.pack(secret, rank))
    return sock


def _answer(server: socket.socket, expected: set[int], secret: bytes, timeout_s: float) -> dict[int, socket.socket]:
    """The callers that are expected and know the secret; whoever else calls is hung up on."""
    server.settimeout(timeout_s)
    callers: dict[int, socket.socket] = {}
    while expected - set(callers):
        sock, _ = server.accept()
        sock.settimeout(min(5.0, timeout_s))
        try:
            told, rank = _HELLO.unpack(sock.recv(_HELLO.size, socket.MSG_WAITALL))
        except (OSError, struct.error):
            sock.close()
            continue
        if rank in expected and rank not in callers and hmac.compare_digest(told, secret):
            callers[rank] = sock
        else:
            sock.close()
    return callers
