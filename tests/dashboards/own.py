"""Policies that come with the job of the run on the page: one speaks, the other fails."""

from typing import ClassVar

from trimtab.controller.observation import Notice
from trimtab.controller.policies import Policy


class Speaks(Policy):
    """Tells people once that there is a loss."""

    kind: ClassVar[str] = "speaks"
    source: ClassVar[str] = "none: a test"

    def reads(self):
        return frozenset({"loss"})

    def writes(self):
        return {}

    def initial(self):
        return {"said": False}

    def decide(self, state, observation):
        if state["said"] or observation.last("loss") is None:
            return state, ()
        return {"said": True}, (Notice("the first loss is here"),)


class Fails(Speaks):
    """Raises whenever it is asked."""

    kind: ClassVar[str] = "fails"

    def decide(self, state, observation):  # noqa: ARG002
        raise ArithmeticError("no idea what to do")
