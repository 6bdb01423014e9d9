"""Models that ranks leave for one another: each serves the newest that it has published, others pull it, over TCP.

A pull asks for a model of at least so many updates and is answered as soon as there is one:

    caller:  the secret of the rank that is called, once; then for each pull the least number of updates
    server:  the number of updates, then the model, as it lies in memory
"""

import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from trimtab.workers.peers import TIMEOUT_S, GroupLost
from trimtab.workers.sync.strategy import flatten

__all__ = ["Place", "Puller", "Server", "Shelf"]

Place = tuple[str, int, bytes]  # host, port and secret

HELLO_S = 5.0  # how long a caller may take to say who it is
CLOSE_S = 1.0  # how long an ending thread is waited for
_SECRET = 16  # [bytes]
_UPDATES = struct.Struct("<q")


@dataclass(slots=True, eq=False)
class _Model:
    flat: Tensor  # (elements,), on the host
    updates: int
    arrived: Callable[[], object]  # returns when the device has written it
    readers: int = 0


class Shelf:
    """The newest model of this rank. Whoever reads an older one keeps that whole; then its memory is used again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: _Model | None = None
        self._free: list[Tensor] = []
        self._closed = False

    @torch.no_grad()
    def publish(self, tensors: Sequence[Tensor], updates: int) -> None:
        """Copies outside the lock; waits neither for readers nor for a device."""
        with self._changed:
            flat = self._free.pop() if self._free else None
        if flat is None:
            flat = host_buffer(tensors)
        device = tensors[0].device
        if device.type == "cpu":
            torch.cat([tensor.reshape(-1) for tensor in tensors], out=flat)
        else:
            flat.copy_(flatten(tensors), non_blocking=True)
        model = _Model(flat, updates, mark(device))
        with self._changed:
            last, self._newest = self._newest, model
            if last is not None and not last.readers:
                self._free.append(last.flat)
            self._changed.notify_all()

    @contextmanager
    def newest(self, least: int) -> Iterator[_Model]:
        """The newest model, once that has had `least` updates. Raises ConnectionAbortedError when the shelf closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._newest and self._newest.updates >= least))
            model = self._newest
            if self._closed or model is None:
                raise ConnectionAbortedError("nothing is published here any more")
            model.readers += 1
        try:
            model.arrived()
            yield model
        finally:
            with self._changed:
                model.readers -= 1
                if not model.readers and model is not self._newest:
                    self._free.append(model.flat)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Server:
    """Answers pulls from a shelf, a thread for each caller; whoever does not know the secret is hung up on."""

    def __init__(self, host: str, shelf: Shelf, timeout_s: float = TIMEOUT_S) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self._secret = secrets.token_bytes(_SECRET)
        self.place: Place = (host, self._listener.getsockname()[1], self._secret)
        self._shelf = shelf
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._callers: dict[socket.socket, threading.Thread] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="sync-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Callers learn at once that this rank is gone."""
        self._shelf.close()
        with self._lock:
            self._closed = True
            callers = dict(self._callers)
        for sock in (self._listener, *callers):
            hang_up(sock)
        for thread in (self._thread, *callers.values()):
            thread.join(CLOSE_S)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(caller,), name="sync-serve", daemon=True)
            with self._lock:
                if self._closed:
                    caller.close()
                    return
                self._callers[caller] = thread
                thread.start()

    def _serve(self, caller: socket.socket) -> None:
        with suppress(OSError):
            caller.settimeout(HELLO_S)
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hmac.compare_digest(receive(caller, bytearray(_SECRET)), self._secret):
                while True:
                    caller.settimeout(None)  # the next pull comes whenever it comes
                    (least,) = _UPDATES.unpack(receive(caller, bytearray(_UPDATES.size)))
                    caller.settimeout(self._timeout_s)
                    with self._shelf.newest(least) as model:
                        caller.sendall(_UPDATES.pack(model.updates))
                        caller.sendall(memory(model.flat))
        with self._lock:
            self._callers.pop(caller, None)
        caller.close()


class Puller:
    """Pulls models from their ranks' servers, one at a time, in a thread of its own, while the rank goes on."""

    def __init__(self, places: Sequence[Place], like: Sequence[Tensor], timeout_s: float = TIMEOUT_S) -> None:
        """`places` by rank; `like`: tensors of the size, type and device of those that are published."""
        self._places = places
        self._buffer = host_buffer(like)
        self._device = like[0].device
        self._timeout_s = timeout_s
        self._read: Callable[[], object] = mark(torch.device("cpu"))  # returns when the buffer may be written again
        self._servers: dict[int, socket.socket] = {}
        self._asked: SimpleQueue[tuple[int, int] | None] = SimpleQueue()  # rank and least number of updates
        self._answers: SimpleQueue[int | OSError] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sync-pull", daemon=True)
        self._thread.start()

    def ask(self, rank: int, least: int) -> None:
        """Begin a pull; `take` must end it before the next begins."""
        self._asked.put((rank, least))

    def take(self) -> tuple[int, Tensor]:
        """How many updates the model that was asked for has had, and the model, (elements,), to be read at once.

        Raises GroupLost if its rank is gone.
        """
        answer = self._answers.get()
        if isinstance(answer, OSError):
            raise GroupLost(f"a peer's model could not be pulled: {answer or type(answer).__name__}") from answer
        model = self._buffer.to(self._device, non_blocking=True)
        self._read = mark(self._device)
        return answer, model

    def close(self) -> None:
        self._closed = True
        self._asked.put(None)
        for server in list(self._servers.values()):
            hang_up(server)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            try:
                self._answers.put(self._pull(*asked))
            except OSError as error:
                self._answers.put(error)
        for server in self._servers.values():
            server.close()

    def _pull(self, rank: int, least: int) -> int:
        self._read()
        if rank not in self._servers:
            self._servers[rank] = self._call(self._places[rank])
        if self._closed:
            raise ConnectionAbortedError("closed here")
        server = self._servers[rank]
        server.sendall(_UPDATES.pack(least))
        (updates,) = _UPDATES.unpack(receive(server, bytearray(_UPDATES.size)))
        receive(server, memory(self._buffer))
        return int(updates)

    def _call(self, place: Place) -> socket.socket:
        host, port, secret = place
        server = socket.create_connection((host, port), timeout=self._timeout_s)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.sendall(secret)
        return server


def host_buffer(tensors: Sequence[Tensor]) -> Tensor:
    """Memory of the host, (elements,), that holds all of `tensors`; a device copies to and from it without waiting."""
    elements = sum(tensor.numel() for tensor in tensors)
    dtype = torch.cat([tensor.detach().new_empty(0) for tensor in tensors]).dtype
    return torch.empty(elements, dtype=dtype, pin_memory=tensors[0].is_cuda)


def mark(device: torch.device) -> Callable[[], object]:
    """A function that returns when the device has done what it was given until now."""
    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def memory(flat: Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def receive(sock: socket.socket, into: bytearray | memoryview) -> bytearray | memoryview:
    """Fill `into`; the socket's time-out is for each part. Raises OSError."""
    view = memoryview(into)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise ConnectionResetError("Connection closed by peer")
        view = view[count:]
    return into


def hang_up(sock: socket.socket) -> None:
    """Close, and wake the threads that wait on the socket, which closing alone would not."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
