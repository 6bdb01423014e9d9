"""What Ray's job server is sent."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from trimtab.controller.home import CLUSTER
from trimtab.controller.jobs.ray_server import RayJobServer
from trimtab.controller.jobs.request import JobRequest


class Client:
    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def submit_job(self, **sent: Any) -> str:
        self.sent = sent
        return str(sent["submission_id"])


def environment_of(request: JobRequest) -> dict[str, Any]:
    server, client = RayJobServer("http://127.0.0.1:9"), Client()
    server._client = client  # type: ignore[assignment]
    asyncio.run(server.submit(request))
    return dict(client.sent["runtime_env"])


def test_a_job_is_told_which_of_several_clusters_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    given = {"working_dir": "s3://a/b.zip", "env_vars": {"SEED": "7", CLUSTER: "10.9.9.9:1"}}
    request = JobRequest(submission_id="nightly-1", entrypoint="python train.py", runtime_env=given)
    assert environment_of(request) == {
        "working_dir": "s3://a/b.zip",
        "env_vars": {"SEED": "7", CLUSTER: "10.0.0.1:6379"},
    }
    assert given["env_vars"] == {"SEED": "7", CLUSTER: "10.9.9.9:1"}


def test_where_only_the_job_server_is_known_ray_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert environment_of(JobRequest(submission_id="nightly-1", entrypoint="python train.py"))["env_vars"] == {}
