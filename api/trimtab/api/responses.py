"""JSON as the API writes it: strict, so that NaN and the infinities travel as strings."""

from typing import Any

from pydantic_core import to_json
from starlette.responses import JSONResponse


class StrictJSON(JSONResponse):
    """A response in JSON that every parser takes."""

    def render(self, content: Any) -> bytes:
        return to_json(content, inf_nan_mode="strings", by_alias=True)
