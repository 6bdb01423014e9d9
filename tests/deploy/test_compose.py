"""The compose files: by the specification's own schema, and by what else they lean on."""

import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import refusal

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"
COMPOSE = FOLDER / "compose.yaml"
CHECK = Path(sysconfig.get_path("scripts")) / "check-jsonschema"


def _by_schema(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [str(CHECK), "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _faults(text: str) -> Iterator[str]:
    compose: dict[str, Any] = yaml.safe_load(text)
    services: dict[str, dict[str, Any]] = compose["services"]
    secrets = {_name(one) for service in services.values() for one in service.get("secrets", ())}
    mounts = [volume.split(":") for service in services.values() for volume in service["volumes"]]
    volumes = {source for source, *_ in mounts if not source.startswith(".")}
    if secrets != set(compose["secrets"]) or volumes != set(compose["volumes"]):
        yield f"named and used differ: {secrets ^ set(compose['secrets'])} {volumes ^ set(compose['volumes'])}"
    yield from (f"{source} is not there" for source, *_ in mounts if not (FOLDER / source).exists() and "/" in source)
    for name, service in services.items():
        if not re.search(r":v?\d+\.\d+\.\d+$|^trimtab:", service["image"]):
            yield f"{name}: any version of {service['image']} would do"
        if service["cap_drop"] != ["ALL"] or service["security_opt"] != ["no-new-privileges:true"]:
            yield f"{name} has privileges"
        if not {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"]):
            yield f"{name} has no limits"
        if "healthcheck" not in service and "build" not in service:  # the image has one, for the head
            yield f"{name} has no health check"
        yield from (
            f"{port} is open to others" for port in service.get("ports", ()) if not port.startswith("127.0.0.1:")
        )
    for command in _commands(text, services):
        if told := refusal(command):
            yield f"{command}: {told}"


def _name(secret: str | dict[str, str]) -> str:
    return secret if isinstance(secret, str) else secret["source"]


def _commands(text: str, services: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What is run of Trimtab and Ray, and what the file's head says to run."""
    yield from services["head"]["command"][-1].replace("exec ", "").splitlines()
    yield " ".join(services["worker"]["command"])
    yield " ".join(services["worker"]["healthcheck"]["test"][1:])
    yield from re.findall(r"^#     docker compose exec (?:-T )?head (trimtab [^>\n]*)", text, re.MULTILINE)


def test_the_schema_takes_them() -> None:
    done = _by_schema(COMPOSE, FOLDER / "compose.gpu.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ("stop_grace_period: 30s", "stop_grace: 30s"),
        ("shm_size: 512mb", "shm_size: [512mb]"),
        ("condition: service_healthy", "condition: healthy"),
    ],
)
def test_the_schema_refuses_a_broken_copy(sound: str, broken: str, tmp_path: Path) -> None:
    copy = tmp_path / "compose.yaml"
    copy.write_text(COMPOSE.read_text().replace(sound, broken, 1))
    assert copy.read_text() != COMPOSE.read_text()
    done = _by_schema(copy)
    assert done.returncode == 1
    assert "errors were encountered" in done.stdout


def test_what_it_leans_on_is_there() -> None:
    assert list(_faults(COMPOSE.read_text())) == []
    assert len(list(_commands(COMPOSE.read_text(), yaml.safe_load(COMPOSE.read_text())["services"]))) == 6


@pytest.mark.parametrize(
    ("sound", "broken", "told"),
    [
        ("../prometheus/rules.yml:", "../prometheus/alerts.yml:", "alerts.yml is not there"),
        ("      - home:/var", "      - homes:/var", "named and used differ"),
        ("secrets: [grafana-password]", "secrets: [grafana]", "named and used differ"),
        ("prom/prometheus:v3.5.0", "prom/prometheus:latest", "any version of"),
        ('"127.0.0.1:8270:8270"', '"8270:8270"', "open to others"),
        ("up --address auto", "up --adress auto", "No such option: --adress"),
        ("--num-cpus=0", "--num-cpus=none", "'none' is not a valid"),
        ("--role viewer", "--role reader", "is not one of 'viewer'"),
        ('limits: {cpus: "2", memory: 8gb, pids: 8192}', 'limits: {cpus: "2"}', "worker has no limits"),
    ],
)
def test_a_broken_copy_is_refused(sound: str, broken: str, told: str) -> None:
    text = COMPOSE.read_text()
    assert sound in text
    (fault,) = _faults(text.replace(sound, broken, 1))
    assert told in fault
