"""The worker actor: one rank of one formation, training in a thread of its process."""

import logging
import os
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from trimtab.controller.actor import call
from trimtab.workers.assignment import Assignment
from trimtab.workers.peers import TIMEOUT_S, Peers, address_towards
from trimtab.workers.session import Session

Train = Callable[[Session], Any]


class Worker:
    """Runs a train function; `ray.remote` is put around it by the driver."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")

    def ready(self) -> int:
        """Answers once the process is up and torch imported; its process id."""
        return os.getpid()

    def train(self, train: Train, assignment: Assignment) -> None:
        """Join the formation and run `train` to its end."""
        if assignment.device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        else:
            torch.cuda.set_device(assignment.device)
        peers = join(assignment)
        session = None
        try:
            _seed(assignment.spec.seed)
            session = Session(assignment, call, peers)
            train(session)
        finally:
            if peers is not None:
                peers.close()
            if session is not None:
                session.close()
        if peers is not None:
            dist.destroy_process_group()


def join(assignment: Assignment) -> Peers | None:
    """Form the process group, and beside it the ranks' own lines for what is small. None for one rank."""
    if assignment.world_size == 1:
        return None
    host, port = assignment.store
    timeout = timedelta(seconds=TIMEOUT_S)
    store = TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        "gloo" if assignment.device == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore(f"formation-{assignment.formation}", store),
        rank=assignment.rank,
        world_size=assignment.world_size,
        timeout=timeout,
    )
    return Peers(dist.new_group(backend="gloo", timeout=timeout), address_towards(host, port))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
