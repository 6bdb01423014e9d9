"""Shadow: what a policy would have made of a run, held beside the version in force."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from trimtab.controller.hyperparameters import COUPLED, Parameter, Version
from trimtab.controller.observation import Observation
from trimtab.controller.trajectory import Coupling, Factor, Progress, Trajectory


@dataclass(frozen=True, slots=True)
class Held:
    """One hyper-parameter as a policy in shadow would have it; what is None is as in the version in force."""

    base: Trajectory | None = None
    factor: Factor | None = None  # the policy's own
    coupling: Coupling | None = None  # the learning rate's, as the batch would have moved it

    def over(self, parameter: Parameter, name: str) -> Parameter:
        """`parameter` as the policy `name` would have it."""
        factors = dict(parameter.factors)
        if self.factor is not None:
            factors[name] = self.factor
        if self.coupling is not None:
            factors[COUPLED] = self.coupling
        return replace(parameter, base=parameter.base if self.base is None else self.base, factors=factors)


@dataclass(frozen=True, slots=True)
class Overlay:
    """All that a policy has decided in shadow. It lies over the version in force, so what it leaves alone follows."""

    held: Mapping[str, Held] = field(default_factory=dict)  # by hyper-parameter
    paused: bool | None = None
    stopped: bool | None = None
    decay_from: Progress | None = None

    def over(self, version: Version, name: str) -> Version:
        """`version` as the policy `name` would have it."""
        if self == NOTHING:
            return version
        held = {param: one for param, one in self.held.items() if param in version.parameters}
        return replace(
            version,
            parameters={**version.parameters} | {p: one.over(version.parameters[p], name) for p, one in held.items()},
            paused=version.paused if self.paused is None else self.paused,
            stopped=version.stopped if self.stopped is None else self.stopped,
            decay_from=version.decay_from or self.decay_from,
        )

    def after(self, before: Version, after: Version, name: str) -> "Overlay":
        """The overlay when the would-be version has gone from `before` to `after`."""
        held = dict(self.held)
        for param, new in after.parameters.items():
            old, known = before.parameters[param], held.get(param, Held())
            if new.base != old.base:
                known = replace(known, base=new.base)
            if new.factors.get(name) != old.factors.get(name):
                known = replace(known, factor=new.factors[name])
            coupling = new.factors.get(COUPLED)
            if coupling != old.factors.get(COUPLED) and isinstance(coupling, Coupling):
                known = replace(known, coupling=coupling)
            if known != Held():
                held[param] = known
        return Overlay(
            held,
            after.paused if after.paused != before.paused else self.paused,
            after.stopped if after.stopped != before.stopped else self.stopped,
            after.decay_from if after.decay_from != before.decay_from else self.decay_from,
        )


NOTHING = Overlay()


def seen(observation: Observation, version: Version) -> Observation:
    """The same moment with another version in force. What was measured stays: nobody knows what it would have been."""
    progress = observation.progress
    settings = version.at(progress)
    return replace(
        observation,
        values=settings.values,
        plan=settings.plan,
        rising=version.rising(progress),
        decay_from=version.decay_from,
    )
