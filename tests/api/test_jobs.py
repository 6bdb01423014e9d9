"""Jobs by REST, beside a job server without Ray; `test_job_server.py` asks Ray's."""

from typing import Any

import anyio
import httpx
import pytest
from plain import RUN, Door

from trimtab.api.runtime_env import check
from trimtab.api.tokens import Role
from trimtab.controller.errors import Refused
from trimtab.controller.jobs import JobRequest, JobServerUnreachable

JOB = {"entrypoint": "python train.py", "submission_id": "train-1"}


def ask(door: Door, method: str, path: str, token: str = "", **rest: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        async with door.client(token) as client:
            return await client.request(method, f"/api/v1/jobs{path}", **rest)

    return anyio.run(request)


def submit(door: Door, body: Any = JOB, key: str = "", token: str = "") -> httpx.Response:
    return ask(door, "POST", "", token, json=body, headers={"Idempotency-Key": key} if key else {})


def test_a_job_is_submitted_once_however_often_it_is_asked_for(door: Door) -> None:
    first, again = submit(door), submit(door)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["location"] == "/api/v1/jobs/train-1"
    assert first.json() == again.json()
    assert first.json()["status"] == "RUNNING"
    assert len(door.gateway.jobs.asked) == 1
    other = submit(door, {**JOB, "entrypoint": "python other.py"})
    assert (other.status_code, other.json()["code"]) == (409, "job-exists")
    assert other.json()["errors"][0]["field"] == "submission_id"


def test_a_key_of_ones_own_makes_the_id(door: Door) -> None:
    body = {"entrypoint": "python train.py"}
    one, again = submit(door, body, "k1"), submit(door, body, "k1")
    bob = submit(door, body, "k1", door.tokens.new("bob", Role.ADMIN))
    ids = [answer.json()["submission_id"] for answer in (one, again, bob, submit(door, body), submit(door, body))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4  # bob's key is not alice's, and without one each is new
    assert submit(door, {"entrypoint": "python other.py"}, "k1").json()["code"] == "job-exists"


def test_what_ray_cannot_take_now_waits_and_can_be_taken_back(door: Door) -> None:
    door.gateway.jobs.error = JobServerUnreachable("it sleeps")
    waiting = submit(door)
    assert (waiting.status_code, waiting.json()["status"]) == (202, "PENDING")
    assert "it sleeps" in waiting.json()["message"]
    assert submit(door).status_code == 202
    listed = ask(door, "GET", "")
    assert (listed.status_code, listed.json()["code"]) == (503, "job-server-unreachable")
    assert ask(door, "POST", "/train-1/stop").json() == {"stopped": True}
    door.gateway.jobs.error = None
    gone = ask(door, "GET", "/train-1").json()
    assert (gone["status"], gone["message"]) == ("STOPPED", "alice took it back before Ray had it")
    assert ask(door, "GET", "").json()["jobs"] == [gone]
    assert submit(door).status_code == 201  # Ray never had it, so it may be asked for again


def test_what_never_came_to_ray_is_deleted_by_its_id(door: Door) -> None:
    door.gateway.jobs.error = Refused("job-refused", "Ray refuses the job: no such label")
    submit(door)
    door.gateway.jobs.error = None
    assert ask(door, "DELETE", "/train-1").json() == {"deleted": True}
    assert ask(door, "GET", "").json()["jobs"] == []
    assert ask(door, "GET", "/train-1").json()["code"] == "job-not-found"
    assert ask(door, "DELETE", "/train-1").json()["code"] == "job-not-found"


def test_what_ray_refuses_is_told(door: Door) -> None:
    door.gateway.jobs.error = Refused("job-refused", "Ray refuses the job: no such label")
    refused = submit(door)
    assert (refused.status_code, refused.json()["code"]) == (422, "job-refused")
    door.gateway.jobs.error = None
    assert ask(door, "GET", "/train-1").json()["status"] == "FAILED"
    assert submit(door, {**JOB, "entrypoint": "mended"}).status_code == 201


def test_jobs_are_listed_newest_first_with_their_runs_and_without_secrets(door: Door) -> None:
    for i in range(3):
        body = {"entrypoint": f"python {i}.py", "submission_id": f"job-{i}", "runtime_env": {"env_vars": {"KEY": "s3"}}}
        submit(door, body)
    door.gateway.jobs.add(JobRequest(submission_id="elsewhere", entrypoint="ray job submit"))
    door.gateway.controller.link_job(RUN, "job-1")
    page = ask(door, "GET", "?limit=2").json()
    assert [job["submission_id"] for job in page["jobs"]] == ["elsewhere", "job-2"]
    rest = ask(door, "GET", f"?limit=2&page_token={page['next_page_token']}").json()
    assert [(job["submission_id"], job["runs"], job["by"]) for job in rest["jobs"]] == [
        ("job-1", [RUN], "alice"),
        ("job-0", [], "alice"),
    ]
    assert page["jobs"][0]["by"] is None
    assert ask(door, "GET", "?page_token=nix").json()["errors"][0]["field"] == "page_token"
    assert rest["next_page_token"] is None
    assert rest["jobs"][0]["runtime_env"] == {"env_vars": {"KEY": "<hidden>"}}
    assert rest["jobs"][0]["metadata"] == {}
    assert door.gateway.controller.run(RUN).job == "job-1"


def test_a_job_that_ended_is_forgotten_and_its_id_stays_taken(door: Door) -> None:
    submit(door)
    running = ask(door, "DELETE", "/train-1")
    assert (running.status_code, running.json()["code"]) == (409, "job-running")
    assert ask(door, "POST", "/train-1/stop").json() == {"stopped": True}
    assert ask(door, "DELETE", "/train-1").json() == {"deleted": True}
    assert ask(door, "GET", "/train-1").json()["code"] == "job-gone"
    again = submit(door)
    assert (again.status_code, again.json()["code"]) == (409, "job-gone")
    assert ask(door, "GET", "/nobody").json()["code"] == "job-not-found"


def test_logs_whole_from_a_place_and_followed(door: Door) -> None:
    submit(door)
    door.gateway.jobs.printed["train-1"] = ["step 1\n", "stép 2\n", "step 3\n"]
    assert ask(door, "GET", "/train-1/logs").json() == {"logs": "step 1\nstép 2\nstep 3\n"}
    assert ask(door, "GET", "/train-1/logs?skip=9").json() == {"logs": "ép 2\nstep 3\n"}
    followed = ask(door, "GET", "/train-1/logs?follow=true&skip=9")
    assert followed.headers["content-type"].startswith("text/plain")
    assert followed.text == "ép 2\nstep 3\n"
    assert ask(door, "GET", "/nobody/logs?follow=true").status_code == 404


def test_the_log_of_a_job_that_has_ended_is_not_waited_for(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(door)
    door.gateway.jobs.printed["train-1"] = ["step 1\n", "stép 2\n"]
    door.gateway.jobs.end("train-1", "FAILED")
    monkeypatch.setattr(door.gateway.jobs, "tail", None)
    followed = ask(door, "GET", "/train-1/logs?follow=true&skip=9")
    assert followed.headers["content-type"].startswith("text/plain")
    assert followed.text == "ép 2\n"


def test_only_an_admin_runs_code(door: Door) -> None:
    submit(door)
    for role in (Role.VIEWER, Role.OPERATOR):
        token = door.tokens.new("eve", role)
        for method, path in (("POST", ""), ("POST", "/train-1/stop"), ("DELETE", "/train-1")):
            assert ask(door, method, path, token, json=JOB).json()["detail"].startswith("this needs the role admin")
        assert ask(door, "GET", "/train-1", token).status_code == 200
    assert len(door.gateway.jobs.asked) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"A": "file:///a/value/is/any/text"}},
        {"working_dir": "https://example.org/a.zip", "py_modules": ["s3://bucket/b.zip"], "excludes": ["data"]},
        {"pip": ["numpy>=2", "x @ git+https://example.org/x.git"], "config": {"setup_timeout_seconds": 60}},
        {"pip": {"packages": ["numpy"], "pip_check": False}},
        {"conda": {"dependencies": ["python=3.11", {"pip": ["numpy"]}]}},
    ],
)
def test_environments_that_are_taken(environment: dict[str, Any]) -> None:
    assert check(environment) == environment


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"working_dir": "file:///etc"}, "not by file"),
        ({"working_dir": "FILE:/etc/x.zip"}, "not by FILE"),
        ({"working_dir": "local:///opt/app"}, "not by local"),
        ({"working_dir": "http://example.org/a.zip"}, "not by http"),
        ({"working_dir": "/home/me/project"}, "is a path"),
        ({"py_modules": ["."]}, "is a path"),
        ({"pip": "requirements.txt"}, "not a file"),
        ({"pip": ["-r /etc/passwd"]}, "not a file"),
        ({"pip": ["./wheel"]}, "not a file"),
        ({"pip": ["x @ file:///tmp/x"]}, "not by file"),
        ({"uv": {"packages": ["numpy"], "uv_pip_install_options": ["--index-url=https://a"]}}, "an option"),
        ({"conda": "base"}, "not a file"),
        ({"env_vars": {"A": 1}}, "strings"),
        ({"config": {"log_files": ["/etc/x"]}}, "log_files"),
        ({"container": {"image": "x"}, "java_jars": []}, "container, java_jars"),
        ({"env_vars": {"A": "x" * 300_000}}, "300,0"),
    ],
)
def test_environments_that_are_refused(environment: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check(environment)


def test_the_offending_field_is_named(door: Door) -> None:
    bad = submit(door, {**JOB, "runtime_env": {"working_dir": "file:///etc"}, "entrypoint_num_cpus": -1, "job_id": "x"})
    assert bad.status_code == 422
    assert {one["field"] for one in bad.json()["errors"]} == {"runtime_env", "entrypoint_num_cpus", "job_id"}
    assert door.gateway.jobs.asked == []
    assert submit(door, {**JOB, "submission_id": "../x"}).status_code == 422
