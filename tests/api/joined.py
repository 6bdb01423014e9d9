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
from contextlib import contextmanager
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


def settings(home: Path) -> dict[str, str]:
    """The environment of a cluster of one's own, opened by a token of its own, whose controller's home is `home`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "TRIMTAB_HOME": str(home)}
    return environment | {"NO_COLOR": "1"}


@contextmanager
def head(environment: dict[str, str], ports: Sequence[int], cpus: int = 4) -> Iterator[subprocess.Popen[str]]:
    """`ray start --head`: GCS, dashboard and its agent listen on `ports`. Whoever kills the process kills the node."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as temp:
        options = ["--head", f"--temp-dir={temp}", f"--port={ports[0]}", f"--dashboard-port={ports[1]}"]
        options += ["--include-dashboard=true", "--disable-usage-stats"]
        with running(ray_start(*options, agent=ports[2], cpus=cpus), environment) as process:
            until(lambda: listens(ports[0]) and listens(ports[1]))
            yield process


def ray_start(*options: str, agent: int, cpus: int) -> list[str]:
    """The command for a node of this machine; the usual port of its agent may be another cluster's."""
    own = ["--block", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f"--dashboard-agent-listen-port={agent}"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *own, *options]


@contextmanager
def up(environment: dict[str, str], address: str, home: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """`trimtab up` on a cluster that is there."""
    command = [*TRIMTAB, "up", "--address", address, "--port", str(port), "--json"]
    with running(command, environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "{\n", first + process.stdout.read()
        until(lambda: (home / "client.json").exists())
        yield process


@contextmanager
def joined(home: Path) -> Iterator[Cluster]:
    """Ray is started and joined, with the controller's home in `home`; both end with the block."""
    ports, environment = [free_port() for _ in range(3)], settings(home)
    address, dashboard = (f"127.0.0.1:{port}" for port in ports[:2])
    with head(environment, ports), up(environment, address, home):
        yield Cluster(address, f"http://{dashboard}", home, environment)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
