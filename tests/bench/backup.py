"""What a home of some size takes: `backup_s`, `restore_s`, and `start_s` until a controller has folded its journal.

The home is that of `replay.py`: one run of `--observations` control ticks under three policies. Four a second make
100,000 of them 7 hours.

    python tests/bench/backup.py [--observations 100000] [--seed 0]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from replay import write
from stats import report, say

from trimtab.api.backup import backup, restore
from trimtab.controller.controller import Controller
from trimtab.controller.home import JOURNAL, METRICS
from trimtab.controller.journal import SqliteJournal


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-", dir=options.directory) as directory:
        home, copied, elsewhere = (Path(directory) / name for name in ("home", "copied", "elsewhere"))
        home.mkdir()
        write(home, options.observations, np.random.default_rng(options.seed))
        say(f"{options.observations:,} observations written")
        begun = time.perf_counter()
        made = backup(home, copied)
        backed_up = time.perf_counter()
        restore(copied, elsewhere)
        restored = time.perf_counter()
        Controller(SqliteJournal(elsewhere / JOURNAL), elsewhere / METRICS).close()
        started = time.perf_counter()
    report(
        "backup",
        backup_s=backed_up - begun,
        restore_s=restored - backed_up,
        start_s=started - restored,
        entries=made.entries,
        megabytes=made.bytes / 1e6,
        seed=options.seed,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", help="Where to write; on the disk that counts.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
