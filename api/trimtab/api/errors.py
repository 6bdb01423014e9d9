"""What a client of the API raises."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A request that was refused, or that nobody answered. Its text is one sentence with all that is known.

    status         of HTTP; 0 where nobody answered
    code           stable, as in the problem details that the API answers; "unreachable" where nobody answered,
                   "no-access" where it is not known whom to ask, "not-understood" where it was no Trimtab that answered
    fields         what is wrong with each field
    current        the present state, where the request was made on a stale revision
    retry_after_s  when to ask again, where the API has said so
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        fields: Mapping[str, str] | None = None,
        current: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = dict(fields or {})
        self.current = current
        self.retry_after_s = retry_after_s
        unnamed = [f"{field}: {message}" for field, message in self.fields.items() if message not in detail]
        super().__init__("; ".join([detail, *unnamed]))
