"""The Policy base class and the registry of kinds."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from trimtab.controller.observation import Observation, Proposal

JsonState = Mapping[str, Any]  # plain JSON; it lives in the journal
Part = Literal["base", "factor"]
GROUP = "trimtab.policies"  # of entry points


class Policy(BaseModel):
    """A frozen configuration with a pure `decide`.

    The fields of a subclass are its parameters: REST validates them, the page makes a form of them. A policy holds
    no other state, reads no clock and draws no randomness; what it must remember it returns as the next state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    rule: ClassVar[int] = 1  # raised whenever the same input gives another decision, so that old journals stay readable
    source: ClassVar[str] = ""  # paper or code that the rule comes from
    lasting: ClassVar[bool] = False  # do its state and what it has written outlast a roll back?

    @abstractmethod
    def reads(self) -> frozenset[str]:
        """Metrics that `decide` looks at.

        `noise_scale` stands for the estimate in `Observation.noise`, `rank_times` for `Observation.rank_times`.
        """

    @abstractmethod
    def writes(self) -> Mapping[str, Part]:
        """The part of each hyper-parameter that `decide` may propose; a base has one owner."""

    @property
    def heeds_decay(self) -> bool:
        """Does `decide` look at `Observation.decay_from`? Those of other packages are taken to."""
        return False

    def waits(self, state: JsonState, observation: Observation) -> str | None:  # noqa: ARG002
        """What it holds back for, as far as it is known, for whoever wonders why nothing comes of it."""
        return None

    @abstractmethod
    def initial(self) -> JsonState:
        """The state before the first observation."""

    @abstractmethod
    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        """The next state and what to change, each proposal with a reason of one sentence."""


@cache
def kinds() -> Mapping[str, type[Policy]]:
    """Trimtab's own policies by kind, from the entry points of group `trimtab.policies`."""
    found = {entry.name: entry.load() for entry in entry_points(group=GROUP) if _own(entry)}
    for name, cls in found.items():
        if cls.kind != name:
            raise ValueError(f"the entry point {name!r} names a policy of kind {cls.kind!r}; make them equal")
    return dict(sorted(found.items()))


@cache
def strangers() -> Mapping[str, EntryPoint]:
    """Policies of other packages by kind. Nothing of them is imported here; see `sandbox`."""
    found = {entry.name: entry for entry in entry_points(group=GROUP) if not _own(entry)}
    return {name: entry for name, entry in sorted(found.items()) if name not in kinds()}


def _own(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == "trimtab"


def build(kind: str, params: Mapping[str, Any]) -> Policy:
    """The policy of that kind; raises KeyError for an unknown kind, pydantic.ValidationError for bad parameters."""
    return kinds()[kind].model_validate(dict(params))
