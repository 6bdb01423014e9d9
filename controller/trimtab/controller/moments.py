"""The journal of a run as a replay reads it: what the policies were asked, and all that came between."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from trimtab.controller import engine
from trimtab.controller.events import Event, Observed, Registered, Stated, Versioned
from trimtab.controller.hyperparameters import COUPLED
from trimtab.controller.observation import Observation
from trimtab.controller.run import Run


@dataclass(frozen=True, slots=True)
class Asking:
    """One time that the policies were asked: at a control tick, or before the first step of a formation."""

    observed: Observed
    versioned: Versioned | None  # what was made of their answers
    registered: Registered | None  # what the train function had declared just before, if it is not a tick

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(one for one in (self.registered, self.observed, self.versioned) if one is not None)

    def again(self, run: Run, look: Callable[[Run], Observation]) -> tuple[Event, ...]:
        """What comes of asking the policies of `run`, which see what `look` shows."""
        version = self.versioned.version if self.versioned else run.version
        if self.registered is None:
            return engine.observe(run, version.term, look(run), self.observed.estimator)
        declared = [parameter.spec for parameter in version.parameters.values()]  # those that the run has stay
        rule, size = self.registered.lr_rule, self.registered.dataset_size
        return engine.register(run, version.term, declared, rule, size, look, self.observed.estimator)


def moments(events: Iterable[Event]) -> Iterator[Event | Asking]:
    """The events in order, those of one asking together. An Observed by itself is a run's end: nobody was asked."""
    registered: Registered | None = None
    observed: Observed | None = None
    for event in events:
        if observed is not None:
            if isinstance(event, Stated) and event.state.ended:
                yield observed
            elif isinstance(event, Versioned) and _made_of(observed, event, registered is not None):
                yield Asking(observed, event, registered)
                observed = registered = None
                continue
            else:
                yield Asking(observed, None, registered)
            observed = registered = None
        if isinstance(event, Registered):
            registered = event
        elif isinstance(event, Observed):
            observed = event
        else:
            yield event
    if observed is not None:
        yield Asking(observed, None, registered)


def _made_of(observed: Observed, version: Versioned, registering: bool) -> bool:
    """Was the version made of what policies answered, and not by somebody right after?"""
    makers = {one.policy for one in observed.outcomes if one.refused is None and one.policy not in observed.shadows}
    if not makers and not registering:
        return False
    makers |= {COUPLED, "script"} if registering else {COUPLED}
    return version.progress == observed.observation.progress and all(one.by in makers for one in version.changes)
