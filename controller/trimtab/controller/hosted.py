"""Runs whose loop somebody else owns (`attach`): what cannot be changed there, refused where it is asked for."""

from collections.abc import Mapping

from trimtab.controller.errors import Refused
from trimtab.controller.events import RunSpec
from trimtab.controller.sync import LEARNERS, WORKERS

NOT_WITH_ATTACH = "not-with-attach"  # the code of the refusals
HOSTS: Mapping[str, str] = {  # `RunSpec.host`: who has started the processes
    "torchrun": "torchrun",
    "ray-train": "Ray Train",
    "attached": "a program of its own",
}
ROLLBACK = "rollback"
CHECKPOINT = "checkpoint"

_SIZE = "{host} started its processes, and their number stays: start them anew in another and attach with state=..."
_WHY: Mapping[str, str] = {
    WORKERS: _SIZE,
    LEARNERS: _SIZE,
    ROLLBACK: (
        "{host} reads the data and keeps the checkpoints, so the run cannot go back in place: stop it, load a "
        "checkpoint of your own, and attach with the session.state() that was kept in it"
    ),
    CHECKPOINT: "{host} keeps the checkpoints: save the model, the optimizer and session.state() in your own loop",
}


def check(spec: RunSpec, wish: str) -> None:
    """Raise Refused where `wish`, a parameter or a command, is beyond a run that Trimtab has only been attached to."""
    if spec.host and wish in _WHY:
        message = f"{wish} is not possible with attach: {_WHY[wish].format(host=HOSTS[spec.host])}"
        raise Refused(NOT_WITH_ATTACH, message, {"param": message})
