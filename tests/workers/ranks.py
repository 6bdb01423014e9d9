"""Processes of tests, forked from a server that has imported torch already: a rank starts in a tenth of a second.

A process is given a function of a test's file by name, since such a file is no module that others could import.
"""

import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_S = 120.0


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # The first optimizer would import torch._dynamo in each process, for two seconds.
    heavy = ["pytest", "torch._dynamo", "torch.distributed", "trimtab.workers.session", "trimtab.workers.attach"]
    context.set_forkserver_preload(heavy)
    return context


def start(function: Callable[..., Any], *given: Any) -> ForkServerProcess:
    """A process that calls `function(*given)`; whoever starts it ends it."""
    process = _server().Process(target=_call, args=(*_place(function), given), daemon=True)
    process.start()
    return process


def answers(scenario: Callable[..., Any], size: int, directory: Path) -> list[Any]:
    """What each rank of a gloo group answers to `scenario(directory, rank, size, group)`, by way of JSON."""
    pipes = [_server().Pipe(duplex=False) for _ in range(size)]
    ranks = [start(_answer, *_place(scenario), directory, rank, size, pipes[rank][1]) for rank in range(size)]
    try:
        for (there, here), rank in zip(pipes, ranks, strict=True):
            here.close()
            assert there.poll(TIMEOUT_S), f"{rank.name} does not answer"
        found = [json.loads(there.recv()) for there, _ in pipes]  # EOFError: it has printed why
        for rank in ranks:
            rank.join(TIMEOUT_S)
        assert [rank.exitcode for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    return found


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    file = sys.modules[function.__module__].__file__
    assert file is not None
    return file, function.__name__


def _call(file: str, name: str, given: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    folder = str(Path(file).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return getattr(importlib.import_module(Path(file).stem), name)(*given)


def _answer(file: str, name: str, directory: Path, rank: int, size: int, pipe: Connection) -> None:
    dist.init_process_group("gloo", f"file://{directory / 'store'}", rank=rank, world_size=size)
    pipe.send(json.dumps(_call(file, name, (directory, rank, size, dist.group.WORLD))))
    dist.barrier()  # nobody leaves while another still needs it
    dist.destroy_process_group()
