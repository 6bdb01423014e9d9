"""What the policies that grow the worker group one by one have in common."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import ClassVar, TypedDict, cast

from pydantic import Field

from trimtab.controller.batching import Plan
from trimtab.controller.observation import Notice, Observation, Proposal, Set
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.policies.step_times import IN_FORCE, STEP_TIME, timed
from trimtab.controller.policies.wish import NONE, Wish, asking, look, others, present
from trimtab.controller.trajectory import Constant

__all__ = ["Growth", "State"]

ODD = 1.5  # a reading that differs so many times from the window's median is left out: a checkpoint, a neighbour
SAME = 0.15  # share by which two batches may differ: rounding may make so much of one wish
ANEW = 3  # times that a size is measured anew because the batch has moved


class Rate(TypedDict):
    """What the run took with one size."""

    rate: float  # [samples/s]
    batch: float  # that it had, as it is after the resizes since then [samples]


class State(TypedDict):
    wish: Wish
    proven: int  # the largest size that pays, or the first; 0: not known yet
    others: int  # ranks for each one of the parameter
    plan: list[int]  # ranks and batch at the last observation
    rates: dict[str, Rate]  # by size: the present one and its neighbours
    batch: int  # of the present window [samples]
    seen: int  # readings of it
    recent: list[float]  # throughput, of its second half [samples/s]
    anew: int  # times that a size was measured anew
    ended: bool


class Growth(Policy):
    """Grows `param` by one while throughput rises by enough; else it takes the last one back and ends.

    A window begins when the run trains on the size that was wished. Throughput is the mean over the window's second
    half. The size before must have been measured with the same batch, but for what the run itself makes of the batch in
    the moment of a resize: if a policy or a person has moved it since, that size is measured anew.
    """

    param: ClassVar[str]
    lasting: ClassVar[bool] = True  # throughput is the cluster's: a roll back of the model makes it no other

    window: int = Field(
        30,
        ge=2,
        le=10_000,
        description="Readings of the step time at each size; the first half is warm-up, the second is measured. A "
        "reading is the mean over the steps of an observation, a quarter of a second at least.",
        json_schema_extra={"unit": "observations"},
    )
    max: int | None = Field(
        None,
        ge=1,
        description="Largest number to propose; empty: the hyper-parameter's own bound.",
        json_schema_extra={"unit": "1"},
    )
    patience: int = Field(
        600,
        ge=1,
        description="Observations for which a wish may stay unfulfilled, since the cluster has no room or newcomers "
        "are still starting; then it is taken back.",
        json_schema_extra={"unit": "observations"},
    )

    @abstractmethod
    def _asked(self, size: int) -> float:
        """The rise of throughput that the last one of `size` must bring, relative to one fewer."""

    def reads(self) -> frozenset[str]:
        return frozenset({STEP_TIME, IN_FORCE})

    def writes(self) -> Mapping[str, Part]:
        return {self.param: "base"}

    def initial(self) -> State:
        return State(
            wish=NONE, proven=0, others=0, plan=[0, 0], rates={}, batch=0, seen=0, recent=[], anew=0, ended=False
        )

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        before = cast(State, state)
        if before["ended"]:
            return state, ()
        before = _resized(before, observation.plan)
        fate, wish = look(before["wish"], observation, self.param)
        if fate == "granted":
            return self._measure(_begun(before, wish, others(observation, self.param)), observation)
        now: State = {**before, "wish": wish, "seen": 0, "recent": []}
        if fate == "denied":
            reason = f"{self._count(before['wish']['size'])} asked for, but a bound or a pin holds it at {wish['size']}"
            return self._end(now, wish["size"], reason)
        if fate == "waiting" and wish["waited"] >= self.patience:
            there = present(observation, self.param)
            reason = f"{self._count(wish['size'])} wished, but the run trains on {there} after {self.patience:,}"
            return self._end(now, there, f"{reason} observations")
        if fate == "moved":  # somebody else holds it: until it is let go, there is nothing to be measured
            now = {**now, "wish": before["wish"]}
        return now, ()

    def _measure(self, now: State, observation: Observation) -> tuple[State, Sequence[Proposal]]:
        """Take in a reading, of the size that was wished; at the window's end there is a decision."""
        read = timed(observation)
        if read is None:
            return now, ()
        batch, time = read
        size = now["wish"]["size"]
        if not now["seen"] or not _same(batch, now["batch"]):
            now = {**now, "batch": batch, "seen": 0, "recent": []}
        late = now["seen"] >= self.window // 2
        recent = [*now["recent"], float(f"{batch / time:.6g}")] if late else now["recent"]
        if now["seen"] + 1 < self.window:
            return {**now, "seen": now["seen"] + 1, "recent": recent}, ()
        rates = {one: rate for one, rate in now["rates"].items() if abs(int(one) - size) == 1}
        rates[str(size)] = Rate(rate=float(f"{_mean(recent):.6g}"), batch=now["batch"])
        return self._judge({**now, "rates": rates, "seen": 0, "recent": []})

    def _judge(self, now: State) -> tuple[State, Sequence[Proposal]]:
        size = now["wish"]["size"]
        rate, below, above = now["rates"][str(size)]["rate"], _rate(now, size - 1), _rate(now, size + 1)
        told = f"{self._count(size)} {'takes' if size == 1 else 'take'} {_figure(rate)} samples/s"
        if size > now["proven"]:
            if below is None:
                return self._again(now, told)
            told = f"{told}, {self._compared(size, rate, below)}"
            if rate < (1 + self._asked(size)) * below:
                return self._end(now, size - 1, told)
            now = {**now, "proven": size}
        if above is not None and above < (1 + self._asked(size + 1)) * rate:
            told = f"{self._count(size + 1)} took {_figure(above)} samples/s, {self._compared(size + 1, above, rate)}"
            return self._end(now, size, told)
        if self.max is not None and size >= self.max:
            return self._end(now, size, f"{told}, and {self.max} is the most that may be")
        return self._go(now, size + 1, told if below else f"{told}, and one more is tried")

    def _again(self, now: State, told: str) -> tuple[State, Sequence[Proposal]]:
        """Go back to the size before, to measure it with the present batch."""
        size = now["wish"]["size"]
        if now["anew"] >= ANEW:
            return self._end(now, size - 1, f"the batch has moved {ANEW + 1} times since {size - 1} had been measured")
        reason = f"{told}, but {size - 1} took what they did with another batch and must be measured anew"
        return self._go({**now, "anew": now["anew"] + 1}, size - 1, reason)

    def _go(self, now: State, size: int, reason: str) -> tuple[State, Sequence[Proposal]]:
        moved = f"{reason}: {self.param} {now['wish']['size']} -> {size}"
        return {**now, "wish": asking(size)}, (Set(self.param, Constant(size), moved),)

    def _end(self, now: State, size: int, reason: str) -> tuple[State, Sequence[Proposal]]:
        """Leave it at `size` for good."""
        wished = now["wish"]["size"]
        ended: State = {**now, "wish": asking(size), "ended": True}
        if size == wished:
            return ended, (Notice(f"{reason}: {self.param} stays at {size}, and growing ends"),)
        moved = f"{reason}: {self.param} {wished} -> {size}, and growing ends"
        return ended, (Set(self.param, Constant(size), moved),)

    def _compared(self, size: int, rate: float, below: float) -> str:
        change = rate / below - 1
        more = f"{abs(change):.1%} {'more' if change >= 0 else 'less'}"
        return f"{more} than {size - 1} ({_figure(below)}), where {self._asked(size):.1%} more are asked for"

    def _count(self, size: int) -> str:
        return f"{size} {self.param.removesuffix('s') if size == 1 else self.param}"


def _begun(now: State, wish: Wish, beside: int) -> State:
    """The state at a size that trains; with other ranks beside it, what was measured says nothing."""
    now = {**now, "wish": wish, "proven": now["proven"] or wish["size"]}
    return now if beside == now["others"] else {**now, "others": beside, "rates": {}, "seen": 0, "recent": []}


def _resized(now: State, plan: Plan) -> State:
    """The state after what may have been a resize. What that makes of the batch by itself, it makes of all batches."""
    ranks, batch = now["plan"]
    after = [plan.world_size, plan.batch_size]
    if after[0] == ranks or not ranks:
        return {**now, "plan": after}
    rates = {size: Rate(rate=one["rate"], batch=one["batch"] * after[1] / batch) for size, one in now["rates"].items()}
    return {**now, "plan": after, "rates": rates}


def _rate(now: State, size: int) -> float | None:
    """The throughput of a neighbour of the present size, if it was measured with the same batch."""
    known = now["rates"].get(str(size))
    return known["rate"] if known is not None and _same(now["batch"], known["batch"]) else None


def _same(batch: float, other: float) -> bool:
    return abs(batch - other) <= SAME * other


def _mean(rates: Sequence[float]) -> float:
    """The mean of those that are not far from the median."""
    middle = median(rates)
    return fmean([rate for rate in rates if middle / ODD <= rate <= middle * ODD] or [middle])


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if 100 <= rate < 1e9 else f"{rate:.3g}"
