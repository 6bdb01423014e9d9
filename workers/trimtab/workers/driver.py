"""The run driver: owns the worker processes, calls them into groups, and into others as they come, go or are lost.

    roster   who works, who is on the way, who forms the next group       (plain)
    crew     the processes and their places                               (Ray)
    door     where groups come together                                   (a store that outlives every rank)

A lost worker does not restart the run: whoever is left forms the next group at once, and a newcomer joins it later.
Only where nobody is left does the run go back to its last checkpoint.
"""

import logging
import queue
import re
import secrets
import threading

import ray

from trimtab.controller.actor import call
from trimtab.controller.controller import Formation
from trimtab.controller.errors import Refused
from trimtab.controller.events import RunSpec
from trimtab.controller.hyperparameters import Version
from trimtab.controller.state import RunState
from trimtab.controller.sync import LEARNERS, WORKERS
from trimtab.controller.trajectory import Progress
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoints import Checkpoints, Place, open_checkpoints
from trimtab.workers.crew import Crew, News
from trimtab.workers.groups import Groups, Plan, TrainingError, Wanted
from trimtab.workers.rendezvous import Doorkeeper
from trimtab.workers.roster import Roster

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0


class Driver:
    """Carries one run through its formations."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._checkpoints = open_checkpoints(plan.checkpoints)
        self._ended = threading.Event()
        self._news: queue.Queue[News | Wanted] = queue.Queue()
        self._wanted = first_size(plan.spec)

    def run(self) -> None:
        """Train until the run has ended. Raises TrainingError, or NotEnoughResources."""
        threads = [
            threading.Thread(target=body, name=f"trimtab-{name}", daemon=True)
            for name, body in (("beat", self._beat), ("listen", self._listen))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(self._plan.max_failures + 1):
                self._look()
                lost = self._formation()
                if lost is None:
                    return self._end()
                self._set(RunState.RECOVERING, f"{lost}; going back to the last checkpoint")
            raise TrainingError(f"all workers were lost {self._plan.max_failures + 1} times, the last: {lost}")
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._ended.set()
            for thread in threads:  # what calls Ray after its end would start another
                thread.join(timeout=2 * HEARTBEAT_S)

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

    # ---- what the controller says ---------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                call("heartbeat", self._plan.run, patience_s=HEARTBEAT_S)
                self._look()
            except Exception as error:  # the controller returns by itself
                log.warning("run %s: no heartbeat: %s", self._plan.run, error)

    def _listen(self) -> None:
        """A new version may want another size; heartbeats look too, since a size may move with progress."""
        after = 0
        while not self._ended.is_set():
            try:
                versions: tuple[Version, ...] = call("next_versions", self._plan.run, after, HEARTBEAT_S)
                if versions:
                    after = versions[-1].number
                    self._look()
            except (Refused, SystemExit):  # Ray exits threads when it is shut down
                return
            except Exception as error:
                log.warning("run %s: no versions for now: %s", self._plan.run, error)
                self._ended.wait(HEARTBEAT_S)

    def _look(self) -> None:
        size = call("wanted", self._plan.run, patience_s=HEARTBEAT_S)
        if size is not None and Wanted(*size) != self._wanted:
            self._wanted = Wanted(*size)
            self._news.put(self._wanted)

    # ---- formations in new processes ------------------------------------------------------------------------------

    def _formation(self) -> str | None:
        """From the last checkpoint on; why nobody was left, or None if the run has ended."""
        latest = self._checkpoints.latest()
        progress, rolled_back = _standing(self._checkpoints, latest) if latest else (Progress(), 0)
        self._checkpoints.forget_after(progress.steps)
        wanted = self._wanted
        size = wanted.workers * wanted.learners
        formation: Formation = call("start_formation", self._plan.run, size, progress, rolled_back)
        bundle = self._plan.resources.bundle(wanted.workers)
        gpus, most = bool(bundle.get("GPU")), _most_learners(self._plan.spec)
        door = Doorkeeper(_address())
        assignment = Assignment(
            run=self._plan.run,
            spec=self._plan.spec,
            rank=0,
            world_size=size,
            formation=formation.number,
            version=formation.version,
            progress=progress,
            checkpoint=latest,
            checkpoints=self._plan.checkpoints,
            checkpoint_steps=self._plan.checkpoint_steps,
            store=door.address,
            device="cuda:0" if gpus else "cpu",
            # NCCL refuses several ranks on one device
            backend="cpu:gloo,cuda:nccl" if gpus and most == 1 else "gloo",
            arguments=self._plan.arguments,
        )
        self._news = queue.Queue()
        crew = Crew(self._plan.run, bundle, most, self._plan.spec.script, self._news.put)
        roster = Roster(wanted.workers, wanted.learners, self._plan.spares, _least(self._plan.spec))
        try:
            return Groups(self._plan, roster, crew, door, assignment, self._news).run()
        finally:
            crew.dismiss_all()


def first_size(spec: RunSpec) -> Wanted:
    """The size that the run was started with."""
    given = {p.name: p.default for p in spec.parameters}
    learners = int(given.get(LEARNERS, 1))
    return Wanted(int(given.get(WORKERS, spec.world_size // learners)), learners)


def _least(spec: RunSpec) -> int:
    """The smallest world size to train with after a loss."""
    return next((int(p.bounds[0]) for p in spec.parameters if p.name == WORKERS), 1)


def _most_learners(spec: RunSpec) -> int:
    return next((int(p.bounds[1]) for p in spec.parameters if p.name == LEARNERS), 1)


def _standing(checkpoints: Checkpoints, path: Place) -> tuple[Progress, int]:
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
