"""What the benchmarks on Ray share: a local cluster with controller and API, a run in the background, the task."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor, nn

from trimtab.api import server
from trimtab.api.home import Access
from trimtab.controller import actor
from trimtab.controller.hyperparameters import HyperParameter
from trimtab.workers import Session, launch

RANKS = 2
SAMPLES = 8192


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 1, 28, 28, generator=generator), torch.randint(10, (SAMPLES,), generator=generator)


def net(wide: bool = False) -> nn.Module:
    """The net of examples/fashion_mnist.py, 0.2M parameters: about 20 ms a step of 80 samples on one core.

    `wide`: 1.0M parameters, nearly all in one linear layer, 20 ms at 128 samples: hardly any work for each parameter.
    """
    torch.manual_seed(0)
    if not wide:
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
        )
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 40, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(40 * 49, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of its own, gone with the benchmark; `home` is its journal's, metrics' and results' folder."""

    home: Path
    access: Access

    def launch(self, train: Callable[[Session], None], micro_batch: int, lr: float = 0.01) -> "Background":
        """Begin a run of two ranks with `noise_scale` active, whose batch is held by its bounds."""
        batch = RANKS * micro_batch
        held = HyperParameter(name="batch_size", kind="integer", default=batch, min=batch, max=batch)
        return Background(
            train=train,
            workers=RANKS,
            hp={"batch_size": held, "lr": lr},
            policies=["noise_scale"],
            name="bench",
            checkpoints=self.home / "checkpoints",
            checkpoint_steps=0,
            max_failures=0,
        )

    def pids(self) -> dict[str, int]:
        """The processes whose CPU time is reported."""
        handles: dict[str, Any] = {
            name: ray.get_actor(name, namespace=actor.NAMESPACE) for name in (actor.CONTROLLER, server.API)
        }
        return {name: ray.get(handle.pid.remote()) for name, handle in handles.items()}


@contextmanager
def cluster(cpus: int = RANKS) -> Iterator[Cluster]:
    """`cpus`: what Ray is told that there are; each worker takes one."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as directory:
        home = Path(directory)
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=cpus, namespace=actor.NAMESPACE, object_store_memory=2**28, **quiet)
        try:
            actor.start(home)
            yield Cluster(home, server.start(home, port=0))
        finally:
            ray.shutdown()


class Background:
    """A run in a thread; leaves when the train function does."""

    def __init__(self, **options: Any) -> None:
        self.run = ""
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._body, kwargs=options, daemon=True)
        self._thread.start()
        self._started.wait()

    def _body(self, **options: Any) -> None:
        try:
            launch(on_start=self._begin, **options)
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    def _begin(self, run: str) -> None:
        self.run = run
        self._started.set()

    def going(self) -> bool:
        return self._thread.is_alive()

    def until_step(self, step: int) -> None:
        while self._thread.is_alive() and actor.call("run", self.run).progress.steps < step:
            time.sleep(0.1)

    def join(self) -> None:
        """Wait for the end; raises what the run raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
