"""The policy `scale_workers`: more workers while throughput rises by enough."""

from typing import ClassVar

from pydantic import Field

from trimtab.controller.policies.growth import Growth
from trimtab.controller.sync import WORKERS

__all__ = ["ScaleWorkers"]


class ScaleWorkers(Growth):
    """Grow the run by one worker while throughput rises by `alpha` / n; else give the last back, and end.

    With T(n) the throughput of n workers, n x the mean of the samples that one takes a second over the second half of
    a window, one more is asked for while

        T(n) >= (1 + alpha / n) T(n - 1)

    Linear growth is 1 / (n - 1): `alpha` 1/3 asks a sixth of that of the second worker, nearly a third of later ones.
    Readings more than 1.5 times off the window's median, such as one with a checkpoint in it, are left out.

    The number of workers is a wish: newcomers start while training goes on, and nothing is measured until the run
    trains on what was wished. If that has not come after `patience` observations, since the cluster has no room, the
    wish goes back to what there is. T(n) is compared with T(n - 1) at the same batch only, but for what the run itself
    makes of it in the moment of a resize: where it has moved by more than 15 % otherwise, n - 1 is measured anew, three
    times at most. At the end the policy rests for good; delete it and put it again to begin once more.

    Source: Mai et al. 2020 (KungFu, OSDI), elastic scaling.
    """

    kind: ClassVar[str] = "scale_workers"
    source: ClassVar[str] = "Mai et al. 2020, KungFu: Making Training in Distributed Machine Learning Adaptive, OSDI"
    param: ClassVar[str] = WORKERS

    alpha: float = Field(
        1 / 3,
        ge=0,
        le=10,
        description="The n-th worker must raise throughput by this, divided by n; 1 asks for about linear growth.",
        json_schema_extra={"unit": "x 1/n"},
    )

    def _asked(self, size: int) -> float:
        return self.alpha / size
