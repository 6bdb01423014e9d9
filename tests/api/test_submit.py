"""The commands `submit`, `jobs` and `job` against a served app, beside a job server without Ray."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from plain import RUN, Door, Trimtab, answer

from trimtab.api.cli import submit
from trimtab.controller.jobs import JobServerUnreachable
from trimtab.controller.overrides import VARIABLE

SUBMIT = ("submit", "--submission-id", "train-1", "--no-wait")


def submitted(trimtab: Trimtab) -> Any:
    code, out, err = trimtab(*SUBMIT, "--json", "--", "python", "train.py")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_what_is_asked_for_reaches_ray_word_by_word(door: Door, trimtab: Trimtab) -> None:
    options = ["--entrypoint-num-cpus", "0.5", "--entrypoint-memory", "1000", "--entrypoint-resources", '{"disk": 1}']
    options += ["--metadata-json", '{"team": "a"}', "--runtime-env-json", '{"pip": ["numpy"], "env_vars": {"A": "1"}}']
    options += ["--working-dir", "gcs://_ray_pkg_1.zip", "--entrypoint-label-selector", '{"gpu": "a100"}']
    code, out, err = trimtab(*SUBMIT, *options, "--", "python", "train.py", "--lr", "3", "a b")
    assert (code, err) == (0, "")
    assert "train-1 is submitted; follow it with `trimtab job logs -f train-1`" in out
    (asked,) = door.gateway.jobs.asked
    assert asked.entrypoint == "python train.py --lr 3 'a b'"
    variables = {"A": "1", "TRIMTAB_OWNER": "alice"}
    assert asked.runtime_env == {"pip": ["numpy"], "env_vars": variables, "working_dir": "gcs://_ray_pkg_1.zip"}
    assert (asked.entrypoint_num_cpus, asked.entrypoint_memory, asked.metadata) == (0.5, 1000, {"team": "a"})
    assert (asked.entrypoint_resources, asked.entrypoint_label_selector) == ({"disk": 1}, {"gpu": "a100"})


def test_values_and_policies_travel_with_the_job(door: Door, trimtab: Trimtab, tmp_path: Path) -> None:
    file = tmp_path / "my_policy.py"
    file.write_text("class Cruise: ...\n")
    given = ["--hp", "lr=0.2:0:1", "--policy", "plateau:patience=1", "--policy", f"{file}:Cruise:loss=2.5"]
    assert trimtab(*SUBMIT, *given, "--shadow", "goodput", "python", "train.py")[0] == 0
    variables = door.gateway.jobs.asked[0].runtime_env["env_vars"]
    told = json.loads(variables[VARIABLE])
    assert {name: value["default"] for name, value in told["hp"].items()} == {"lr": 0.2}
    assert [(one["kind"], one["mode"]) for one in told["policies"]] == [
        ("plateau", "active"),
        ("", "active"),
        ("goodput", "shadow"),
    ]
    assert told["policies"][1]["code"]["text"] == "class Cruise: ...\n"
    job = door.gateway.jobs.asked[0].submission_id
    shown = answer(trimtab, "job", "show", job)
    assert shown["runtime_env"].keys() & {"env_vars"} == set()
    assert shown["given"]["hp"]["lr"]["max"] == 1
    assert [(one["kind"], one["code"]) for one in shown["given"]["policies"]] == [
        ("plateau", ""),
        ("", "my_policy.py:Cruise"),
        ("goodput", ""),
    ]
    told = "given    lr 0.2, policy plateau, policy my_policy.py:Cruise, policy goodput in shadow"
    assert told in trimtab("job", "show", job)[1]


def test_an_id_is_made_of_the_scripts_name(door: Door, trimtab: Trimtab) -> None:
    for _ in range(2):
        assert trimtab("submit", "--no-wait", "--", "python", "a/train_it.py")[0] == 0
    ids = {one.submission_id for one in door.gateway.jobs.asked}
    assert len(ids) == 2
    assert all(one.startswith("train-it-") for one in ids)


def test_the_same_again_is_the_same_job(door: Door, trimtab: Trimtab) -> None:
    first = submitted(trimtab)
    assert first["submission_id"] == "train-1"
    assert submitted(trimtab) == first
    again = "train-1 was submitted before; follow it with `trimtab job logs -f train-1`\n"
    assert trimtab(*SUBMIT, "--", "python", "train.py")[1] == again
    door.gateway.jobs.end("train-1")
    told = trimtab("submit", "--submission-id", "train-1", "--", "python", "train.py")[1]
    assert told.startswith("train-1 was submitted before, and is followed;")
    assert len(door.gateway.jobs.asked) == 1
    code, _, err = trimtab(*SUBMIT, "--", "python", "other.py")
    assert code == 1
    assert "another job was submitted as 'train-1'" in err


@pytest.mark.parametrize(("status", "expected"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_it_follows_the_job_to_its_end(door: Door, trimtab: Trimtab, status: str, expected: int) -> None:
    server = door.gateway.jobs
    server.printed["train-1"] = ["step 1\n"]

    def train() -> None:
        while "train-1" not in server.known:
            time.sleep(0.01)
        time.sleep(0.2)
        server.printed["train-1"].append("step 2\n")
        server.end("train-1", status)  # type: ignore[arg-type]

    thread = threading.Thread(target=train)
    thread.start()
    code, out, err = trimtab("submit", "--submission-id", "train-1", "--", "python", "train.py")
    thread.join()
    assert (code, err) == (expected, "")
    assert out.count("step 1\n") == out.count("step 2\n") == 1  # the stream had broken off between
    assert f"train-1: {status}" in out


TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 1, in <module>
ValueError: the [loss] is NaN
"""


@pytest.mark.parametrize(
    ("message", "code", "told"),
    [
        (f"Job failed with exit code 1, last logs:\n{TRACEBACK}\n", 1, "exit code 1: ValueError: the [loss] is NaN"),
        ("x" * 500, None, f"{'x' * 119}…"),
        (None, 3, "exit code 3"),
        (None, None, ""),
    ],
)
def test_a_traceback_is_printed_once(
    door: Door, trimtab: Trimtab, message: str | None, code: int | None, told: str
) -> None:
    server = door.gateway.jobs
    submitted(trimtab)
    server.printed["train-1"] = [TRACEBACK]
    server.end("train-1", "FAILED")
    server.known["train-1"] = server.known["train-1"].model_copy(update={"message": message, "driver_exit_code": code})
    exit_code, out, _ = trimtab("submit", "--submission-id", "train-1", "--", "python", "train.py")
    assert (exit_code, out.count("Traceback")) == (1, 1)
    assert out.splitlines()[-1] == f"train-1: FAILED{f' ({told})' if told else ''}"


def test_why_a_job_has_not_begun_is_told(door: Door, trimtab: Trimtab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "TELL_S", 0.0)
    server = door.gateway.jobs
    server.waits_for = "No agent listens on the head node."

    def train() -> None:
        while "train-1" not in server.known:
            time.sleep(0.01)
        time.sleep(1.2)
        server.end("train-1", "SUCCEEDED")

    thread = threading.Thread(target=train)
    thread.start()
    code, out, err = trimtab("submit", "--submission-id", "train-1", "--", "python", "train.py")
    thread.join()
    assert (code, err) == (0, "train-1 waits: No agent listens on the head node.\n")
    assert "train-1: SUCCEEDED" in out


def test_what_is_asked_wrongly_is_told(door: Door, trimtab: Trimtab) -> None:
    for options, told in (
        (["--runtime-env-json", "{"], "no JSON"),
        (["--metadata-json", "[]"], "must be a JSON object"),
        (["--hp", "lr"], "name=value"),
        (["--hp", "lr=abc"], "lr is a number"),
        (["--policy", "my_policy.py:Cruise"], "there is no policy file"),
    ):
        code, _, err = trimtab(*SUBMIT, *options, "--", "python", "train.py")
        assert (code, told in err) == (2, True), err
    code, _, err = trimtab(*SUBMIT, "--runtime-env-json", '{"working_dir": "file:///x"}', "--", "python", "train.py")
    assert code == 1
    assert "not by file" in err
    assert door.gateway.jobs.asked == []


def test_a_folder_needs_rays_own_server(trimtab: Trimtab, tmp_path: Path) -> None:
    code, _, err = trimtab(*SUBMIT, "--working-dir", str(tmp_path), "--", "python", "train.py")
    assert code == 1
    assert "nothing can be uploaded: Ray's job server at http://127.0.0.1:1 does not answer" in err
    assert "give the server's --address" in err


def test_jobs_are_listed_shown_stopped_and_forgotten(door: Door, trimtab: Trimtab) -> None:
    trimtab(*SUBMIT, "--", "python", "train.py")
    door.gateway.controller.link_job(RUN, "train-1")
    code, out, _ = trimtab("jobs")
    assert code == 0
    assert "train-1  RUNNING  python train.py  bytes-lm-3f9a  alice" in out
    assert [job["submission_id"] for job in answer(trimtab, "jobs")] == ["train-1"]
    assert "job train-1" in trimtab("show", "bytes")[1]
    assert f"runs     {RUN}" in trimtab("job", "show", "train-1")[1]
    door.gateway.jobs.printed["train-1"] = ["step 1\n"]
    assert trimtab("job", "logs", "train-1")[1] == "step 1\n"
    assert "stop it first" in trimtab("job", "rm", "train-1")[2]
    assert "is told to stop" in trimtab("job", "stop", "train-1")[1]
    assert "was not running" in trimtab("job", "stop", "train-1")[1]
    assert trimtab("job", "logs", "-f", "train-1")[1] == "step 1\n"
    assert "is forgotten" in trimtab("job", "rm", "train-1")[1]
    assert "there is no job" in trimtab("job", "show", "nobody")[2]


def test_a_job_that_waits_for_ray_is_followed_too(door: Door, trimtab: Trimtab) -> None:
    server = door.gateway.jobs
    server.error = JobServerUnreachable("it sleeps")
    assert submitted(trimtab)["message"] == "Ray does not have it yet. it sleeps"
    code, out, _ = trimtab("job", "show", "train-1")
    assert (code, "train-1: PENDING" in out) == (0, True)
