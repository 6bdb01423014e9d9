"""A train function with what it wants where nobody says otherwise."""

import copyreg
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from trimtab.controller.trajectory import Scalar
from trimtab.workers.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A train function and its defaults: hyper-parameters and horizon."""

    function: Callable[[Session], Any]
    hp: Mapping[str, Scalar] = field(default_factory=dict)
    samples: int | None = None
    steps: int | None = None
    epochs: int | None = None

    def __call__(self, session: Session) -> Any:
        return self.function(session)


def trainable(
    *, samples: int | None = None, steps: int | None = None, epochs: int | None = None, **hp: Scalar
) -> Callable[[Callable[[Session], Any]], Trainable]:
    """Give a train function defaults, as in `@trainable(epochs=3, batch_size=64, lr=0.1)`."""

    def wrap(function: Callable[[Session], Any]) -> Trainable:
        return Trainable(function=function, hp=hp, samples=samples, steps=steps, epochs=epochs)

    return wrap


def pickle_modules_by_name() -> None:
    """Let cloudpickle carry modules of special types (torch.classes, torch.backends, lazy ones) by their name.

    It takes along each imported submodule that shares a name with something that a function uses, be it only a variable
    called `classes`, and can pickle plain modules only.
    """
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and type(module) is not ModuleType:
            copyreg.pickle(type(module), _by_name)


def _by_name(module: ModuleType) -> tuple[Callable[[str], ModuleType], tuple[str]]:
    return importlib.import_module, (next(name for name, known in sys.modules.items() if known is module),)
