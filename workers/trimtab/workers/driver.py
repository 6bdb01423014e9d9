"""The run driver: owns the placement group and the worker actors, forms the group and forms it anew after a loss."""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch._C._distributed_c10d import TCPStore

from trimtab.controller.actor import call
from trimtab.controller.controller import Formation
from trimtab.controller.events import RunSpec
from trimtab.controller.state import RunState
from trimtab.controller.trajectory import Progress
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoint import CheckpointStore
from trimtab.workers.worker import Train, Worker

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
SETTLE_S = 5.0  # for Ray to tell a dead worker from the survivors' errors
PLACEMENT_S = 60.0


class TrainingError(RuntimeError):
    """The train function raised, or workers were lost too often; the message ends with what it said."""


class NotEnoughResources(ValueError):
    """The cluster cannot hold so many workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one worker takes. A GPU is taken where the cluster has one for every worker."""

    cpus: float = 1
    gpus: float | None = None

    def bundle(self, workers: int) -> dict[str, float]:
        total = ray.cluster_resources()
        gpus = self.gpus if self.gpus is not None else float(total.get("GPU", 0) >= workers)
        bundle = {"CPU": self.cpus} | ({"GPU": gpus} if gpus else {})
        for kind, amount in bundle.items():
            if amount * workers > total.get(kind, 0) + 1e-9:
                raise NotEnoughResources(
                    f"{workers} workers need {amount * workers:g} {kind}, the cluster has {total.get(kind, 0):g}: "
                    f"ask for fewer workers, or less {kind} for each"
                )
        return bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a driver needs to carry a run through."""

    run: str
    spec: RunSpec
    train: Train
    resources: Resources
    checkpoints: Path
    checkpoint_steps: int | None
    max_failures: int
    arguments: tuple[str, ...] = ()


class Driver:
    """Carries one run through its formations."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._checkpoints = CheckpointStore(plan.checkpoints)
        self._store = TCPStore(_address(), 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        self._ended = threading.Event()

    def run(self) -> None:
        """Form the group and train, again after each loss, until the run has ended. Raises TrainingError."""
        heart = threading.Thread(target=self._beat, name="trimtab-heartbeat", daemon=True)
        heart.start()
        group: PlacementGroup | None = None
        try:
            group = self._place()
            for _ in range(self._plan.max_failures + 1):
                lost = self._formation(group)
                if lost is None:
                    return self._end()
                self._set(RunState.RECOVERING, f"{lost}; forming the group again")
            raise TrainingError(f"workers were lost {self._plan.max_failures + 1} times, the last: {lost}")
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._ended.set()
            if group is not None:
                remove_placement_group(group)

    def _end(self) -> None:
        stopped = call("run", self._plan.run).state is RunState.STOPPING
        self._set(RunState.STOPPED if stopped else RunState.FINISHED)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._set(RunState.STOPPED, "the driver was interrupted")
        else:
            self._set(RunState.FAILED, str(error))

    def _set(self, state: RunState, reason: str = "") -> None:
        call("set_state", self._plan.run, state, reason)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                call("heartbeat", self._plan.run, patience_s=HEARTBEAT_S)
            except Exception as error:  # the controller returns by itself
                log.warning("run %s: no heartbeat: %s", self._plan.run, error)

    def _place(self) -> PlacementGroup:
        workers = self._plan.spec.world_size
        bundle = self._plan.resources.bundle(workers)
        group: PlacementGroup = placement_group([bundle] * workers, strategy="PACK")
        if not group.wait(PLACEMENT_S):
            remove_placement_group(group)
            raise NotEnoughResources(
                f"no room for {workers} workers of {bundle} within {PLACEMENT_S:.0f} s: other jobs hold the cluster"
            )
        return group

    def _formation(self, group: PlacementGroup) -> str | None:
        """One formation from its first step to its last; why it was lost, or None if the run has ended."""
        latest = self._checkpoints.latest()
        progress, rolled_back = _standing(self._checkpoints, latest) if latest else (Progress(), 0)
        self._checkpoints.forget_after(progress.steps)
        begin = ("start_formation", self._plan.run, self._plan.spec.world_size, progress, rolled_back)
        formation: Formation = call(*begin)
        workers = [self._worker(group, rank) for rank in range(self._plan.spec.world_size)]
        try:
            ray.get([worker.ready.remote() for worker in workers])
            assignment = self._assignment(formation, progress, latest)
            refs = [
                worker.train.remote(self._plan.train, replace(assignment, rank=rank))
                for rank, worker in enumerate(workers)
            ]
            return _outcome(refs)
        except RayActorError as error:
            return f"a worker did not start ({error})"
        finally:
            for worker in workers:
                ray.kill(worker)

    def _assignment(self, formation: Formation, progress: Progress, checkpoint: Path | None) -> Assignment:
        gpus = self._plan.resources.bundle(self._plan.spec.world_size).get("GPU", 0)
        return Assignment(
            run=self._plan.run,
            spec=self._plan.spec,
            rank=0,
            world_size=self._plan.spec.world_size,
            formation=formation.number,
            version=formation.version,
            progress=progress,
            checkpoint=checkpoint,
            checkpoints=self._plan.checkpoints,
            checkpoint_steps=self._plan.checkpoint_steps,
            store=(_address(), self._store.port),
            device="cuda:0" if gpus else "cpu",
            arguments=self._plan.arguments,
        )

    def _worker(self, group: PlacementGroup, rank: int) -> Any:
        bundle = group.bundle_specs[rank]
        return (
            ray.remote(Worker)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                max_concurrency=2,
                name=f"{self._plan.run}-rank-{rank}",
                runtime_env={"env_vars": _environment(bundle, self._plan.spec.script)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            .remote()
        )


def _environment(bundle: Mapping[str, float], script: str) -> dict[str, str]:
    """The script's neighbours can be imported; CPU workers get one torch thread and keep freed memory, which was
    measured to be worth 2 to 4 times the speed."""
    environment = {}
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


def _outcome(refs: Sequence[Any]) -> str | None:
    """Wait for all ranks. None if all returned; why, if a worker was lost. Raises TrainingError for a rank's own error.

    A lost rank makes the others raise within the same second, so an error waits a moment to be told from a loss.
    """
    waiting = list(refs)
    errors: list[RayTaskError] = []
    deadline: float | None = None
    while waiting:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, timeout=timeout)
        if not done:
            break
        try:
            ray.get(done[0])
        except RayActorError as error:
            return f"a worker was lost ({type(error).__name__})"
        except RayTaskError as error:
            errors.append(error)
            deadline = deadline or time.monotonic() + SETTLE_S
    if not errors:
        return None
    own = [e for e in errors if "Connection closed by peer" not in str(e) and "gloo" not in str(e).lower()]
    raise TrainingError(_message((own or errors)[0])) from (own or errors)[0]


def _message(error: RayTaskError) -> str:
    cause = getattr(error, "cause", error)
    return f"{type(cause).__name__}: {cause}"


def _standing(checkpoints: CheckpointStore, path: Path) -> tuple[Progress, int]:
    """Where a checkpoint stands, and the number of the newest roll back that it knows of."""
    shared, _ = checkpoints.load(path, 0)
    known = shared | checkpoints.branch(path)
    return Progress(*shared["progress"]), known.get("rolled_back", 0)


def _address() -> str:
    return str(ray.util.get_node_ip_address())


def new_run_id(name: str) -> str:
    """An id that a person can read and type, made of the run's name."""
    words = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
    return f"{words}-{secrets.token_hex(2)}"
