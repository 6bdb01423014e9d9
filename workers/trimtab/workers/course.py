"""Where a rank stands beside its model: what must be alike on all ranks, and what of it a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.controller.trajectory import Progress
from trimtab.workers.guard import Guard


@dataclass(slots=True)
class Course:
    """Moves on with every step, and goes back with the model."""

    progress: Progress
    formation: int
    skipped: int = 0  # [samples] of the stream that roll backs have left out so far
    rolled_back: int = 0  # number of the newest roll back that was made
    saved: int = -1  # step of the newest checkpoint
    asked: int = 0  # checkpoints that versions have asked for
    nonfinite: int = 0  # steps in a row whose gradient was not finite
    guard: Guard = field(default_factory=Guard)

    @property
    def read(self) -> int:
        """The place in the stream of samples."""
        return self.progress.samples + self.skipped

    def kept(self) -> dict[str, Any]:
        """For a checkpoint: numbers and containers of them."""
        return {
            "progress": [self.progress.steps, self.progress.samples],
            "rolled_back": self.rolled_back,
            "skipped": self.skipped,
            "guard": self.guard.state(),
        }

    def told(self) -> dict[str, Any]:
        """For a rank that takes it over as it is."""
        return self.kept() | {
            "formation": self.formation,
            "saved": self.saved,
            "asked": self.asked,
            "nonfinite": self.nonfinite,
        }

    def take(self, told: Mapping[str, Any]) -> None:
        """Go on from what `kept` or `told` gave; what is not in it stays."""
        self.progress = Progress(*told["progress"])
        self.skipped = told.get("skipped", 0)
        self.guard.restore(told.get("guard"))
        for name in ("rolled_back", "formation", "saved", "asked", "nonfinite"):
            setattr(self, name, told.get(name, getattr(self, name)))
