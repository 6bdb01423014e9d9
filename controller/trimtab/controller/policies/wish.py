"""A wish for another size of the worker group, and what has come of it."""

from typing import Literal, TypedDict

from trimtab.controller.observation import Observation
from trimtab.controller.sync import LEARNERS, WORKERS
from trimtab.controller.trajectory import Scalar

__all__ = ["NONE", "Fate", "Wish", "asking", "look", "others", "present"]

BESIDE = {WORKERS: LEARNERS, LEARNERS: WORKERS}

Fate = Literal["absent", "moved", "denied", "waiting", "granted"]


class Wish(TypedDict):
    """Part of a policy's state."""

    size: int  # wished, by whomever; 0: not known yet
    asked: bool  # has the policy asked for it just now?
    waited: int  # observations since then in which the run trained on another


NONE = Wish(size=0, asked=False, waited=0)


def asking(size: int) -> Wish:
    return Wish(size=size, asked=True, waited=0)


def look(wish: Wish, observation: Observation, param: str) -> tuple[Fate, Wish]:
    """What has become of the wish, which is for `param`, and the wish as it is now.

    absent: the run has no such parameter. denied: it was asked for, but a bound or a pin holds the parameter, at the
    size of the new wish. moved: somebody else has set it. waiting: the run trains on another size as yet. granted: it
    trains on this one.
    """
    size = _whole(observation.values.get(param))
    if size is None:
        return "absent", wish
    now = Wish(size=size, asked=False, waited=0)
    if wish["size"] not in (0, size):
        return ("denied" if wish["asked"] else "moved"), now
    if observation.plan.world_size != size * others(observation, param):
        return "waiting", {**now, "waited": wish["waited"] + 1}
    return "granted", now


def others(observation: Observation, param: str) -> int:
    """How many ranks there are for each one of `param`: learners for workers, workers for learners."""
    return _whole(observation.values.get(BESIDE[param])) or 1


def present(observation: Observation, param: str) -> int:
    """The size of what trains now."""
    return max(1, observation.plan.world_size // others(observation, param))


def _whole(value: Scalar | None) -> int | None:
    return None if value is None or isinstance(value, str) or not 1 <= value < 2**31 else int(value)
