"""A torch optimizer's hyper-parameters as live values: which it has, and how a value is written into its groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor
from torch.optim import Optimizer, RMSprop

from trimtab.controller.hyperparameters import HyperParameter
from trimtab.controller.trajectory import LrRule, Scalar


@dataclass(frozen=True, slots=True)
class _Knob:
    """Where a value lives in a parameter group, and how far it may go: to `cap`, or `span` times what it began with."""

    name: str
    key: str
    place: int | None = None  # within a tuple
    cap: float = inf  # for each group
    span: float = inf

    def read(self, group: Mapping[str, Any]) -> float:
        return float(group[self.key] if self.place is None else group[self.key][self.place])

    def write(self, group: dict[str, Any], value: float) -> None:
        old = group[self.key] if self.place is None else group[self.key][self.place]
        if isinstance(old, Tensor):
            old.fill_(value)  # a captured graph reads this very tensor
        elif self.place is None:
            group[self.key] = value
        else:
            group[self.key] = tuple(value if i == self.place else x for i, x in enumerate(group[self.key]))

    def limit(self, default: float) -> float:
        return min(self.cap, max(1.0, self.span * default))


_KNOBS = (
    _Knob("lr", "lr", span=100),
    _Knob("momentum", "momentum", cap=0.9999),
    _Knob("weight_decay", "weight_decay", span=10),
    _Knob("beta1", "betas", 0, cap=0.9999),
    _Knob("beta2", "betas", 1, cap=0.999999),
)
NAMES = frozenset(knob.name for knob in _KNOBS)


def declared(name: str, default: float) -> HyperParameter:
    """An optimizer's value, one of `NAMES`, with its bounds."""
    (knob,) = (one for one in _KNOBS if one.name == name)
    return HyperParameter(name=name, default=default, min=0.0, max=knob.limit(default))


class OptimizerValues:
    """Writes values into every parameter group, which keep their ratios to one another.

    A value is that of the groups with the optimizer's default, or of the largest where there are none; a group that
    began with a tenth of it has a tenth of it ever after.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._knobs = {knob.name: knob for knob in _KNOBS if all(knob.key in g for g in optimizer.param_groups)}
        self._defaults = {name: self._reference(knob) for name, knob in self._knobs.items()}
        self._ratios = {name: self._ratio(knob) for name, knob in self._knobs.items()}
        self._written: dict[str, Scalar] = {}
        optimizer.register_load_state_dict_post_hook(lambda _: self._written.clear())

    @property
    def lr_rule(self) -> LrRule:
        """How the learning rate follows the batch: √κ for Adam's kind (Malladi et al. 2022), else AdaScale's gain."""
        adaptive = "betas" in self._optimizer.defaults or isinstance(self._optimizer, RMSprop)
        return "sqrt" if adaptive else "adascale"

    def discover(self) -> list[HyperParameter]:
        """A declaration of each value that this optimizer has."""
        return [declared(name, default) for name, default in self._defaults.items()]

    def apply(self, values: Mapping[str, Scalar]) -> None:
        """Write those of `values` that are this optimizer's and not written already."""
        for name, knob in self._knobs.items():
            value = values.get(name)
            if value is None or value == self._written.get(name):
                continue
            for group, ratio in zip(self._optimizer.param_groups, self._ratios[name], strict=True):
                knob.write(group, min(float(value) * ratio, knob.cap))
            self._written[name] = value

    def _reference(self, knob: _Knob) -> float:
        values = [knob.read(group) for group in self._optimizer.param_groups]
        default = knob.read(self._optimizer.defaults) if knob.key in self._optimizer.defaults else 0.0
        return default if default and default in values else max(values)

    def _ratio(self, knob: _Knob) -> list[float]:
        default = self._defaults[knob.name]
        return [knob.read(group) / default if default else 1.0 for group in self._optimizer.param_groups]
