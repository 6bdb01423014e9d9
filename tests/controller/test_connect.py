"""Which Ray a process works on; Ray itself is not asked here."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from trimtab.controller import connect
from trimtab.controller.home import CLUSTER, RAY


@pytest.mark.parametrize("told", [{"RAY_ADDRESS": "127.0.0.1:9"}, {CLUSTER: "127.0.0.1:9", "RAY_ADDRESS": "auto"}])
def test_a_job_does_not_leave_a_cluster_that_it_cannot_reach(told: dict[str, str]) -> None:
    lost = {**os.environ, **told}
    code = "from trimtab.controller.connect import connect; connect()"
    done = subprocess.run([sys.executable, "-c", code], env=lost, capture_output=True, text=True, check=False)
    assert "ConnectionError: no Ray cluster answers at 127.0.0.1:9 ([Errno 111] Connection refused)" in done.stderr


def test_a_ray_that_will_run_no_jobs_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: begun.append(options["address"]))
    with socket.create_server(("127.0.0.1", 0)) as agent:
        monkeypatch.setattr(connect, "AGENT_PORT", agent.getsockname()[1])
        assert connect.connect("local")
    assert "start it with `ray start --head --dashboard-agent-listen-port=…`" in caplog.text
    caplog.clear()
    assert connect.connect("local")
    assert caplog.text == ""
    assert begun == ["local", "local"]


def test_of_several_rays_a_home_goes_back_to_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[Any] = []
    for variable in ("RAY_ADDRESS", CLUSTER):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: begun.append(options["address"]))
    monkeypatch.setattr(connect, "GcsClient", lambda address: begun.append(f"knock {address}"))
    with socket.create_server(("127.0.0.1", 0)) as gcs:
        address = f"127.0.0.1:{gcs.getsockname()[1]}"
        (tmp_path / RAY).write_text(address)
        connect.connect(home=tmp_path)
        connect.connect("local", home=tmp_path)
    connect.connect(home=tmp_path)  # it has gone
    assert begun == [f"knock {address}", address, "local", "auto"]


def test_the_token_that_ray_makes_is_for_nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    token = tmp_path / ".ray" / "auth_token"

    def init(**_: object) -> None:
        token.parent.mkdir(exist_ok=True)
        token.write_text("secret")
        token.chmod(0o644)  # as Ray leaves it

    monkeypatch.setattr(ray, "init", init)
    assert connect.connect("local")
    assert token.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(ray, "init", lambda **_: token.unlink())  # none, as where it is given by the environment
    assert connect.connect("local")
