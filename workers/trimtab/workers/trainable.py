"""A train function with what it wants where nobody says otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
