"""How often what a policy wants of a parameter has turned back: the measure of oscillation."""

from dataclasses import dataclass

from trimtab.controller.observation import Scale, Set
from trimtab.controller.trajectory import LATEST, Coupling, Progress, Scalar

WINDOW = 50  # [observations] that are looked back on: at least 12 s of training
TURNS = 8  # as many within the window are borne; one more is oscillation
SWING = 0.05  # of the larger value: what swings less than this has not turned
END = Progress(LATEST, LATEST)


def wanted(proposal: Set | Scale) -> Scalar | None:
    """Where a proposal leads to: of a ramp its end, so that a new ramp from where the last one stands hides nothing."""
    to = proposal.to if isinstance(proposal, Set) else proposal.by
    return None if isinstance(to, Coupling) else to.at(END)


@dataclass(frozen=True, slots=True)
class Turning:
    """What a policy has wanted of one parameter: the farthest since it last turned, which way, and when it turned.

    A choice has no direction: each change of it is a turn.
    """

    farthest: Scalar
    direction: int = 0  # 0: it has not moved yet
    turns: tuple[int, ...] = ()  # observations, those within the window

    def after(self, value: Scalar, now: int) -> "Turning":
        """The same after `value` was accepted at observation `now`."""
        turns = tuple(turn for turn in self.turns if now - turn < WINDOW)
        if isinstance(value, str) or isinstance(self.farthest, str):
            return Turning(value, 0, turns if value == self.farthest else (*turns, now))
        way = (value > self.farthest) - (value < self.farthest)
        if way in (0, self.direction):
            return Turning(value, self.direction, turns)
        if abs(value - self.farthest) <= SWING * max(abs(value), abs(self.farthest)):
            return Turning(self.farthest, self.direction, turns)
        return Turning(value, way, (*turns, now) if self.direction else turns)

    def too_often(self, value: Scalar, now: int) -> bool:
        """Would `value` be one turn too many?"""
        after = self.after(value, now).turns
        return after[-1:] == (now,) and len(after) > TURNS
