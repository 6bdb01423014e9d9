"""The unit, by systemd's own checks: that it is well formed, and how little it may do."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from commands import refusal

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "trimtab.service"
ANALYZE = shutil.which("systemd-analyze")
MAX_EXPOSURE = 2.0  # of 10, by systemd 252's own reckoning

pytestmark = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze (Debian: apt-get install systemd)")


def _laid(folder: Path, unit: str, gpu: str = "") -> Path:
    """As it would lie in /etc/systemd/system, with the tests' own environment in place of /opt/trimtab."""
    path = folder / "trimtab.service"
    path.write_text(unit.replace("/opt/trimtab/bin", sysconfig.get_path("scripts")))
    if gpu:
        dropins = folder / "trimtab.service.d"
        dropins.mkdir()
        (dropins / "gpu.conf").write_text(gpu)
    return path


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(ANALYZE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _verify(unit: Path) -> str:
    """What systemd holds against the unit, not against others that it names."""
    done = _analyze("verify", "--man=no", "--recursive-errors=no", unit)
    told = "".join(line for line in done.stderr.splitlines(keepends=True) if "trimtab" in line)
    assert bool(done.returncode) == bool(told), done.stderr
    return told


@pytest.mark.parametrize("gpu", ["", (FOLDER / "gpu.conf").read_text()])
def test_systemd_takes_it(gpu: str, tmp_path: Path) -> None:
    assert _verify(_laid(tmp_path, UNIT.read_text(), gpu)) == ""


@pytest.mark.parametrize(
    ("sound", "broken", "told"),
    [
        ("ProtectSystem=", "ProtectSytem=", "ProtectSytem"),
        ("Restart=on-failure", "Restart=on-fail", "on-fail"),
        ("ExecStart=/opt", "ExecStart=/opt/nowhere", "not executable"),
        ("KillMode=mixed", "KillMode=gently", "gently"),
    ],
)
def test_systemd_refuses_a_broken_copy(sound: str, broken: str, told: str, tmp_path: Path) -> None:
    unit = UNIT.read_text()
    assert unit.count(sound) == 1
    assert told in _verify(_laid(tmp_path, unit.replace(sound, broken)))


def test_systemd_refuses_a_broken_drop_in(tmp_path: Path) -> None:
    gpu = (FOLDER / "gpu.conf").read_text().replace("DevicePolicy=closed", "DevicePolicy=shut")
    assert "shut" in _verify(_laid(tmp_path, UNIT.read_text(), gpu))


def test_it_may_do_little(tmp_path: Path) -> None:
    threshold = f"--threshold={MAX_EXPOSURE * 10:.0f}"
    security = ("security", "--offline=yes", threshold)
    sound = _laid(tmp_path, UNIT.read_text())
    assert _analyze(*security, sound).returncode == 0
    lax = _laid(tmp_path, UNIT.read_text().replace("SystemCallFilter=", "#").replace("CapabilityBoundingSet=", "#"))
    assert _analyze(*security, lax).returncode == 1


def test_its_commands_are_trimtabs() -> None:
    unit = UNIT.read_text()
    (start,) = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)
    (options,) = re.findall(r"TRIMTAB_OPTIONS=(.*)", unit)
    (submit,) = re.findall(r"^#     (trimtab submit .*)", unit, re.MULTILINE)
    assert refusal(start.replace("$TRIMTAB_OPTIONS", options)) is None
    assert refusal(submit) is None
    assert refusal(start.replace("$TRIMTAB_OPTIONS", "--alow-host x")) is not None
