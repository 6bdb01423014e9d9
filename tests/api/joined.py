"""A cluster that was there before: `ray start --head` with its dashboard and Ray's own token, joined by `trimtab up
--address`. What needs a dashboard has one of these, for the cluster that other tests share has none."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.api import Client


@dataclass(frozen=True)
class Cluster:
    """A Ray that somebody has started, and the API that has joined it."""

    address: str
    dashboard: str
    home: Path
    environment: dict[str, str]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = self.environment | environment
        return subprocess.run(command, env=own, capture_output=True, text=True, timeout=150, check=False)

    def trimtab(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(*TRIMTAB, *arguments, **environment)

    def client(self) -> Client:
        return Client(home=self.home)


TRIMTAB = (sys.executable, "-c", "from trimtab.api.cli import main; main()")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


@contextmanager
def running(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def joined(home: Path) -> Iterator[Cluster]:
    """Ray is started and joined, with the controller's home in `home`; both end with the block."""
    ports = [free_port() for _ in range(3)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "TRIMTAB_HOME": str(home)}
    environment |= {"NO_COLOR": "1"}
    address, dashboard = (f"127.0.0.1:{port}" for port in ports[:2])
    with ExitStack() as ends:
        temp = ends.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True))
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={temp}"]
        start += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=4", "--node-ip-address=127.0.0.1"]
        start += [f"--dashboard-agent-listen-port={ports[2]}"]  # the usual one may be another cluster's
        ends.enter_context(running([*start, "--include-dashboard=true", "--disable-usage-stats"], environment))
        until(lambda: listens(ports[0]) and listens(ports[1]))
        up = [*TRIMTAB, "up", "--address", address, "--port", "0", "--json"]
        process = ends.enter_context(running(up, environment))
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "{\n", first + process.stdout.read()
        until(lambda: (home / "client.json").exists())
        yield Cluster(address, f"http://{dashboard}", home, environment)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
