"""All that is kept of a run's metrics: every step reduced over ranks, and a window of each rank's own values."""

from pathlib import Path

from trimtab.controller.metrics.block import Block
from trimtab.controller.metrics.ranks import RankWriter
from trimtab.controller.metrics.writer import MetricWriter


class MetricStore:
    """Appends to both; `path` is the file of the reduced ones. Methods raise OSError if the disk does not take it."""

    def __init__(self, path: Path) -> None:
        self._reduced = MetricWriter(path)
        self._ranks = RankWriter(ranks_of(path))

    def append(self, block: Block) -> None:
        self._reduced.append(block)

    def append_ranks(self, block: Block) -> None:
        self._ranks.append(block)

    def rewind(self, step: int) -> None:
        """What was appended before at later steps is void."""
        self._reduced.rewind(step)
        self._ranks.rewind(step)

    def flush(self) -> None:
        self._reduced.flush()
        self._ranks.flush()

    def close(self) -> None:
        self._reduced.close()
        self._ranks.close()


def file_of(folder: Path, run: str) -> Path:
    """The file of a run's values, reduced over its ranks, in the folder of all runs' metrics."""
    return folder / f"{run}.metrics"


def ranks_of(path: Path) -> Path:
    """The folder of the ranks' own values that belongs to a file of reduced ones."""
    return path.with_suffix(".ranks")
