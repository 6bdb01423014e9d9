"""Where Trimtab keeps its journal, metrics, tokens and checkpoints, for whom, and on which Ray."""

import getpass
import os
from pathlib import Path

OWNER = "TRIMTAB_OWNER"
CLUSTER = "TRIMTAB_CLUSTER"  # the address of the Ray that runs a job: of several on a machine Ray may name another
WANTS_TOKEN = (
    "wants its token: start Trimtab and its commands with RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the token's file "
    "(`ray get-auth-token`)"
)
JOURNAL = "journal.sqlite"  # in the home, with what SQLite keeps beside it
METRICS = "metrics"
RAY = "ray"  # the address of the Ray on which this home's controller was last started


def home() -> Path:
    """`TRIMTAB_HOME`, or `~/.trimtab`."""
    return Path(os.environ.get("TRIMTAB_HOME") or "~/.trimtab").expanduser().absolute()


def owner() -> str:
    """Whose run it is that this process starts: `TRIMTAB_OWNER`, which a job is given, or whoever is logged in."""
    try:
        return os.environ.get(OWNER) or getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as containers have them
        return ""
