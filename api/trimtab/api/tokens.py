"""Tokens and sessions: who may come in. Only hashes of tokens are stored, in a file that only its owner can read."""

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SESSION_S = 30 * 24 * 3600


class Role(IntEnum):
    """What a token's bearer may do; each role includes the ones before it.

    viewer    reads
    operator  policies, pins, pause, resume, stop, checkpoint, decay, rollback
    admin     all of that, and whatever runs code or hands out tokens
    """

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking; `name` stands in the journal beside what was changed."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class _Entry:
    identity: Identity
    digest: str  # SHA-256 of the token, which is random enough to need no salt


class Tokens:
    """The tokens of one installation, kept in `path`.

    A session is signed with the installation's secret and not stored, so it outlives a restart of the API; it ends
    with its token, whose digest is part of what is signed.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._secret = secrets.token_hex(32)
        if path.exists():
            self._load()
        else:
            self._save()

    def _load(self) -> None:
        kept = json.loads(self._path.read_text())
        self._secret = kept["secret"]
        for entry in kept["tokens"]:
            identity = Identity(entry["name"], Role[entry["role"].upper()])
            self._entries[identity.name] = _Entry(identity, entry["sha256"])

    def _save(self) -> None:
        tokens = [
            {"name": entry.identity.name, "role": entry.identity.role.word, "sha256": entry.digest}
            for entry in self._entries.values()
        ]
        write_private(self._path, json.dumps({"secret": self._secret, "tokens": tokens}, indent=2))

    def new(self, name: str, role: Role) -> str:
        """Make a token, in place of an earlier one of that name; this is the only time that it is seen."""
        token = secrets.token_urlsafe(32)
        self._entries[name] = _Entry(Identity(name, role), _digest(token))
        self._save()
        return token

    def identify(self, token: str) -> Identity | None:
        digest = _digest(token)
        found = None
        for entry in self._entries.values():  # all of them, so that the time tells nothing
            if hmac.compare_digest(entry.digest, digest):
                found = entry.identity
        return found

    def open_session(self, identity: Identity) -> str:
        """The value of a session's cookie."""
        expires = str(int(self._clock()) + SESSION_S)
        return f"{identity.name}.{expires}.{self._signature(self._entries[identity.name], expires)}"

    def of_session(self, cookie: str) -> Identity | None:
        name, _, rest = cookie.partition(".")
        expires, _, signature = rest.partition(".")
        entry = self._entries.get(name)
        if entry is None or not expires.isdecimal() or not signature.isascii():
            return None
        if not hmac.compare_digest(self._signature(entry, expires), signature) or int(expires) < self._clock():
            return None
        return entry.identity

    def _signature(self, entry: _Entry, expires: str) -> str:
        text = f"{entry.identity.name}.{expires}.{entry.digest}"
        return hmac.new(self._secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, all of it or nothing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
