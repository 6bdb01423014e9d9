"""The API as a Ray actor: it comes back by itself on the same port, and says so when it cannot listen."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from trimtab.api.home import read_access


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def about(url: str, token: str) -> dict[str, str]:
    """Asks until it is answered."""
    deadline = time.monotonic() + 30
    while True:
        try:
            answer = httpx.get(f"{url}/api/v1/version", headers={"Authorization": f"Bearer {token}"})
            answer.raise_for_status()
            body: dict[str, str] = answer.json()
            return body
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_api_comes_back_after_kill_9(controller: Path) -> None:
    import ray

    from trimtab.api import server
    from trimtab.api.serving import CannotListen, bind

    with bind("127.0.0.1", 0) as taken:
        with pytest.raises(CannotListen, match=r"port \d+: it is taken; choose another with --port"):
            server.start(controller, port=taken.getsockname()[1])
        port = taken.getsockname()[1]
    access = server.start(controller, port=port)
    try:
        assert access.url == f"http://127.0.0.1:{port}"
        assert read_access(controller) == access
        assert server.start(controller, port=port + 1) == access  # it runs already
        assert about(access.url, access.token)["role"] == "admin"
        assert httpx.get(f"{access.url}/readyz").json() == {"status": "ok"}
        missing = httpx.get(f"{access.url}/api/v1/runs/nix", headers={"Authorization": f"Bearer {access.token}"})
        assert (missing.status_code, missing.json()["code"]) == (404, "run-not-found")

        actor = ray.get_actor(server.API, namespace="trimtab")
        pid = ray.get(actor.pid.remote())
        os.kill(pid, signal.SIGKILL)
        assert about(access.url, access.token)["role"] == "admin"
        assert ray.get(actor.pid.remote()) != pid
        assert read_access(controller) == access
    finally:
        server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(access.url)
