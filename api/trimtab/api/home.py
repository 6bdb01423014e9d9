"""The folder where Trimtab keeps what outlives a process: journal, metrics, tokens, and how to reach the API."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trimtab.api.tokens import Role, Tokens, write_private
from trimtab.controller import durable

TOKENS = "tokens.json"
ACCESS = "client.json"
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API answers, and the token that opens it."""

    url: str
    token: str = field(repr=False)

    @property
    def page(self) -> str:
        """The page's address; a fragment never leaves the browser, so the token stands in no log."""
        return f"{self.url}/#token={self.token}"


def read_access(home: Path) -> Access | None:
    """The access that tools on this machine use, if the API was ever started with this home."""
    try:
        kept = json.loads((home / ACCESS).read_text())
        return Access(kept["url"], kept["token"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_access(home: Path, access: Access) -> None:
    durable.make(home)
    write_private(home / ACCESS, json.dumps(asdict(access)))


def admin_token(home: Path, tokens: Tokens) -> str:
    """The token that `home` was first given; a new one if it was lost."""
    access = read_access(home)
    if access is not None and tokens.identify(access.token) is not None:
        return access.token
    return tokens.new(ADMIN, Role.ADMIN)
