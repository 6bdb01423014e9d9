"""The files of Ray's cluster launcher, as far as `ray up` itself checks them before it asks for a machine."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from commands import refusal
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "ray"
FILES = sorted(FOLDER.glob("*.yaml"))
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def _prepared(text: str) -> dict[str, Any]:
    """The configuration with all defaults, as `ray up` would use it."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def _faults(text: str) -> Iterator[str]:
    config = _prepared(text)
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    yield from (f"not Ray {pinned}: {one}" for one in re.findall(r"rayproject/ray:(\S+)", text) if pinned not in one)
    if "RAY_AUTH_MODE=token" not in text or not any(".ray/auth_token" in path for path in config["file_mounts"]):
        yield "whoever reaches it may run code on it"
    yield from (
        f"nobody makes {source}"
        for source in config["file_mounts"].values()
        if source not in ("dist", "~/.ray/auth_token")
    )
    commands = list(_commands(text, config))
    if not any(command.startswith("trimtab up --address auto") for command in commands):
        yield "nobody starts Trimtab"
    yield from (f"{command}: {told}" for command in commands if (told := refusal(command)))


def _commands(text: str, config: dict[str, Any]) -> Iterator[str]:
    """What is run of Ray and Trimtab, and what the file's head says to run."""
    for line in (line for name in STARTS for line in config[name]):
        for part in line.split(";"):
            command = re.sub(r"^setsid nohup |[<>].*", "", part.strip())
            if command.startswith(("ray ", "trimtab ")):
                yield command
    for line in re.findall(r"^#     ((?:ray|trimtab) .*?)(?:  +#.*)?$", text, re.MULTILINE):
        yield line
        yield from re.findall(r"'(trimtab .*)'", line)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_takes_it(file: Path) -> None:
    assert list(_faults(file.read_text())) == []
    assert len(list(_commands(file.read_text(), _prepared(file.read_text())))) >= 11


@pytest.mark.parametrize(
    ("name", "sound", "broken"),
    [
        ("aws", "head_node_type: head", "head_node_type: heads"),
        ("aws", "max_workers: 8\nidle", "max_workers: eight\nidle"),
        ("aws", "idle_timeout_minutes", "idle_timeout"),
        ("aws", "resources: {CPU: 0}", "resources: {CPU: none}"),
        ("aws", "  container_name: trimtab\n", ""),
        ("aws", "type: aws", "type: awss"),
        ("on-premise", "  head_ip: 10.0.0.5\n", ""),
        ("on-premise", "ssh_user: trimtab", "user: trimtab"),
    ],
)
def test_ray_refuses_a_broken_copy(name: str, sound: str, broken: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.count(sound) == 1
    refused = (jsonschema.ValidationError, ValueError, AssertionError, NotImplementedError, click.ClickException)
    with pytest.raises(refused):
        _prepared(text.replace(sound, broken))


@pytest.mark.parametrize(
    ("name", "sound", "broken", "told"),
    [
        ("aws", "ray:2.60.0-py311-gpu", "ray:2.40.0-py311-gpu", "not Ray 2."),
        ("aws", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "may run code"),
        ("aws", "trimtab up --address auto", "trimtab up --address-auto", "nobody starts Trimtab"),
        ("aws", "ray dashboard deploy/ray/aws.yaml --remote", "ray dashboard deploy/ray/aws.yaml --far", "--far-port"),
        ("on-premise", "~/trimtab/dist: dist", "~/trimtab/dist: wheels", "nobody makes wheels"),
        ("on-premise", "ray start --head --port=6379", "ray start --head --port=gcs", "'gcs' is not a valid integer"),
    ],
)
def test_a_broken_copy_is_refused(name: str, sound: str, broken: str, told: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.count(sound) == 1
    faults = list(_faults(text.replace(sound, broken)))
    assert told in faults[0], faults
