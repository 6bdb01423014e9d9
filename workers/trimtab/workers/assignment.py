"""What the run driver tells a worker: its place in the formation and where to begin."""

from dataclasses import dataclass, field

from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import Version
from trimtab.controller.observation import Horizon
from trimtab.controller.trajectory import Progress
from trimtab.workers.checkpoints import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One worker's part. Rank and world size are those of its first group, for a newcomer as far as is known."""

    run: str
    spec: RunSpec
    rank: int
    world_size: int
    formation: int
    version: Version
    progress: Progress = field(default_factory=Progress)
    checkpoint: Place | None = None  # to begin from
    checkpoints: Place  # where the run keeps its own
    checkpoint_steps: int | None = 500  # between two checkpoints; 0: at the end only; None: none at all
    keep_checkpoints: int = 2
    worker: str = ""  # this worker's name among the run's
    store: tuple[str, int] = ("127.0.0.1", 0)  # where groups come together
    joins: bool = False  # a newcomer: it joins a group when it has come to `batches`; else the next one at once
    device: str = "cpu"
    backend: str = "gloo"  # of the process group
    arguments: tuple[str, ...] = ()  # the script's own

    def horizon(self, dataset_size: int | None) -> Horizon | None:
        """Where the run ends. Raises ValueError for epochs of a data set without a size."""
        if self.spec.epochs is None:
            return self.spec.horizon
        if dataset_size is None:
            raise ValueError("an iterable has no epochs: give the horizon in samples or steps")
        return Horizon(self.spec.epochs * dataset_size)
