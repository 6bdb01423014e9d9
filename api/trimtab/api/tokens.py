"""Tokens and sessions: who may come in. Only hashes of tokens are stored, in a file that only its owner can read."""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path

from trimtab.controller.errors import Refused

SESSION_S = 30 * 24 * 3600
log = logging.getLogger(__name__)


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
    created: float = 0.0  # unix seconds; 0: before that was noted
    expires: float | None = None  # unix seconds; None: never
    sha256: str = field(default="", repr=False)  # of the token, which is random enough to need no salt


class Tokens:
    """The tokens of one installation, kept in `path`.

    Whatever another process changes there counts from the next request on. A session is signed with the
    installation's secret and not stored, so it outlives a restart of the API; it ends with its token, whose digest is
    part of what is signed.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._entries: dict[str, Identity] = {}
        self._secret = secrets.token_hex(32)
        self._seen: tuple[int, int] | None = None  # of the file as it was read last
        with self._changing():
            pass  # there is a file from now on

    def _current(self) -> dict[str, Identity]:
        """The tokens as the file has them now."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return self._entries
        seen = (status.st_ino, status.st_mtime_ns)  # the file is never written to, only replaced
        if seen != self._seen:
            kept = json.loads(self._path.read_text())
            self._secret = kept["secret"]
            entries = (Identity(**entry | {"role": Role[entry["role"].upper()]}) for entry in kept["tokens"])
            self._entries = {entry.name: entry for entry in entries}
            self._seen = seen
        return self._entries

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Identity]]:
        """The present tokens, to change them while nobody else does; they are stored at the end."""
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            present = dict(self._current())
            yield present
            if present != self._entries or not self._path.exists():
                tokens = [asdict(entry) | {"role": entry.role.word} for entry in present.values()]
                write_private(self._path, json.dumps({"secret": self._secret, "tokens": tokens}, indent=2))
        finally:
            os.close(lock)

    def new(self, name: str, role: Role, expires: float | None = None, by: str = "", replace: bool = True) -> str:
        """Make a token; this is the only time that it is seen. Unless it may replace one of that name, such a one is
        a refusal."""
        token = secrets.token_urlsafe(32)
        with self._changing() as entries:
            if name in entries and not replace:
                message = f"there is a token {name!r} already; remove it, or choose another name"
                raise Refused("token-exists", message, {"name": message})
            entries[name] = Identity(name, role, self._clock(), expires, _digest(token))
        log.info("token %s (%s) was made%s", name, role.word, f" by {by}" if by else "")
        return token

    def remove(self, name: str, by: str = "") -> None:
        """End a token and its sessions at once."""
        with self._changing() as entries:
            if name not in entries:
                raise Refused("token-not-found", f"there is no token {name!r}")
            gone = entries.pop(name)
            lasting = (one for one in entries.values() if one.role is Role.ADMIN and one.expires is None)
            if gone.role is Role.ADMIN and not any(lasting):
                message = f"{name} is the last token of an admin that does not expire; make another one first"
                raise Refused("last-admin", message)
        log.info("token %s was removed%s", name, f" by {by}" if by else "")

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._current().values())

    def __contains__(self, identity: Identity) -> bool:
        """Whether who came in as `identity` may still be here."""
        return self._current().get(identity.name) == identity and not self._over(identity.expires)

    def _over(self, expires: float | None) -> bool:
        return expires is not None and expires <= self._clock()

    def identify(self, token: str) -> Identity | None:
        digest = _digest(token)
        found = None
        for entry in self._current().values():  # all of them, so that the time tells nothing
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return None if found is None or self._over(found.expires) else found

    def open_session(self, identity: Identity) -> str:
        """The value of a session's cookie."""
        expires = str(int(self._clock()) + SESSION_S)
        return f"{identity.name}.{expires}.{self._signature(identity, expires)}"

    def of_session(self, cookie: str) -> Identity | None:
        name, _, rest = cookie.partition(".")
        expires, _, signature = rest.partition(".")
        entry = self._current().get(name)
        if entry is None or not expires.isdecimal() or not signature.isascii():
            return None
        if not hmac.compare_digest(self._signature(entry, expires), signature) or self._over(int(expires)):
            return None
        return None if self._over(entry.expires) else entry

    def _signature(self, entry: Identity, expires: str) -> str:
        text = f"{entry.name}.{expires}.{entry.sha256}"
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
