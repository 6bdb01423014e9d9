"""The operations guide: what it names is there, and each command of Trimtab's in it is one."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from trimtab.api.cli import app

ROOT = Path(__file__).parents[2]
COMMAND: Any = typer.main.get_command(app)
GUIDES = [ROOT / "docs" / "operations.md", ROOT / "deploy" / "README.md"]


def faults(text: str, folder: Path) -> list[str]:
    """What a guide names and is not there."""
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    named = set(re.findall(r"(?<![\w/.])(?:tests|deploy|examples)/[\w./-]*\w", text))
    benches = {f"tests/bench/{name}.py" for name in re.findall(r"make bench NAME=(\w+)", text)}
    found = [f"no {link}" for link in sorted(links) if not (folder / link).exists()]
    found += [f"no {path}" for path in sorted(named | benches) if not (ROOT / path).exists()]
    return found + [told for line in commands(text) if (told := refusal(line))]


def commands(text: str) -> list[str]:
    """Commands of Trimtab's: lines of their own, or between backticks."""
    blocks = re.findall(r"^ {4}(.+)$", text, re.MULTILINE)
    lines = [found.group(1) for line in blocks if (found := re.search(r"(?:^|\$\()(trimtab [^#)]+)", line))]
    inline = [line for line in re.findall(r"`(trimtab [^`]+)`", text) if not {"<", "…"} & set(line)]
    return [line.strip() for line in lines + inline]


def refusal(line: str) -> str:
    """Why the command line would not take it; "" if it would."""
    command, parent = COMMAND, None
    words = shlex.split(line)[1:]
    try:
        while True:
            context = command.make_context("trimtab", list(words), parent=parent)
            if not hasattr(command, "commands"):
                return ""
            _, inner, words = command.resolve_command(context, [*context._protected_args, *context.args])
            command, parent = inner, context
    except Exception as error:  # of whichever click it is that typer brings
        return f"{line}: {getattr(error, 'format_message', error.__str__)()}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_what_a_guide_names_is_there(guide: Path) -> None:
    assert faults(guide.read_text(), guide.parent) == []


def test_it_has_commands() -> None:
    assert len(commands(GUIDES[0].read_text())) > 15


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("    trimtab backup --nowhere DEST\n", "No such option: --nowhere"),
        ("see `trimtab restor SRC`\n", "No such command 'restor'"),
        ("    export A=$(trimtab token new)   # a name is missing\n", "Missing argument 'NAME'"),
        ("[here](../deploy/nowhere.yaml)\n", "no ../deploy/nowhere.yaml"),
        ("as in deploy/nowhere/file.yaml\n", "no deploy/nowhere/file.yaml"),
        ("`make bench NAME=nothing`\n", "no tests/bench/nothing.py"),
    ],
)
def test_a_guide_that_is_wrong_is_found_out(broken: str, told: str) -> None:
    assert any(told in fault for fault in faults(broken, GUIDES[0].parent))
