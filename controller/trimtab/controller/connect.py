"""Which Ray a process works on: one that it is told of, that of its home, the one that runs here, or a new one."""

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_logging
from ray._private.authentication import authentication_token_setup as token_setup
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT as AGENT_PORT
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of Cython
from ray.exceptions import AuthenticationError, RpcError

from trimtab.controller.home import CLUSTER, RAY, WANTS_TOKEN
from trimtab.controller.home import home as default_home

KNOCK_S = 5.0  # that a cluster's address may take to be reached
log = logging.getLogger(__name__)


def connect(address: str | None = None, prints: bool = False, home: Path | None = None, new: bool = True) -> bool:
    """Connect to Ray: at `address` or what the environment tells, else the one on which the controller of `home` was
    last started, else the cluster that runs here, else a new one ("local": a new one in any case).

    With `prints` this process prints what its actors print. False if it was connected before. Raises ConnectionError
    if nothing answers at the address that is named, or wants a token: a job whose cluster cannot be reached must not
    train in one of its own. So too if none runs here and there is to be no `new` one.
    """
    if ray.is_initialized():
        return False
    if prints and "RAY_DEDUP_LOGS" not in os.environ:
        vars(ray_logging)["RAY_DEDUP_LOGS"] = False  # what two ranks print alike is printed twice
    quiet: dict[str, Any] = {"log_to_driver": prints, "logging_level": logging.ERROR}
    told = os.environ.get(CLUSTER) or os.environ.get("RAY_ADDRESS")  # that of this process's job, or the user's
    address = address or told or _last(home or default_home())
    if address != "local":
        try:
            _knock(address or "")
            ray.init(address=address or "auto", **quiet)
            _end_quietly()
            return True
        except (OSError, RpcError) as error:
            if address is not None or not new:
                where = "on this machine" if address in (None, "auto") else f"at {address}"
                why = str(error).partition("\n")[0]
                raise ConnectionError(
                    f"no Ray cluster answers {where} ({why}): start one there with `ray start --head`"
                ) from error
        except AuthenticationError as error:
            raise ConnectionError(f"the Ray cluster at {address} {WANTS_TOKEN}") from error
    if not _is_free(AGENT_PORT):
        log.warning(
            "port %d, where Ray's agent is to listen, is taken, most likely by another Ray: the one that is started "
            "now will not run jobs. If jobs are wanted, start it with `ray start --head "
            "--dashboard-agent-listen-port=…`, and name it with --address",
            AGENT_PORT,
        )
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ray.init(address="local", include_dashboard=True, **quiet)  # with that `python` of a job is the one of this process
    _end_quietly()
    _hide_token()
    return True


def _end_quietly() -> None:
    """On SIGTERM, with which a job is stopped, Ray's core prints its stack as after a crash before Python's handler is
    called; set once more, that is called alone."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _hide_token() -> None:
    """From other accounts: Ray lets all of them read the token that it makes, and who has it runs code as this one."""
    with suppress(OSError):  # none was made, or it is another's
        Path("~/.ray/auth_token").expanduser().chmod(0o600)


def _last(home: Path) -> str | None:
    """The cluster on which the controller of `home` was last started, if it is still there."""
    with suppress(OSError):
        address = (home / RAY).read_text().strip()
        if _listens(address):
            _show_token()
            return address
    return None


def _knock(address: str) -> None:
    """Raise OSError if nobody listens there, AuthenticationError if a token is wanted; Ray itself tries long."""
    if not _listens(address):
        return
    try:
        GcsClient(address=address)
    except AuthenticationError:
        if not _show_token():
            raise
        GcsClient(address=address)


def _show_token() -> bool:
    """Show Ray's token if there is one and nothing else is said, as Ray does where it finds a cluster by itself."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # as silently as there
    return bool(token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def _listens(address: str) -> bool:
    """Raise OSError if nobody does; False of an address that is not host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        return False
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0
