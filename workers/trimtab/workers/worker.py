"""The worker actor: one rank of a run, training in a thread of its process."""

import os
import random
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME

from trimtab.controller import logs
from trimtab.controller.actor import call
from trimtab.workers.assignment import Assignment
from trimtab.workers.rendezvous import Departed, Rendezvous
from trimtab.workers.reunion import Reunion
from trimtab.workers.session import Session

Train = Callable[[Session], Any]
Ending = Literal["ended", "departed"]  # the train function returned, or the worker was no longer needed


class Worker:
    """Runs a train function; `ray.remote` is put around it by the driver."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._parked = threading.Event()
        logs.configure(self._known)

    def _known(self) -> Mapping[str, object]:
        session = self._session
        return {"run": session.run, "rank": session.rank, "version": session.version} if session else {}

    def ready(self) -> int:
        """Answers once the process is up and torch imported; its process id."""
        return os.getpid()

    def parked(self) -> None:
        """Answers once the train function has come to its batches and waits to be called into a group."""
        self._parked.wait()

    def train(self, train: Train, assignment: Assignment) -> Ending:
        """Run `train` to its end, in the first group from its start or as a newcomer."""
        if assignment.device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        else:
            torch.cuda.set_device(assignment.device)
        _name_prints(assignment.rank)
        lines = Rendezvous(assignment.store, assignment.worker)
        reunion = Reunion(lines, assignment.backend, self._parked.set, _name_prints)
        ended = threading.Event()
        if "nccl" in assignment.backend:  # nothing raises by itself there
            threading.Thread(target=reunion.watch, args=(ended,), name="trimtab-watch", daemon=True).start()
        session, group = None, None
        try:
            group = None if assignment.joins else reunion.first()
            _seed(assignment.spec.seed)
            session = self._session = Session(assignment, call, group, reunion)
            train(session)
        except Departed:
            return "departed"
        finally:
            ended.set()
            if session is not None:
                session.leave()
                session.close()
            elif group is not None:
                group.leave()
        return "ended"


def _name_prints(rank: int) -> None:
    """Let Ray, where it prints elsewhere what this process prints from here on, put the rank before it."""
    for stream in (sys.stdout, sys.stderr):
        print(f"{LOG_PREFIX_ACTOR_NAME}rank {rank}", file=stream, flush=True)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
