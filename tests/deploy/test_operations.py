"""The operations guide: what it names is there, and each command of Trimtab's in it is one.

TRIMTAB_LONG=1 does what it says: all that needs no cluster, in its order, in two terminals.
"""

import os
import re
import shlex
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
from joined import running, until

from trimtab.api.cli import app

ROOT = Path(__file__).parents[2]
COMMAND: Any = typer.main.get_command(app)
GUIDES = [ROOT / "docs" / "operations.md", ROOT / "deploy" / "README.md"]
LONG = os.environ.get("TRIMTAB_LONG") == "1"
END_UP = "# Ctrl-C in the first terminal"


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


def section(name: str) -> list[str]:
    """The lines to be typed in a section of the guide, without what tells of them."""
    text = re.split(rf"^#+ {name}$", GUIDES[0].read_text(), flags=re.MULTILINE)[1]
    lines = re.findall(r"^ {4}(\S.*)$", re.split("^##", text, flags=re.MULTILINE)[0], re.MULTILINE)
    return [END_UP if line.startswith(END_UP) else line.partition("  #")[0].strip() for line in lines]


class Terminal:
    """A shell in the repository's root."""

    def __init__(self, environment: dict[str, str], ends: ExitStack) -> None:
        self.process = ends.enter_context(running(["bash"], environment))
        self.type(f"cd {shlex.quote(str(ROOT))}")

    def type(self, line: str) -> None:
        print(f"$ {line}", flush=True)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def until(self, word: str) -> str:
        """What is shown, up to a line with `word`."""
        assert self.process.stdout is not None
        shown: list[str] = []
        while not shown or word not in shown[-1]:
            shown.append(self.process.stdout.readline())
            assert shown[-1], f"no {word!r} in {''.join(shown)}"
            print(shown[-1], end="", flush=True)
        return "".join(shown)

    def run(self, line: str) -> str:
        """What the line prints; one that fails fails the test."""
        self.type(f'{line}\necho "ended: $?"')
        shown = self.until("ended: ")
        assert shown.endswith("ended: 0\n"), shown
        return shown


class Reader:
    """Somebody who does what the guide says, with `trimtab up` in a first terminal and the rest in a second."""

    def __init__(self, folder: Path, ends: ExitStack) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TRIMTAB_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ray = ends.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True))
        self._environment = own | {"HOME": str(folder), "PATH": path, "RAY_TMPDIR": ray, "NO_COLOR": "1"}
        self._checkpoints = folder / "trimtab-home" / "checkpoints"
        self._ends = ends
        self._run = "RUN"
        self._second = self._terminal()

    def _terminal(self) -> Terminal:
        terminal = Terminal(self._environment, self._ends)
        for line in section("One machine"):
            if "export " in line:  # what the tests run in is set up
                terminal.type(line.removeprefix("make setup && "))
        return terminal

    def follow(self, name: str) -> str:
        """Do all that a section says; what its last line printed."""
        shown = ""
        for line in section(name):
            if line == END_UP:
                self.end_up()
            elif re.fullmatch(r"trimtab (--home \S+ )?up", line):
                self.up(line)
            elif not line.startswith("make setup"):
                shown = self._second.run(line.replace("RUN", self._run))
            if line.startswith("trimtab stop"):
                assert self._training.process.wait(60) == 0
        return shown

    def up(self, line: str = "trimtab up") -> None:
        """On a Ray and a port of its own, for others may run on the machine."""
        self._first = self._terminal()
        self._first.type(f"exec {line} --address local --port 0")
        self._first.until("Trimtab is up: ")

    def end_up(self) -> None:
        self._first.process.send_signal(signal.SIGINT)
        assert self._first.process.wait(30) == 0

    def train(self) -> None:
        """A run as the guide starts one, with a checkpoint."""
        (line,) = (line for line in section("One machine") if line.startswith("trimtab run "))
        self._training = self._terminal()
        self._training.type(f"exec {line}")
        self._run = self._training.until(" · live page").splitlines()[-1].partition(" ")[0]
        until(lambda: any(self._checkpoints.glob(f"{self._run}/step-*")), 180)


@pytest.mark.skipif(not LONG, reason="takes minutes: TRIMTAB_LONG=1 runs it")
@pytest.mark.timeout(900)
def test_the_guide_is_followed(tmp_path: Path) -> None:
    with ExitStack() as ends:
        reader = Reader(tmp_path, ends)
        assert "finished" in reader.follow("One machine")
        reader.train()
        assert "finished" in reader.follow("Back up")
        reader.end_up()
        reader.up()
        reader.train()
        assert "finished" in reader.follow("Upgrade")
        tokens = reader.follow("Rotate tokens").splitlines()
        reader.end_up()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert [line.split()[0] for line in tokens] == ["token", "admin", "ended:"]
