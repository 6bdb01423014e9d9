"""An app over a plain controller, asked without a network; and one served by uvicorn in a thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `plain`, which is a script too

from plain import Door, Trimtab, door_to, serving

from trimtab.api.cli import main
from trimtab.api.home import Access, write_access


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return door_to(tmp_path)


@pytest.fixture
def where(controller: Path) -> list[str]:  # noqa: ARG001
    """Options of a command that is to work on the tests' own cluster, and to listen wherever there is room."""
    import ray

    return ["--address", ray.get_runtime_context().gcs_address, "--port", "0"]


@pytest.fixture
def served(door: Door) -> Iterator[str]:
    with serving(door.app, door.hub) as url:
        yield url


@pytest.fixture
def trimtab(
    door: Door, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Trimtab:
    """Runs a command with the home that `up` would leave: (exit code, stdout, stderr)."""
    write_access(tmp_path, Access(served, door.token))
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    for name in ("TRIMTAB_URL", "TRIMTAB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run
