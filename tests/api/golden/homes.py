"""Keeps a home of this release: `python tests/api/golden/homes.py`, when its version is about to be released.

A folder, named by the version, is what `trimtab backup` makes of a home in which a run was steered and a job submitted.
Every later version must restore and open it. `expected.json` beside the folders says what must be found there.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `plain`
sys.path.insert(0, str(Path(__file__).parents[2] / "controller" / "golden"))  # for `make`

from make import RUN, Scene, rules, state
from plain import PlainJobServer

from trimtab.api.backup import backup
from trimtab.api.home import TOKENS
from trimtab.api.tokens import Role, Tokens
from trimtab.controller.controller import Controller
from trimtab.controller.events import Versioned, decode
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.jobs import JobRequest
from trimtab.controller.journal import SqliteJournal
from trimtab.controller.metrics import MetricReader
from trimtab.controller.observation import Command

FOLDER = Path(__file__).parent
EXPECTED = FOLDER / "expected.json"
JOB = JobRequest(submission_id="nightly-41", entrypoint="python train.py")
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "noise_scale": {"first_window": 20, "window": 60},
    "warmup": {"steps": 100},
    "plateau": {"patience": 1, "factor": 0.5},
}


class Home(Scene):
    """A scene whose journal lies in a home, as an installation has it."""

    def start(self) -> Controller:
        journal = SqliteJournal(self.metrics.parent / JOURNAL)
        return Controller(journal, self.metrics, lambda: self.now, PlainJobServer())

    def events(self) -> list[str]:
        return [entry.event for entry in self.controller._journal.read(run=RUN)]

    def write_out(self) -> None:
        """As the actor does each second."""
        self.controller.heartbeat(RUN)
        self.controller.expire()


def steered(path: Path) -> Home:
    """What people and policies do, a crash and a roll back; the run is not at its end."""
    home = Home(path, **POLICIES)
    home.controller.link_job(RUN, JOB.submission_id)
    for i in range(5):
        home.tick(loss=2 - i / 5, checkpoint=i == 2, val_loss=1.0)
    home.controller.pin(RUN, "lr", 0.02, "ann", "too high", None)
    home.tick(val_loss=1.0)
    home.controller.unpin(RUN, "lr", "ann", "", None)
    home.controller.command(RUN, Command("rollback", "by hand"), "bob")
    home.go_back()
    home.tick(loss=1.4)
    home.restart()
    home.tick(loss=1.3, val_loss=0.9, checkpoint=True)
    home.controller.put_policy(RUN, "plateau", "plateau", {"patience": 3}, "shadow", "ann", "let it be", None)
    home.tick(loss=1.2)
    home.write_out()
    return home


def decisions(events: list[str]) -> list[list[str]]:
    """Who changed what and why, in order."""
    made = (event for event in map(decode, events) if isinstance(event, Versioned))
    return [[change.by, change.param, change.reason] for event in made for change in event.changes]


def losses(home: Path) -> list[float]:
    block = MetricReader(home / METRICS / f"{RUN}.metrics").block("loss")
    assert block is not None
    return [float(value) for value in block.columns["loss"]]


async def submit(home: Home) -> None:
    await home.controller.submit_job(JOB, "ann")


def main() -> None:
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        home = steered(path)
        asyncio.run(submit(home))
        token = Tokens(path / TOKENS).new("ann", Role.OPERATOR)
        backup(path, FOLDER / version("trimtab"))
        expected[version("trimtab")] = {
            "rules": rules(home.events()),
            "state": state(home.run),
            "events": len(home.events()),
            "decisions": decisions(home.events()),
            "losses": losses(path),
            "token": token,
        }
        home.controller.close()
    EXPECTED.write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
