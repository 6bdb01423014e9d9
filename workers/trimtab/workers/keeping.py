"""A rank's checkpoints: kept, begun from, gone back to in place."""

import logging
from typing import Any

from trimtab.controller.events import Checkpointed, RollbackFailed
from trimtab.controller.hyperparameters import Rollback
from trimtab.controller.records import Branch
from trimtab.workers.assignment import Assignment
from trimtab.workers.checkpoints import Checkpoints, open_checkpoints
from trimtab.workers.course import Course
from trimtab.workers.group import Group
from trimtab.workers.link import Link
from trimtab.workers.loader import Loader
from trimtab.workers.training import Training

log = logging.getLogger(__name__)


class Keeping:
    """Writes and reads a run's checkpoints; its methods are called by all ranks of a group together."""

    def __init__(self, assignment: Assignment) -> None:
        self._run = assignment.run
        self._store: Checkpoints
        if not assignment.spec.host:  # a host keeps its own, and nobody can ask for one here
            self._store = open_checkpoints(assignment.checkpoints, assignment.keep_checkpoints)

    def load(self, assignment: Assignment, device: Any) -> tuple[dict[str, Any] | None, Any]:
        """What all ranks begin from and this rank's random states; None and None if the run begins from nothing."""
        if assignment.checkpoint is None:
            return None, None
        shared, own = self._store.load(assignment.checkpoint, assignment.rank, device)
        return shared | self._store.branch(assignment.checkpoint), own

    def save(self, training: Training, course: Course, version: int, group: Group, link: Link) -> None:
        """Keep a checkpoint of the present step."""
        made = training.checkpoint()
        shared = made | course.kept() | {"version": version} if group.rank == 0 else None

        def wanted() -> tuple[int, ...]:
            """The step of a checkpoint that the run is about to go back to: none may take it away."""
            wish = link.newest.rollback
            return (wish.step,) if wish is not None and wish.number > course.rolled_back else ()

        path = self._store.save(course.progress.steps, shared, group.rank, group.size, group.barrier, wanted)
        course.saved = course.progress.steps
        if group.rank == 0:
            self.report(course, version, link)
            log.info("run %s: checkpoint %s", self._run, path)

    def report(self, course: Course, version: int, link: Link) -> None:
        """Tell the controller which checkpoints there are. For rank 0."""
        kept = tuple(self._store.steps())
        link.report(Checkpointed(course.saved, course.progress.samples, version, kept))

    def roll_back(
        self, wish: Rollback, training: Training, course: Course, group: Group, link: Link, loader: Loader
    ) -> tuple[Branch, Any] | None:
        """Go back to a checkpoint in place, on all ranks between the same two steps.

        Model, optimizer and the guard's norms are loaded; progress, and with it every trajectory, returns. The data
        goes on at the checkpoint's place in the stream, or (`skip_data`) behind what was read last: `course.skipped` is
        the difference from then on, so a horizon in samples still counts those that the model has learnt from. What the
        train function itself holds does not return.

        The branch that begins, and this rank's random states in it. None where the checkpoint is gone, or the data
        cannot be read again: all ranks go on, and rank 0 tells.
        """
        course.rolled_back = wish.number
        obstacle = group.broadcast(self._obstacle(wish, loader) if group.rank == 0 else None)
        if obstacle is not None:
            log.error("run %s rank %d: not rolled back to step %d: %s", self._run, group.rank, wish.step, obstacle)
            if group.rank == 0:
                link.report(RollbackFailed(wish.number, course.progress, obstacle))
            return None
        left, read = course.progress, course.read
        path = self._store.find(wish.step)
        assert path is not None
        shared, own = self._store.load(path, group.rank, training.device)
        training.load(shared)
        training.anew(shared.get("sync"))
        course.take({**shared, "rolled_back": wish.number})
        if wish.skip_data:
            noted = self._store.branch(path)
            made = noted["skipped"] if noted.get("rolled_back") == wish.number else 0  # and the group lost, unheard of
            course.skipped = max(made, read - course.progress.samples)
        course.saved = course.progress.steps
        course.nonfinite = 0
        course.formation += 1
        if group.rank == 0:
            self._store.go_back(wish.step, wish.number, course.skipped)
            log.info("run %s: rolled back from step %d to step %d", self._run, left.steps, wish.step)
        return Branch(wish.number, left, course.progress), own

    def _obstacle(self, wish: Rollback, loader: Loader) -> str | None:
        path = self._store.find(wish.step)
        if path is None:
            return f"the checkpoint of step {wish.step:,} is no longer in {self._store.place}"
        if wish.skip_data or loader.reaches(0):
            return None
        shared, _ = self._store.load(path, 0)
        if not loader.reaches(shared["progress"][1] + shared.get("skipped", 0)):
            return "the data is an iterator, which can be read only once: roll back with skip_data"
        return None
