"""Backups of a home in use: whole or absent, nothing acknowledged missing; and homes of every release are opened."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))  # for `homes`, which is a script too

from homes import EXPECTED, JOB, RUN, Home, decisions, losses, rules, state
from plain import PlainJobServer

from trimtab.api import backup as module
from trimtab.api.backup import CONTENTS, Backup, BackupError, backup, restore, verify
from trimtab.api.cli import main
from trimtab.api.home import TOKENS
from trimtab.api.tokens import Role, Tokens
from trimtab.controller.controller import Controller
from trimtab.controller.errors import Refused
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.journal import JournalUnavailable, SqliteJournal, examine, read_only
from trimtab.controller.journal import sqlite as journals
from trimtab.controller.metrics import MetricReader
from trimtab.controller.policies import kinds
from trimtab.controller.recorded import replay_recorded

GOLDEN = EXPECTED.parent
RELEASES: dict[str, Any] = json.loads(EXPECTED.read_text())
WRITER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(GOLDEN)!r})
from homes import RUN, Home
home = Home(Path(sys.argv[1]), plateau={{"patience": 2}}, noise_scale={{}})
for i in range(100_000):
    reason = f"decision {{i}}"
    home.controller.pin(RUN, "momentum", i % 90 / 100, "ann", reason, None)
    print(reason, flush=True)
    if i % 10 == 0:
        home.tick(loss=1 + 1 / (1 + i), val_loss=1.0 + i % 5)
        home.write_out()
"""
ROUNDS = 6


class Writer:
    """A controller in a process of its own, which decides without a pause, and what it has acknowledged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.acknowledged: list[str] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.acknowledged.append(line.rstrip("\n"))

    def wait(self, more: int) -> list[str]:
        """What is acknowledged, once there is that much more of it."""
        wanted = len(self.acknowledged) + more
        while len(self.acknowledged) < wanted:
            assert self.process.poll() is None
            self._thread.join(0.005)
        return list(self.acknowledged)

    def end(self) -> None:
        self.process.kill()
        self._thread.join()


@contextmanager
def writing(home: Path) -> Iterator[Writer]:
    command = [sys.executable, "-c", WRITER, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        writer = Writer(process)
        try:
            yield writer
        finally:
            writer.end()


def lost(acknowledged: list[str], copied: Path) -> list[str]:
    """Of the decisions that were acknowledged those that a home, or a copy of one, does not have."""
    with closing(read_only(copied / JOURNAL)) as journal:
        there = {reason for _, _, reason in decisions([entry.event for entry in journal.read(run=RUN)])}
    return [reason for reason in acknowledged if reason not in there]


def test_a_backup_of_a_home_in_use_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with writing(home) as writer:
        Tokens(home / TOKENS).new("eve", Role.VIEWER)
        for i in range(ROUNDS):
            acknowledged = writer.wait(40)
            made = backup(home, tmp_path / f"copy {i}")
            assert lost(acknowledged, tmp_path / f"copy {i}") == []
            assert made == verify(tmp_path / f"copy {i}")
        writer.wait(20)  # it was not held up for good
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"copy {i}" for i in range(ROUNDS)), "home"]
    elsewhere = tmp_path / "else" / "where"
    assert restore(tmp_path / f"copy {ROUNDS - 1}", elsewhere) == made
    assert lost(acknowledged, elsewhere) == []
    assert replay_recorded(elsewhere, RUN).equal
    assert [token.name for token in Tokens(elsewhere / TOKENS)] == ["eve"]
    assert {path.stat().st_mode & 0o77 for path in elsewhere.rglob("*")} == {0}
    steps = [row.step for row in MetricReader(elsewhere / METRICS / f"{RUN}.metrics").table(["loss"])]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 200
    controller = Controller(SqliteJournal(elsewhere / JOURNAL), elsewhere / METRICS)
    assert controller.term == made.term + 1
    controller.pin(RUN, "momentum", 0.5, "ann", "afterwards", None)
    assert lost(["afterwards", *acknowledged], elsewhere) == []


def test_a_copy_of_the_file_alone_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `cp` would do: without its WAL a journal lacks what was not checkpointed yet."""

    def plainly(source: Path, destination: Path) -> Any:
        shutil.copyfile(source, destination)
        return examine(destination)

    monkeypatch.setattr(module, "copy", plainly)
    home, found = tmp_path / "home", 0
    home.mkdir()
    with writing(home) as writer:
        for i in range(3):
            acknowledged = writer.wait(200)
            try:
                backup(home, tmp_path / f"copy {i}")
            except BackupError:  # not even a table has been checkpointed
                found += 1
            else:
                found += bool(lost(acknowledged, tmp_path / f"copy {i}"))
    assert found


# ---- homes of every release ----------------------------------------------------------------------------------------


def test_this_version_has_a_home_kept_for_later_ones() -> None:
    assert version("trimtab") in RELEASES, "python tests/api/golden/homes.py makes it"
    assert {path.parent.name for path in GOLDEN.glob(f"*/{CONTENTS}")} == set(RELEASES)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("further", [(), ("ALTER TABLE leader ADD COLUMN host TEXT",)], ids=["this", "a later schema"])
def test_a_home_of_an_earlier_release_is_opened(
    release: str, further: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if further:
        monkeypatch.setattr(journals, "MIGRATIONS", (*journals.MIGRATIONS, further))
    expected, home = RELEASES[release], tmp_path / "home"
    copied = restore(GOLDEN / release, home)
    controller = Controller(SqliteJournal(home / JOURNAL), home / METRICS, job_server=PlainJobServer())
    assert controller.term == copied.term + 1
    assert examine(home / JOURNAL).schema == len(journals.MIGRATIONS)
    run = controller._live[RUN].run
    assert json.loads(json.dumps(state(run))) == expected["state"]
    with closing(read_only(home / JOURNAL)) as journal:
        events = [entry.event for entry in journal.read(run=RUN)]
    assert (len(events), decisions(events), rules(events)) == (
        expected["events"],
        expected["decisions"],
        expected["rules"],
    )
    if all(kinds()[kind].rule == rule for kind, rule in expected["rules"].items()):
        assert replay_recorded(home, RUN).equal
    else:
        with pytest.raises(Refused, match="cannot be run again"):
            replay_recorded(home, RUN)
    asked = controller.asked_job(JOB.submission_id)
    assert asked is not None
    assert (asked.request, asked.by) == (JOB, "ann")
    bearer = Tokens(home / TOKENS).identify(expected["token"])
    assert bearer is not None
    assert (bearer.name, bearer.role) == ("ann", Role.OPERATOR)
    assert losses(home) == expected["losses"]
    controller.pin(RUN, "lr", 0.01, "ann", "it goes on", None)
    assert lost(["it goes on"], home) == []


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "0.1.0", tmp_path / "copied"))


def declare(copied: Path) -> None:
    """Let `backup.json` say what there is."""
    told = json.loads((copied / CONTENTS).read_text())
    told["files"] = [module._digest(copied, piece["path"]).model_dump() for piece in told["files"]]
    (copied / CONTENTS).write_text(json.dumps(told))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newer(copied: Path) -> None:
    with closing(sqlite3.connect(copied / JOURNAL)) as connection:
        connection.execute("PRAGMA user_version = 99")
    declare(copied)


def malformed(copied: Path) -> None:
    with (copied / JOURNAL).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    declare(copied)


def listing(copied: Path, path: str) -> None:
    told = json.loads((copied / CONTENTS).read_text())
    told["files"][0]["path"] = path
    (copied / CONTENTS).write_text(json.dumps(told))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another byte in the journal": (lambda c: flip(c / JOURNAL), f"{JOURNAL} is not what was written there"),
    "another byte in metrics": (lambda c: flip(c / METRICS / f"{RUN}.metrics"), "is not what was written there"),
    "a file is missing": (lambda c: (c / TOKENS).unlink(), "is no whole backup: .* take another one"),
    "no contents": (lambda c: (c / CONTENTS).unlink(), "is no whole backup: .* take another one"),
    "contents cut off": (lambda c: (c / CONTENTS).write_text("{"), "cannot be read"),
    "a malformed journal": (malformed, "malformed|not a database|in database|restore"),
    "a newer journal": (newer, "schema 99 was written by a newer Trimtab.*upgrade Trimtab"),
    "a path that leaves": (lambda c: listing(c, f"{METRICS}/../../x"), "no file of a home"),
    "a path of elsewhere": (lambda c: listing(c, "/etc/passwd"), "no file of a home"),
    "no journal": (lambda c: listing(c, TOKENS), "it lists no journal"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_backup_is_refused(how: str, copied: Path, tmp_path: Path) -> None:
    break_, told = BROKEN[how]
    break_(copied)
    with pytest.raises(BackupError, match=told):
        restore(copied, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_in_use_or_not_empty_is_left_alone(copied: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    scene = Home(home)
    with pytest.raises(BackupError, match="is in use by a controller"):
        restore(copied, home)
    scene.controller.close()
    with pytest.raises(BackupError, match=f"is not empty: it holds {JOURNAL}, {METRICS}; name another folder"):
        restore(copied, home)
    assert len(scene.start().changes(RUN)) == 1


def test_an_empty_folder_becomes_a_home(copied: Path, tmp_path: Path) -> None:
    """A volume of its own, say, in whose place no folder can be moved."""
    home = tmp_path / "home"
    (home / "lost+found").mkdir(parents=True)
    assert restore(copied, home).entries == examine(home / JOURNAL).entries
    assert {path.name for path in home.iterdir()} == {JOURNAL, METRICS, TOKENS, "lost+found"}


def test_a_journal_that_came_meanwhile_is_not_replaced(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(module, "_check_free", lambda home: (home / JOURNAL).write_text("of a controller"))
    with pytest.raises(BackupError, match=r"is not whole: .* exists"):
        restore(copied, home)
    assert (home / JOURNAL).read_text() == "of a controller"


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    Home(home).write_out()
    (tmp_path / "there").mkdir()
    with pytest.raises(BackupError, match="is there already; name a folder that is not"):
        backup(home, tmp_path / "there")
    with pytest.raises(BackupError, match=r"no journal in .*; name the controller's home with --home"):
        backup(tmp_path / "there", tmp_path / "copied")
    with pytest.raises(BackupError, match=r"No such file or directory.*check .* for space and rights"):
        backup(home, tmp_path / "missing" / "copied")

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackupError, match=r"No space left on device; check .* for space and rights"):
        backup(home, tmp_path / "copied")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "there"}


def test_a_newer_journal_is_neither_backed_up_nor_opened(copied: Path, tmp_path: Path) -> None:
    newer(copied)
    for refused in (lambda: backup(copied, tmp_path / "again"), lambda: SqliteJournal(copied / JOURNAL)):
        with pytest.raises((BackupError, JournalUnavailable), match=r"newer Trimtab, this one knows up to .*upgrade"):
            refused()


# ---- commands ------------------------------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trimtab(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return int(end.value.code or 0), *capsys.readouterr()

    home, copied, elsewhere = tmp_path / "home", str(tmp_path / "copied"), str(tmp_path / "elsewhere")
    home.mkdir()
    Home(home).write_out()
    code, out, _ = trimtab("--home", str(home), "backup", copied)
    assert (code, out.endswith(f"backed up to {copied}\n"), "1 run, " in out) == (0, True, True)
    code, out, _ = trimtab("restore", copied, "--home", elsewhere, "--json")
    assert (code, Backup.model_validate_json(out)) == (0, verify(tmp_path / "copied"))
    code, _, err = trimtab("restore", copied, "--home", elsewhere)
    assert (code, err.startswith(f"trimtab: {elsewhere} is not empty: ")) == (1, True)
    code, _, err = trimtab("--home", str(home), "backup", copied)
    assert (code, err) == (1, f"trimtab: {copied} is there already; name a folder that is not\n")
