"""How Trimtab's own processes log to their standard error: as text, or with `TRIMTAB_LOG=json` one object a line."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, get_args

VARIABLE = "TRIMTAB_LOG"
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
KNOWN = ("run", "rank", "version", "job")  # what `extra` of a record, or its process, may know

Format = Literal["text", "json"]
Known = Callable[[], Mapping[str, object]]


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger and message; run, rank, version and job where known; exception if any."""

    def __init__(self, known: Known = dict) -> None:
        """`known` is asked with every record for what holds of the whole process."""
        super().__init__()
        self._known = known

    def format(self, record: logging.LogRecord) -> str:
        own = {key: value for key, value in vars(record).items() if key in KNOWN}
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._known(),
            **own,
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def configure(known: Known = dict) -> None:
    """Let this process, which is Trimtab's own, log from INFO on in the format that the environment asks for."""
    wanted = os.environ.get(VARIABLE) or "text"
    logging.basicConfig(level=logging.INFO, handlers=[_handler(wanted, known)])
    logging.captureWarnings(wanted == "json")  # Python's own would be lines of another kind
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")  # what Ray itself uses
    if wanted not in get_args(Format):
        logging.getLogger(__name__).warning("%s must be text or json, got %r: text it is", VARIABLE, wanted)


def show() -> None:
    """Let a process that is somebody else's show what Trimtab logs, from INFO on, unless it has a way of its own."""
    ours = logging.getLogger("trimtab")
    if not ours.hasHandlers():
        ours.addHandler(_handler(os.environ.get(VARIABLE) or "text"))
        ours.setLevel(logging.INFO)


def _handler(wanted: str, known: Known = dict) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(known) if wanted == "json" else logging.Formatter(TEXT))
    return handler
