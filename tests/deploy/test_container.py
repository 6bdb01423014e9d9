"""The Dockerfile: what a linter knows, and what it cannot know of this repository."""

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
LINTER = Path(sysconfig.get_path("scripts")) / "hadolint"


@pytest.fixture(scope="module")
def context() -> set[str]:
    """What `docker build` sends of this repository."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(ROOT), patterns) if (ROOT / path).is_file()}


def _lint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINTER), "--no-color", "--failure-threshold", "style", str(dockerfile)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _faults(dockerfile: Path, context: set[str]) -> Iterator[str]:
    """What would make another image than is meant, or none."""
    with dockerfile.open("rb") as file:
        parser = DockerfileParser(fileobj=file)
        lines = [(line["instruction"], line["value"]) for line in parser.structure]
        stages = parser.parent_images
    by_name = {name: [value for instruction, value in lines if instruction == name] for name, _ in lines}
    pinned = {
        one.name: str(one.specifier)
        for one in map(Requirement, (ROOT / "constraints.txt").read_text().splitlines()[1:])
    }
    (ray,) = [value.partition("=")[2] for value in by_name["ARG"] if value.startswith("RAY=")]
    if pinned["ray"] != f"=={ray}":
        yield f"Ray is {ray}, in constraints.txt {pinned['ray']}"
    if stages[-1] != f"rayproject/ray:{ray}-py311-cpu":
        yield f"the last stage is built on {stages[-1]}"
    if not any(re.match(r"python:3\.11-", stage) for stage in stages):
        yield "the wheel is built by another Python than that of Ray's image"
    (node,) = [match[1] for stage in stages if (match := re.match(r"node:(\d+)-", stage))]
    engine = json.loads((ROOT / "dashboards" / "web" / "package.json").read_text())["engines"]["node"]
    if f"{node}.99" not in SpecifierSet(engine):
        yield f"the page needs node {engine}"
    user = by_name["USER"][-1]
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        yield f"it runs as {user}"
    if "HEALTHCHECK" not in by_name or json.loads(by_name["CMD"][-1])[:2] != ["trimtab", "up"]:
        yield "it does not run Trimtab, or nobody knows whether it does"
    if "ENTRYPOINT" in by_name:
        yield "Ray's cluster launcher, which runs a shell in it, would not get one"
    for value in by_name["COPY"]:
        *sources, _target = value.split()
        if not sources[0].startswith("--from="):
            for source in sources:
                if not any(file == source or file.startswith(f"{source}/") for file in context):
                    yield f"{source} is not sent to be copied"


def test_the_linter_finds_nothing() -> None:
    done = _lint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_linter_refuses_a_broken_copy(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.read_text().replace(" --constraint constraints.txt", ""))
    done = _lint(broken)
    assert done.returncode == 1
    assert "DL3013" in done.stdout


def test_it_makes_the_image_that_is_meant(context: set[str]) -> None:
    assert list(_faults(DOCKERFILE, context)) == []


@pytest.mark.parametrize(
    ("sound", "broken", "told"),
    [
        ("ARG RAY=", "ARG RAY=1.", "Ray is 1."),
        ("USER 1000:100", "USER 0:0", "it runs as 0:0"),
        ("COPY api/trimtab", "COPY tests/api", "tests/api is not sent"),
        ("python:3.11-slim", "python:3.14-slim", "another Python"),
        ("node:22-", "node:18-", "the page needs node"),
        ("HEALTHCHECK", "# HEALTHCHECK", "nobody knows"),
        ('CMD ["trimtab"', 'ENTRYPOINT ["bash"]\nCMD ["trimtab"', "would not get one"),
    ],
)
def test_a_broken_copy_is_refused(sound: str, broken: str, told: str, context: set[str], tmp_path: Path) -> None:
    text = DOCKERFILE.read_text()
    assert text.count(sound) == 1
    copy = tmp_path / "Dockerfile"
    copy.write_text(text.replace(sound, broken))
    (fault,) = _faults(copy, context)
    assert told in fault


def test_nothing_private_or_stray_is_sent(context: set[str]) -> None:
    assert not [file for file in context if re.search(r"node_modules|__pycache__|\.env|secret|\.git/|/static/", file)]
    tops = {Path(file).parts[0] for file in context} - {".dockerignore"}
    assert tops == {
        *("api", "controller", "dashboards", "workers"),
        *("CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"),
    }
