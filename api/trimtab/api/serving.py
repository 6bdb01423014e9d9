"""Serving the app with uvicorn: the port is taken first, the event streams are closed first."""

import errno
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trimtab.api.stream import Hub

GRACE_S = 3  # for answers under way when the server is told to end


class CannotListen(Exception):
    """The address is taken, or not ours to take."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any. An earlier server's dying connections do not stand in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = f"it is taken; choose another with --port, or stop what listens there (lsof -i :{port})"
        raise CannotListen(f"cannot listen on {host}, port {port}: {why if taken else error.strerror}") from None
    # Connections inherit it. asyncio sets it only where the protocol was named, and an answer in two pieces, head and
    # body, would otherwise wait 40 ms for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class Server(uvicorn.Server):
    """A uvicorn that ends although streams are open: by itself it would wait for them for ever."""

    def __init__(self, app: FastAPI, hub: Hub) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # and h11: the same whatever else is installed
                http="h11",
                access_log=False,
                log_config=None,
                log_level="warning",  # its steps of starting and ending would stand in the terminal of each run
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._hub = hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """End on a signal, with exit code 0; uvicorn would raise the signal again when all is closed."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._hub.close()
        await super().shutdown(sockets)
