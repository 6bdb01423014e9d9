"""A run's worker processes on the cluster: their places, their starts, and what becomes of them."""

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray import _raylet
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trimtab.controller.actor import passed_on
from trimtab.controller.sync import counted
from trimtab.workers.assignment import Assignment
from trimtab.workers.roster import Hand
from trimtab.workers.worker import Train, Worker

log = logging.getLogger(__name__)


class NotEnoughResources(ValueError):
    """The cluster cannot hold so many workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one place takes. A GPU is taken where the cluster has one for every place."""

    cpus: float = 1
    gpus: float | None = None

    def bundle(self, workers: int) -> dict[str, float]:
        total = ray.cluster_resources()
        gpus = self.gpus if self.gpus is not None else float(total.get("GPU", 0) >= workers)
        bundle = {"CPU": self.cpus} | ({"GPU": gpus} if gpus else {})
        for kind, amount in bundle.items():
            if amount * workers > total.get(kind, 0) + 1e-9:
                raise NotEnoughResources(
                    f"{counted(workers)} would take {amount * workers:g} {kind}, the cluster has "
                    f"{total.get(kind, 0):g}: ask for fewer workers, or less {kind} for each"
                )
        return bundle


@dataclass(frozen=True, slots=True)
class Placed:
    """The cluster has room for this worker."""

    name: str


@dataclass(frozen=True, slots=True)
class Parked:
    """This newcomer waits to be called into a group."""

    name: str


@dataclass(frozen=True, slots=True)
class Left:
    """This worker's train function has ended, or its process has."""

    name: str
    ending: str  # "ended", "departed", "lost" (its process is gone) or "failed"
    error: Exception | None = None


News = Placed | Parked | Left


class Crew:
    """Every worker has its place, a placement group of one bundle, so that a place can be given back when it is free.

    Several learners on one place have an equal part of it each. What happens to workers is told to `tell`, from
    threads of Ray's.
    """

    def __init__(
        self, run: str, bundle: Mapping[str, float], learners: int, script: str, tell: Callable[[News], None]
    ) -> None:
        """`learners`: how many there may be on one place, at most."""
        self._run = run
        self._bundle = dict(bundle)
        self._part = {kind: amount / learners for kind, amount in bundle.items()}
        self._environment = _environment(bundle, script)
        self._tell = tell
        self._places: dict[int, PlacementGroup] = {}
        self._place_of: dict[str, int] = {}
        self._actors: dict[str, Any] = {}
        self._gcs = cast(Any, _raylet).GcsClient(address=ray.get_runtime_context().gcs_address)

    def place(self, hand: Hand) -> None:
        """Ask the cluster for room; Placed follows."""
        if hand.place not in self._places:
            self._places[hand.place] = placement_group([self._bundle], strategy="PACK")
        self._place_of[hand.name] = hand.place
        self._places[hand.place].ready().future().add_done_callback(partial(self._placed, hand.name))

    def _placed(self, name: str, future: "Future[Any]") -> None:
        if future.exception() is None:
            self._tell(Placed(name))

    def start(self, name: str, train: Train, assignment: Assignment) -> None:
        """Start the process and its train function; Parked follows for a newcomer, and Left at the end."""
        actor: Any = (
            ray.remote(Worker)
            .options(
                num_cpus=self._part.get("CPU", 0),
                num_gpus=self._part.get("GPU", 0),
                max_concurrency=4,
                name=f"{self._run}-{name}",
                runtime_env={"env_vars": self._environment},
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._places[self._place_of[name]], 0),
            )
            .remote()
        )
        self._actors[name] = actor
        if assignment.joins:
            actor.parked.remote().future().add_done_callback(partial(self._parked, name))
        actor.train.remote(train, assignment).future().add_done_callback(partial(self._left, name))

    def _parked(self, name: str, future: "Future[Any]") -> None:
        if future.exception() is None:
            self._tell(Parked(name))

    def _left(self, name: str, future: "Future[Any]") -> None:
        error = future.exception()
        if error is None:
            self._tell(Left(name, future.result()))
        elif isinstance(error, RayActorError):
            self._tell(Left(name, "lost", error))
        else:
            self._tell(Left(name, "failed", error if isinstance(error, Exception) else RuntimeError(str(error))))

    def ping(self, name: str) -> "Future[Any]":
        """Done as soon as the process answers."""
        pinged: Future[Any] = self._actors[name].ready.remote().future()
        return pinged

    def end(self, name: str) -> None:
        """End a worker's process; Left follows, as if it had ended by itself."""
        if name in self._actors:
            ray.kill(self._actors[name])

    def dismiss(self, name: str) -> None:
        """End a worker, and give its place back if nobody else is there."""
        actor = self._actors.pop(name, None)
        if actor is not None:
            ray.kill(actor)
        place = self._place_of.pop(name, None)
        if place is not None and place not in self._place_of.values():
            remove_placement_group(self._places.pop(place))

    def dismiss_all(self) -> None:
        for name in list(self._place_of):
            self.dismiss(name)

    def on_draining_nodes(self) -> set[int]:
        """Places on nodes that the cluster is about to take away."""
        draining = {node if isinstance(node, str) else node.hex() for node in self._gcs.get_draining_nodes()}
        if not draining:
            return set()
        return {place for place, group in self._places.items() if _node(group) in draining}


def _node(group: PlacementGroup) -> str | None:
    nodes: Mapping[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return nodes.get(0)


def _environment(bundle: Mapping[str, float], script: str) -> dict[str, str]:
    """The script's neighbours can be imported; CPU workers get one torch thread and keep freed memory, which was
    measured to be worth 2 to 4 times the speed."""
    environment = passed_on()
    if script:
        paths = [str(Path(script).parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if not bundle.get("GPU"):
        environment |= {
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "1073741824",
            "MALLOC_TRIM_THRESHOLD_": "1073741824",
            "MALLOC_TOP_PAD_": "67108864",
        }
    return environment
