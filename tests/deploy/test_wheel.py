"""What `make dist` builds, installed into an empty environment and used from another folder.

What Trimtab depends on is lent by the environment of the tests; TRIMTAB_LONG=1 installs all of it from nothing.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
LONG = os.environ.get("TRIMTAB_LONG") == "1"
BUILD = (sys.executable, "-m", "build", "--no-isolation")
ROLES = ("api", "controller", "dashboards", "workers")
BESIDE = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "constraints.txt", "pyproject.toml"}
SUFFIXES = {".css", ".html", ".js", ".py", ".svg", ".typed"}
SCRIPT = """
import torch
from torch import nn
from trimtab.workers import trainable

@trainable(batch_size=8, lr=0.1)
def train(session):
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    net = nn.Linear(4, 2)
    model, _ = session.prepare(net, torch.optim.SGD(net.parameters(), lr=session.hp.lr))
    for inputs, labels in session.batches((x, y)):
        session.step(nn.functional.cross_entropy(model(inputs), labels))
"""

pytestmark = pytest.mark.timeout(1800 if LONG else 180)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` leaves: the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    _run([*BUILD, "--outdir", str(folder), str(ROOT)], folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel: its bin."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    (wheel,) = dist.glob("*.whl")
    if LONG:
        _run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], folder)
    else:
        _run([*pip, "--no-deps", "--no-index", str(wheel)], folder)
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        (Path(paths["purelib"]) / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of a user who has never run Ray or Trimtab; another Ray of this machine is not seen."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TRIMTAB_", "PYTHON"))}
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as ray:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        yield own | token | {"HOME": str(tmp_path), "RAY_TMPDIR": ray, "NO_COLOR": "1"}


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _sources() -> set[str]:
    """The files of the package as the repository has them."""
    listed = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    return {file for file in listed if PurePosixPath(file).parts[1:2] == ("trimtab",) and (ROOT / file).exists()}


def test_the_sdist_holds_the_package_and_nothing_stray(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        files = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    assert files == _sources() | BESIDE
    assert {PurePosixPath(file).suffix for file in files - BESIDE} <= SUFFIXES


def test_the_wheel_of_the_sdist_is_that_of_the_repository(dist: Path, tmp_path: Path) -> None:
    _run([*BUILD, "--wheel", "--outdir", str(tmp_path), str(ROOT)], tmp_path)
    (of_sdist,), (of_repository,) = dist.glob("*.whl"), tmp_path.glob("*.whl")
    with zipfile.ZipFile(of_sdist) as one, zipfile.ZipFile(of_repository) as other:
        assert {file.filename: file.CRC for file in one.infolist()} == {
            file.filename: file.CRC for file in other.infolist()
        }
        files = {file for file in one.namelist() if ".dist-info/" not in file}
    assert files == {file.partition("/")[2] for file in _sources()}
    assert "trimtab/dashboards/static/index.html" in files


def test_the_wheel_is_used_from_another_folder(installed: Path, environment: dict[str, str], tmp_path: Path) -> None:
    modules = "; ".join(f"import trimtab.{role}; print(trimtab.{role}.__file__)" for role in ROLES)
    files = _run([str(installed / "python"), "-c", modules], tmp_path, environment).split()
    assert len(files) == len(ROLES)
    assert all(Path(file).is_relative_to(installed.parent) for file in files), files

    trimtab = str(installed / "trimtab")
    assert "Adaptive hyper-parameter control" in _run([trimtab, "--help"], tmp_path, environment)
    (tmp_path / "small.py").write_text(SCRIPT)
    up = [trimtab, "up", "--address", "local", "--port", "0", "--json"]
    with subprocess.Popen(up, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            access = json.loads("".join(takewhile(lambda line: line != "}\n", service.stdout)) + "}")
            run = [trimtab, "run", "small.py", "--workers", "1", "--steps", "10", "--policy", "warmup:steps=5"]
            summary = json.loads(_run([*run, "--json"], tmp_path, environment))
            (kept,) = json.loads(_run([trimtab, "runs", "--json"], tmp_path, environment))
        finally:
            service.send_signal(signal.SIGTERM)
    assert service.returncode == 0
    assert access["url"].startswith("http://127.0.0.1:")
    assert summary["steps"] == 10
    assert (kept["name"], kept["state"]) == ("small", "finished")
