"""How controller, API and cluster fare: gathered in one place, which REST, the page and Prometheus read."""

import asyncio
import logging
import os
import platform
import socket
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TypeVar

from trimtab.api.answers import ApiHealth, Software, SystemHealth
from trimtab.api.context import Context
from trimtab.controller.errors import ControllerUnreachable

PATIENCE_S = 3.0  # less than a scrape's usual ten seconds

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


async def gather(context: Context) -> SystemHealth:
    """Ask everybody at once, and wait for nobody long."""
    problems: list[str] = []
    answered, nodes = await asyncio.gather(
        _within("the controller", context.gateway.health(), problems),
        _within("Ray", context.gateway.nodes(), problems),
    )
    controller, home = answered or (None, None)
    return SystemHealth(
        time=datetime.now(UTC),
        controller=controller,
        home=home,
        api=ApiHealth(
            host=socket.gethostname(),
            pid=os.getpid(),
            uptime_s=time.monotonic() - context.started,
            stream_clients=context.hub.clients,
        ),
        nodes=None if nodes is None else list(nodes),
        software=_software(),
        problems=problems,
    )


async def _within(who: str, asked: Awaitable[Answer], problems: list[str]) -> Answer | None:
    try:
        return await asyncio.wait_for(asked, PATIENCE_S)
    except ControllerUnreachable as error:
        problems.append(str(error))
    except TimeoutError:
        problems.append(f"{who} did not answer within {PATIENCE_S:.0f} s")
    except Exception as error:  # of a cluster that goes down, say: the rest is to be seen all the same
        log.warning("%s cannot be asked for its health", who, exc_info=error)
        problems.append(f"{who} cannot be asked: {type(error).__name__}")
    return None


@cache
def _software() -> Software:
    return Software(
        trimtab=version("trimtab"), ray=version("ray"), torch=version("torch"), python=platform.python_version()
    )
