"""Records of steps on their way from the training thread, which never waits, to the thread that ships them."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from trimtab.controller.records import COLUMNS, Branch, Floats, Ints, Records, Regrouped, Report

T = TypeVar("T")
Value = float | Tensor | Callable[[], float]  # a tensor of one element, or a reading that waits for the device


@dataclass(frozen=True, slots=True)
class Counts:
    """`produced == shipped + dropped + buffered`, always."""

    produced: int
    shipped: int
    dropped: int
    buffered: int


class Buffer(Generic[T]):
    """A bounded queue between two threads that loses its oldest entries and counts them.

    The lock is held for microseconds by either side: neither copies from a device nor sends within it.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._entries: deque[T] = deque(maxlen=capacity)
        self._lock = Lock()
        self._produced = self._shipped = 0

    def append(self, entry: T) -> None:
        with self._lock:
            self._produced += 1
            self._entries.append(entry)

    def take(self, limit: int) -> tuple[list[T], Counts]:
        """The oldest entries, at most `limit`, and the counts just after."""
        with self._lock:
            taken = [self._entries.popleft() for _ in range(min(limit, len(self._entries)))]
            self._shipped += len(taken)
            return taken, self._count()

    def count(self) -> Counts:
        with self._lock:
            return self._count()

    def _count(self) -> Counts:
        buffered = len(self._entries)
        return Counts(self._produced, self._shipped, self._produced - self._shipped - buffered, buffered)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of this rank; a value is read when it is shipped, so a tensor must not be written to afterwards."""

    step: int  # from 1
    samples: int  # consumed by all ranks when the step had ended
    time: float  # unix seconds at the end of the step
    values: Mapping[str, Value]  # by column; what is missing is NaN


class Ring:
    """One rank's records since a formation began, and what `session.log` adds."""

    def __init__(
        self,
        capacity: int,
        run: str = "",
        rank: int = 0,
        formation: int = 0,
        branch: Branch | Regrouped | None = None,
    ) -> None:
        self.steps: Buffer[StepRecord] = Buffer(capacity)
        self.logged: Buffer[tuple[int, str, Value]] = Buffer(capacity)
        self.training_s = 0.0  # of the steps, added up
        self.control_s = 0.0  # of these, in Trimtab's own work
        self._origin = (run, rank, formation)
        self._branch = branch

    @property
    def empty(self) -> bool:
        return not (self.steps.count().buffered or self.logged.count().buffered)

    def append(self, record: StepRecord) -> None:
        self.steps.append(record)

    def log(self, step: int, name: str, value: float | Tensor) -> None:
        """Note a metric: a number or a tensor of one element, which is copied, since a sum may go on being added to."""
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
            self.logged.append((step, name, value.detach().clone()))
        else:
            self.logged.append((step, name, float(value)))

    def drain(
        self,
        limit: int,
        held: int = 0,
        applied: Iterable[tuple[int, int]] = (),
        reports: Iterable[Report] = (),
    ) -> Records:
        """At most `limit` steps and as many logged values, oldest first. Waits for the device; never for training."""
        steps, counts = self.steps.take(limit)
        logged, logs = self.logged.take(limit)
        names = list(dict.fromkeys([*COLUMNS, *(name for record in steps for name in record.values)]))
        values = [record.values.get(name, np.nan) for name in names for record in steps]
        resolved = resolve([*values, *(value for _, _, value in logged)])
        split = len(values)
        return Records(
            *self._origin,
            steps=np.array([record.step for record in steps], np.int64),
            samples=np.array([record.samples for record in steps], np.int64),
            times=np.array([record.time for record in steps], np.float64),
            columns=dict(zip(names, resolved[:split].reshape(len(names), len(steps)), strict=True)),
            logged=_by_name(logged, resolved[split:]),
            applied=tuple(applied),
            held=held,
            produced=counts.produced + logs.produced,
            dropped=counts.dropped + logs.dropped,
            training_s=self.training_s,
            control_s=self.control_s,
            branch=self._branch,
            reports=tuple(reports),
        )


def resolve(values: list[Value]) -> Floats:
    """The values as numbers, (n,), with one copy from each device that holds some of them."""
    numbers = np.empty(len(values), np.float32)
    tensors: dict[torch.device, list[int]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            tensors.setdefault(value.device, []).append(i)
        else:
            numbers[i] = value() if callable(value) else value
    for places in tensors.values():
        numbers[places] = torch.stack([_scalar(values[i]) for i in places]).cpu().numpy()
    return numbers


def _scalar(value: Value) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach().reshape(()).float()


def _by_name(logged: list[tuple[int, str, Value]], values: Floats) -> dict[str, tuple[Ints, Floats]]:
    places: dict[str, list[int]] = {}
    for i, (_, name, _) in enumerate(logged):
        places.setdefault(name, []).append(i)
    steps = np.array([step for step, _, _ in logged], np.int64)
    return {name: (steps[where], values[where]) for name, where in places.items()}
