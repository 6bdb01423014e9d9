"""A copy of a home, taken while a controller writes there, and a home made from such a copy.

A copy is a folder, whole or absent:

    backup.json       when and by what it was made; of each other file its size and SHA-256
    journal.sqlite    the journal as it stood between two commits
    tokens.json       who may come in; only hashes of tokens
    metrics/          those of the journal's runs, copied after it: no older than it, and lossy by contract

Not in it: `client.json`, which holds a token in plain and is written anew by `trimtab up`; checkpoints, which are whole
or absent by themselves and may lie anywhere.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trimtab.api.home import TOKENS
from trimtab.controller import durable
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.jobs import Outbox
from trimtab.controller.journal import JournalUnavailable, copy, examine
from trimtab.controller.metrics.store import file_of, ranks_of

CONTENTS = "backup.json"
RESTORING = "restoring"  # in a home that is being made
LOST = "lost+found"  # stands at the top of a file system of its own
PIECE = 2**20  # bytes that are read at once


class BackupError(Exception):
    """No copy, or no home, was made; the text says what to do."""


class Piece(BaseModel):
    """One file of a copy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str  # within the copy
    bytes: int = Field(ge=0)
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        known = path in (JOURNAL, TOKENS) or PurePosixPath(path).parts[:1] == (METRICS,)
        if not known or ".." in PurePosixPath(path).parts:
            raise ValueError(f"no file of a home: {path!r}")
        return path


class Backup(BaseModel):
    """What `backup.json` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    trimtab: str  # the version that made it
    made: datetime
    journal_schema: int
    term: int
    entries: int  # of the journal
    runs: int
    files: tuple[Piece, ...]

    @field_validator("files")
    @classmethod
    def _has_a_journal(cls, files: tuple[Piece, ...]) -> tuple[Piece, ...]:
        if JOURNAL not in (piece.path for piece in files):
            raise ValueError("it lists no journal")
        return files

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.files)


def backup(home: Path, destination: Path) -> Backup:
    """Copy the home into the folder `destination`, which must not be there yet.

    Every decision that was acknowledged before the call is in the copy. Raises BackupError; then there is no
    `destination`.
    """
    if not (home / JOURNAL).exists():
        raise BackupError(f"there is no journal in {home}; name the controller's home with --home, on its own machine")
    if destination.exists():
        raise BackupError(f"{destination} is there already; name a folder that is not")
    draft = destination.with_name(f"{destination.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(mode=0o700)
        made = _copy(home, draft)
        draft.rename(destination)
        durable.sync(destination.absolute().parent)
    except JournalUnavailable as error:
        raise BackupError(f"no backup was made: {error}") from error
    except OSError as error:
        raise BackupError(f"no backup was made: {error}; check {destination.parent} for space and rights") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return made


def restore(source: Path, home: Path) -> Backup:
    """Make `home`, a folder that is empty or not there yet, from a copy, all of which is checked first.

    The journal comes last: as long as it is missing nothing was restored. Raises BackupError.
    """
    found = verify(source)
    _check_free(home)
    try:
        durable.make(home)
        draft = home / RESTORING
        for piece in found.files:
            if _write(source, draft, piece.path) != piece:
                raise BackupError(f"{source / piece.path} changed while it was read; empty {home} and try again")
        _sync_folders(draft)
        for name in (METRICS, TOKENS):
            if (draft / name).exists():
                (draft / name).rename(home / name)
        os.link(draft / JOURNAL, home / JOURNAL)  # unlike a rename, never in the place of one that is there
        shutil.rmtree(draft)
        durable.sync(home)
    except OSError as error:
        raise BackupError(f"{home} is not whole: {error}; empty it and try again") from error
    return found


def verify(source: Path) -> Backup:
    """Check a copy: that each file is there as it was written, and the journal is sound and not too new."""
    try:
        found = Backup.model_validate_json((source / CONTENTS).read_bytes())
        for piece in found.files:
            if _digest(source, piece.path) != piece:
                raise BackupError(f"{source / piece.path} is not what was written there; take another backup")
        examine(source / JOURNAL)
    except ValidationError as error:
        what = error.errors()[0]
        raise BackupError(
            f"{source / CONTENTS} cannot be read ({what['msg']}); take another backup, or the Trimtab that made it"
        ) from error
    except JournalUnavailable as error:
        raise BackupError(str(error)) from error
    except OSError as error:
        raise BackupError(f"{source} is no whole backup: {error}; take another one") from error
    return found


def _copy(home: Path, draft: Path) -> Backup:
    holds = copy(home / JOURNAL, draft / JOURNAL)
    pieces = [_digest(draft, JOURNAL)]
    if (home / TOKENS).exists():
        pieces.append(_write(home, draft, TOKENS))
    runs = [run for run in holds.runs if not Outbox.owns(run)]
    for path in _metrics(home, runs):
        with suppress(FileNotFoundError):  # the older of a run's files of ranks' own values may just have gone
            pieces.append(_write(home, draft, path.relative_to(home).as_posix()))
    made = Backup(
        trimtab=version("trimtab"),
        made=datetime.now(UTC),
        journal_schema=holds.schema,
        term=holds.term,
        entries=holds.entries,
        runs=len(runs),
        files=tuple(pieces),
    )
    with (draft / CONTENTS).open("x") as contents:
        contents.write(made.model_dump_json(indent=2))
        contents.flush()
        os.fsync(contents.fileno())
    _sync_folders(draft)
    return made


def _metrics(home: Path, runs: Sequence[str]) -> Iterator[Path]:
    for run in runs:
        path = file_of(home / METRICS, run)
        if path.exists():
            yield path
        yield from sorted(ranks_of(path).glob("*"))


def _write(source: Path, target: Path, path: str) -> Piece:
    """Copy a file into another folder, up to where it ends now; what follows is written later."""
    with (source / path).open("rb") as original:
        (target / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(target / path, "xb", opener=_private) as copied:
            size, end, total = 0, os.fstat(original.fileno()).st_size, sha256()
            while data := original.read(min(PIECE, end - size)):
                copied.write(data)
                total.update(data)
                size += len(data)
            copied.flush()
            os.fsync(copied.fileno())
    return Piece(path=path, bytes=size, sha256=total.hexdigest())


def _digest(folder: Path, path: str) -> Piece:
    with (folder / path).open("rb") as file:
        return Piece(path=path, bytes=os.fstat(file.fileno()).st_size, sha256=file_digest(file, "sha256").hexdigest())


def _check_free(home: Path) -> None:
    there = {path.name for path in home.iterdir()} - {LOST} if home.exists() else set()
    if f"{JOURNAL}-wal" in there:
        raise BackupError(f"{home} is in use by a controller, or was when it was killed; name another folder")
    if there:
        raise BackupError(f"{home} is not empty: it holds {', '.join(sorted(there)[:5])}; name another folder")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folders(top: Path) -> None:
    for folder in (top, *(path for path in top.rglob("*") if path.is_dir())):
        durable.sync(folder)
