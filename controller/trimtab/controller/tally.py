"""What a run has given the controller to do, in numbers that only grow."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Tally:
    """What a run has given the controller to do since the controller was started."""

    produced: int = 0  # records (steps and logged values) that ranks have noted
    dropped: int = 0  # of these, that ranks let go because the controller was away, or that came too late
    stored: int = 0  # of these, that were taken in; the rest is on its way
    points: int = 0  # values of metrics made of them
    ticks: int = 0
    refused: int = 0  # proposals that the guard rails did not let through
    ingest_s: float = 0.0  # spent taking in records
    decide_s: float = 0.0  # spent in ticks: policies, guard rails, journal
    training_s: float = 0.0  # that ranks spent in steps, added up over them
    control_s: float = 0.0  # of these, in Trimtab's own work

    def add(self, other: "Tally") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def overhead(self) -> float | None:
        return self.control_s / self.training_s if self.training_s else None
