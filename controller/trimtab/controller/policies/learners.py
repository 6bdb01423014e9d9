"""The policy `learners`: more learners a device while throughput rises by enough."""

from typing import ClassVar

from pydantic import Field

from trimtab.controller.policies.growth import Growth
from trimtab.controller.sync import LEARNERS

__all__ = ["Learners"]


class Learners(Growth):
    """Put one more learner on each device while that raises throughput by `gain`; else take the last back, and end.

    Throughput is the samples that the run takes a second: the mean over the second half of a window in which it
    trains on the learners that were wished, without readings more than 1.5 times off the window's median. Where the
    batch has moved by more than 15 % since fewer learners were measured, those are measured anew, three times at
    most. A wish that has not come true after `patience` observations goes back to what there is. At the end the
    policy rests for good; delete it and put it again to begin once more.

    Several learners fill a device that the small batch of one leaves idle. Where a run holds its global batch each
    takes a smaller share of it, and more of them seldom pay. Crossbow's keep their batch: for that the run must let
    the batch grow with its ranks (`on_resize` scale), best with `sync` sma.

    Source: Koliousis et al. 2019 (Crossbow, PVLDB 12(11)), auto-tuning of the number of learners.
    """

    kind: ClassVar[str] = "learners"
    source: ClassVar[str] = (
        "Koliousis et al. 2019, Crossbow: Scaling Deep Learning with Small Batch Sizes on Multi-GPU Servers, "
        "PVLDB 12(11)"
    )
    param: ClassVar[str] = LEARNERS

    gain: float = Field(
        0.1,
        ge=0,
        le=10,
        description="The rise of throughput that one more learner a device must bring.",
        json_schema_extra={"unit": "of the throughput"},
    )

    def _asked(self, size: int) -> float:  # noqa: ARG002
        return self.gain
