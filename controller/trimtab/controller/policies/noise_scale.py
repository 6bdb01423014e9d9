"""The policy `noise_scale`: the batch follows the gradient noise scale."""

from collections.abc import Sequence
from typing import ClassVar, cast

from pydantic import Field

from trimtab.controller.hyperparameters import BATCH
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation, Proposal, Set
from trimtab.controller.policies.batch import BatchPolicy, Rest
from trimtab.controller.policies.policy import JsonState
from trimtab.controller.trajectory import Constant

__all__ = ["NoiseScale"]


class State(Rest):
    above: int  # consecutive observations whose lower bound asks for a larger batch
    below: int  # consecutive observations whose upper bound asks for a smaller one


class NoiseScale(BatchPolicy):
    """Grow the global batch B with the gradient noise scale, B_simple = tr(Sigma) / |G|^2 [samples].

    Well below B_simple a larger batch saves as many steps as it costs samples; well above it samples are wasted.
    The batch goes to clamp(c * B_simple, min, max) when the 95 % *lower* bound of c * B_simple exceeds `grow_above` * B
    on `confirm` consecutive observations, by `max_change` times at most, to a batch that the workers can take. The
    one-sided bound acts where B is far below B_simple and the estimate itself is vague, and noise alone does not
    pass it; where |G|^2 is not above zero the bound stands in for the estimate.

    After a change the batch rests for `window` estimates. It does not change while the learning rate is warming up,
    nor grow for a window after the learning rate was cut at an unchanged batch: a cut lowers |G|^2 and so inflates
    B_simple, and the run would anneal twice.

    Source: McCandlish et al. 2018 (arXiv 1812.06162); c = 1 / eta^2 is the norm test of AdAdaGrad
    (Lau et al. 2024); the couplings are those of Goyal et al. 2017 (linear), Krizhevsky 2014 (sqrt) and Johnson et
    al. 2020 (adascale); growth in place of decay is Smith et al. 2017.
    """

    kind: ClassVar[str] = "noise_scale"
    source: ClassVar[str] = "McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv 1812.06162"

    c: float = Field(
        1.0,
        gt=0,
        description="Target batch in units of B_simple; 1 / eta^2 gives the norm test of AdAdaGrad (Lau et al. 2024).",
        json_schema_extra={"unit": "1"},
    )
    grow_above: float = Field(
        1.4,
        ge=1,
        description="Grow when the 95 % lower bound of c * B_simple exceeds this multiple of the batch.",
        json_schema_extra={"unit": "x batch"},
    )
    shrink: bool = Field(
        False, description="Whether the batch may become smaller.", json_schema_extra={"unit": "yes or no"}
    )
    shrink_below: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="Shrink when the 95 % upper bound of c * B_simple is below this multiple of the batch.",
        json_schema_extra={"unit": "x batch"},
    )

    def reads(self) -> frozenset[str]:
        return frozenset({"noise_scale"})

    def initial(self) -> State:
        return State(**self._at_first(), above=0, below=0)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        noise = observation.noise
        before = cast(State, state)
        if noise is None or noise.estimates == before["seen"]:
            return state, ()
        after = self._weigh(before, observation, noise)
        if after["above"] >= self.confirm and not self._rests(after, observation, growing=True):
            target, why = self._larger(observation, noise), f"above {self.grow_above:g}"
        elif self.shrink and after["below"] >= self.confirm and not self._rests(after, observation, growing=False):
            target, why = self._smaller(observation, noise), f"below {self.shrink_below:g}"
        else:
            return after, ()
        batch = observation.plan.batch_size
        if target == batch:
            return after, ()
        times = "" if self.c == 1 else f" times c = {self.c:g}"
        reason = f"noise scale {noise}{times} is {why} x batch {batch:,}: batch {batch:,} -> {target:,}"
        rested = State(**{**after, "cooldown": self.window, "above": 0, "below": 0})
        return rested, (Set(BATCH, Constant(target), reason, self.coupling),)

    def _weigh(self, before: State, observation: Observation, noise: Noise) -> State:
        """What the new estimates add to the evidence."""
        rest = self._aged(before, observation, noise)
        above = noise.low is not None and self.c * noise.low > self.grow_above * rest["batch"]
        below = noise.high is not None and self.c * noise.high < self.shrink_below * rest["batch"]
        return State(
            **rest,
            above=before["above"] + 1 if above else 0,
            below=before["below"] + 1 if below else 0,
        )

    def _larger(self, observation: Observation, noise: Noise) -> int:
        plan = observation.plan
        grain = plan.world_size * plan.micro_batch
        target = self.c * (noise.value or noise.low or 0.0)  # undefined: B_simple is at least its bound
        most = self.max_change * plan.batch_size
        most = most if self.max is None else min(most, self.max)
        nearest = plan.nearest(min(max(target, self.min), most))
        return max(plan.batch_size, min(nearest, int(most // grain) * grain))

    def _smaller(self, observation: Observation, noise: Noise) -> int:
        batch = observation.plan.batch_size
        target = self.c * (noise.value or 0.0)
        least = max(batch / self.max_change, self.min)
        nearest = observation.plan.nearest(max(target if self.max is None else min(target, self.max), least))
        return nearest if least <= nearest < batch else batch
