"""A policy of one's own: `trimtab run train.py --policy my_policy.py:Cruise:loss=1.5`."""

from typing import ClassVar

from pydantic import Field

from trimtab.controller.observation import Scale
from trimtab.controller.policies import Policy
from trimtab.controller.trajectory import Constant


class Cruise(Policy):
    """Halve the learning rate once, as soon as the smoothed training loss has fallen below `loss`."""

    kind: ClassVar[str] = "cruise"
    source: ClassVar[str] = "an example"

    loss: float = Field(1.0, description="Smoothed training loss below which the learning rate is cut.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the learning rate is multiplied by.")

    def reads(self):
        return frozenset({"loss"})  # metrics: the training loss, or what the script logs

    def writes(self):
        return {"lr": "factor"}  # its own factor of the learning rate; others have theirs

    def initial(self):
        return {"smooth": None, "cut": False}  # all that it remembers, as JSON

    def decide(self, state, observation):
        reading = observation.last("loss")
        if reading is None or state["cut"]:
            return state, ()
        smooth = reading.value if state["smooth"] is None else 0.9 * state["smooth"] + 0.1 * reading.value
        if smooth >= self.loss:
            return {"smooth": smooth, "cut": False}, ()
        reason = f"the smoothed loss {smooth:.4g} is below {self.loss:g}: lr x {self.factor:g}"
        return {"smooth": smooth, "cut": True}, (Scale("lr", Constant(self.factor), reason),)
