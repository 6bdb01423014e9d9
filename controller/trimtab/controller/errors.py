"""What a caller of the controller must reckon with: a refusal, or no answer."""

from collections.abc import Mapping
from typing import Any


class Refused(Exception):
    """A request that cannot be granted, with a stable `code` and the offending fields; nothing has changed."""

    def __init__(
        self, code: str, message: str, fields: Mapping[str, str] | None = None, current: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(code, message, fields, current)
        self.code = code
        self.message = message
        self.fields = dict(fields or {})  # field -> what is wrong with it
        self.current = current  # the present state, where the request was made on a stale one

    def __str__(self) -> str:
        return self.message


class ControllerUnreachable(Exception):
    """The controller did not answer in time; it returns by itself, so try again."""
