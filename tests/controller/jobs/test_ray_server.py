"""What Ray's job server is sent, and how what a job prints comes from it."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.job_submission import JobType

from trimtab.controller.home import CLUSTER
from trimtab.controller.jobs import ray_server
from trimtab.controller.jobs.ray_server import RayJobServer
from trimtab.controller.jobs.request import JobRequest


class Client:
    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def submit_job(self, **sent: Any) -> str:
        self.sent = sent
        return str(sent["submission_id"])


def server_of(client: Any) -> RayJobServer:
    server = RayJobServer("http://127.0.0.1:9")
    server._client = client
    return server


def environment_of(request: JobRequest) -> dict[str, Any]:
    client = Client()
    asyncio.run(server_of(client).submit(request))
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


class Prints:
    """A job that prints two lines and ends. Ray's stream of it brings the first and stays open for long."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.let_go = False

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        told = {"submission_id": submission_id, "entrypoint": "python train.py"}
        return SimpleNamespace(type=JobType.SUBMISSION, status=state, dict=lambda: told)

    def get_job_logs(self, submission_id: str) -> str:  # noqa: ARG002
        return "step 1\nétape 2\n"

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:  # noqa: ARG002
        try:
            yield "step 1\n"
            await asyncio.sleep(60)
        finally:
            self.let_go = True


@pytest.mark.parametrize(
    ("states", "parts"),
    [
        (("PENDING", "RUNNING", "SUCCEEDED"), ["step 1\n", "étape 2\n"]),
        (("FAILED",), ["step 1\nétape 2\n"]),
    ],
)
def test_a_log_ends_with_its_job(monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...], parts: list[str]) -> None:
    monkeypatch.setattr(ray_server, "WATCH_S", 0.01)
    client = Prints(*states)

    async def followed() -> list[str]:
        return [text async for text in server_of(client).tail("train-1")]

    assert asyncio.run(asyncio.wait_for(followed(), 5)) == parts
    assert client.let_go == (len(parts) > 1)
