"""Where Trimtab keeps its journal, metrics, tokens and checkpoints."""

import os
from pathlib import Path


def home() -> Path:
    """`TRIMTAB_HOME`, or `~/.trimtab`."""
    return Path(os.environ.get("TRIMTAB_HOME") or "~/.trimtab").expanduser().absolute()
