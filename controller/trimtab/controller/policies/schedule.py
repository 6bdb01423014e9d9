"""The policy `schedule`: a hyper-parameter follows a curve that is known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self, TypedDict, cast

from pydantic import Field, model_validator

from trimtab.controller.hyperparameters import LR
from trimtab.controller.observation import Notice, Observation, Proposal, Scale, Set
from trimtab.controller.policies.policy import JsonState, Part, Policy
from trimtab.controller.trajectory import MOST_MARKS, Constant, Ramp, Table, Trajectory, Unit, product

__all__ = ["Schedule"]

NEGLIGIBLE = 1e-12  # steps end where their product has come to this, or to its inverse
Shape = Literal["constant", "linear", "step", "cosine", "wsd", "table"]
Mark = Annotated[int, Field(ge=0, le=10**12)]

# What may be left out, by the shape that makes something of it.
USES: Mapping[Shape, frozenset[str]] = {
    "constant": frozenset({"start"}),
    "linear": frozenset({"start", "horizon"}),
    "step": frozenset({"start", "horizon", "every", "marks"}),
    "cosine": frozenset({"start", "horizon"}),
    "wsd": frozenset({"start", "horizon"}),
    "table": frozenset({"marks", "values"}),
}
OPTIONAL = sorted(frozenset[str]().union(*USES.values()))


class State(TypedDict):
    begin: Mapping[str, int] | None  # progress by unit
    made_of: Mapping[str, Any] | None  # what the trajectory in force, or the last notice, was made of


@dataclass(frozen=True, slots=True)
class Span:
    """Where a schedule runs, and what one of its own marks is worth there."""

    begin: int
    until: int | None  # None: open
    unit: Unit
    grain: int = 1

    def mark(self, number: int) -> int:
        return self.begin + number * self.grain


class Schedule(Policy):
    """Move a hyper-parameter along a curve, beginning where the run is when the policy is added.

    Shapes, with x the share of the horizon done: `constant` stays at `start`; `linear` and `cosine` go to `end` at
    x = 1, the latter by half a period; `step` multiplies by `gamma` at each of `marks`, or once in `every`; `table`
    has its `values` at `marks`; `wsd` (warm-up-stable-decay, the warm-up being the policy of that name) is stable and
    decays to `end` over the last `decay` of the horizon, or from where "decay" was sent to the run: having been stable
    for n it then takes n decay / (1 - decay), so that the decay has the same share of the whole. In a run without
    horizon it is stable until then.

    The curve is a factor of the value, or the base itself. It is one proposal: workers evaluate it at every step.
    Editing the policy draws it anew from the same beginning; without a horizon of its own it ends with the run.

    Source: cosine: Loshchilov & Hutter 2017 (arXiv 1608.03983); wsd: Hu et al. 2024, MiniCPM (arXiv 2404.06395); its
    decay by 1 - sqrt: Hägele et al. 2024 (arXiv 2405.18392); linear, step: PyTorch, torch.optim.lr_scheduler.
    """

    kind: ClassVar[str] = "schedule"
    source: ClassVar[str] = (
        "Loshchilov & Hutter 2017, SGDR, arXiv 1608.03983 (cosine); Hu et al. 2024, MiniCPM, arXiv 2404.06395, and "
        "Hägele et al. 2024, arXiv 2405.18392 (wsd); PyTorch, torch.optim.lr_scheduler (linear, step)"
    )

    param: str = Field(
        LR, min_length=1, description="The hyper-parameter to schedule.", json_schema_extra={"unit": "name"}
    )
    shape: Shape = Field(
        "cosine",
        description="The curve (cosine: Loshchilov & Hutter 2017; wsd: Hu et al. 2024).",
        json_schema_extra={"unit": "shape"},
    )
    of: Literal["factor", "base"] = Field(
        "factor",
        description="Whether the curve's values are a factor, or the base, which the policy then owns.",
        json_schema_extra={"unit": "part"},
    )
    unit: Literal["samples", "steps", "epochs"] = Field(
        "samples", description="What horizon, every and marks are counted in.", json_schema_extra={"unit": "unit"}
    )
    horizon: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Length of the curve; empty: it ends where the run does.",
        json_schema_extra={"unit": "in the schedule's unit"},
    )
    start: float | None = Field(
        None,
        description="Value at the beginning; empty: 1 for a factor, while a base must be told.",
        json_schema_extra={"unit": "1, or the hyper-parameter's"},
    )
    end: float = Field(
        0.0,
        description="Value at the end of a linear, cosine or wsd curve.",
        json_schema_extra={"unit": "1, or the hyper-parameter's"},
    )
    gamma: float = Field(0.1, gt=0, description="What a step multiplies by.", json_schema_extra={"unit": "1"})
    every: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description=f"Distance between two steps, of which there are {MOST_MARKS - 1} at most; else give marks.",
        json_schema_extra={"unit": "in the schedule's unit"},
    )
    marks: tuple[Mark, ...] | None = Field(
        None,
        min_length=1,
        max_length=MOST_MARKS - 1,
        description="Where the steps are, or the values of a table, counted from the beginning.",
        json_schema_extra={"unit": "in the schedule's unit"},
    )
    values: tuple[float, ...] | None = Field(
        None, description="The table's value at each mark.", json_schema_extra={"unit": "1, or the hyper-parameter's"}
    )
    interpolation: Literal["step", "linear"] = Field(
        "linear",
        description="Whether a table holds its value until the next mark, or goes there on a straight line.",
        json_schema_extra={"unit": "rule"},
    )
    decay: float = Field(
        0.1,
        gt=0,
        le=0.9,
        description="Share of wsd's whole that its decay takes (0.1 to 0.2: Hägele et al. 2024).",
        json_schema_extra={"unit": "of the whole"},
    )
    decay_shape: Literal["linear", "sqrt", "cosine"] = Field(
        "sqrt",
        description="How wsd decays; sqrt is 1 - sqrt(x) (Hägele et al. 2024).",
        json_schema_extra={"unit": "shape"},
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in OPTIONAL:
            if name not in USES[self.shape] and (value := getattr(self, name)) is not None:
                raise ValueError(f"a {self.shape} schedule makes nothing of {name}; got {value}")
        if self.of == "base" and self.start is None and self.shape != "table":
            raise ValueError("a schedule of the base needs its start; got none")
        if self.marks is not None and not all(a < b for a, b in pairwise(self.marks)):
            raise ValueError(f"marks must rise; got {self.marks}")
        if self.shape == "step":
            self._check_step()
        if self.shape == "table":
            self._check_table()
        return self

    def _check_step(self) -> None:
        if (self.every is None) == (self.marks is None):
            raise ValueError(f"a step schedule needs either every or marks; got {self.every} and {self.marks}")
        if self.marks is not None and (self.marks[0] == 0 or self.horizon is not None):
            raise ValueError(f"marks of steps lie above 0 and need no horizon; got {self.marks} and {self.horizon}")

    def _check_table(self) -> None:
        if self.marks is None or self.values is None or not len(self.values) == len(self.marks) >= 2:
            raise ValueError(f"a table needs two marks or more, and as many values; got {self.marks} and {self.values}")

    @property
    def heeds_decay(self) -> bool:
        return self.shape == "wsd"

    def reads(self) -> frozenset[str]:
        return frozenset()

    def writes(self) -> Mapping[str, Part]:
        return {self.param: self.of}

    def initial(self) -> State:
        return State(begin=None, made_of=None)

    def decide(self, state: JsonState, observation: Observation) -> tuple[JsonState, Sequence[Proposal]]:
        now, before = observation.progress, cast(State, state)
        begin = before["begin"] or {"samples": now.samples, "steps": now.steps}
        missing = self._missing(observation)
        span = None if missing else self._span(begin, observation)
        wish = self._wish(span, observation) if span else None
        made_of = {"params": self.model_dump(mode="json"), "missing": missing, "decay_from": wish}
        if before["made_of"] == made_of:
            return state, ()
        after = State(begin=begin, made_of=made_of)
        if span is None:
            return after, (Notice(f"the schedule of {self.param} waits: {missing}"),)
        curve, how = self._draw(span, wish)
        what = f"schedule: {self.param}{' x' if self.of == 'factor' else ''} {how}"
        if self.of == "base":
            return after, (Set(self.param, curve, what),)
        return after, (Scale(self.param, curve, what),)

    def _own(self) -> bool:
        """Are there lengths in the schedule's own unit?"""
        return any(length is not None for length in (self.horizon, self.every, self.marks))

    def _missing(self, observation: Observation) -> str | None:
        """What the curve cannot be drawn without, if anything."""
        if self._own():
            unknown = self.unit == "epochs" and not observation.dataset_size
            return "the size of the data set, which makes samples of epochs, is not known" if unknown else None
        if self.shape in ("linear", "cosine") and observation.horizon is None:
            return "it has no horizon, and the run has none"
        return None

    def _span(self, begin: Mapping[str, int], observation: Observation) -> Span:
        run = observation.horizon
        if not self._own():
            if run is None:
                return Span(begin["samples"], None, "samples")
            return Span(begin[run.unit], max(run.amount, begin[run.unit] + 1), run.unit)
        unit: Unit = "samples" if self.unit == "epochs" else self.unit
        grain = (observation.dataset_size or 1) if self.unit == "epochs" else 1
        until = run.amount if run is not None and run.unit == unit else None
        if self.horizon is not None:
            until = begin[unit] + self.horizon * grain
        return Span(begin[unit], until, unit, grain)

    def _wish(self, span: Span, observation: Observation) -> int | None:
        """Where wsd's decay was asked for; None if it was not, before the beginning, or when it had begun."""
        if self.shape != "wsd" or observation.decay_from is None:
            return None
        mark = observation.decay_from.in_unit(span.unit)
        in_time = span.until is None or mark < self._planned(span, span.until)
        return mark if span.begin < mark and in_time else None

    def _planned(self, span: Span, until: int) -> int:
        return until - max(1, round(self.decay * (until - span.begin)))

    def _draw(self, span: Span, wish: int | None) -> tuple[Trajectory, str]:
        """The whole curve, and what it is in words."""
        start = 1.0 if self.start is None else self.start
        if self.shape == "table":
            return self._table(span)
        if self.shape == "step":
            return self._steps(span, start)
        if self.shape == "wsd":
            return self._wsd(span, start, wish)
        if self.shape == "constant" or span.until is None:
            return Constant(start), f"{start:g}, constant"
        curve = Ramp(start, self.end, span.begin, span.until, span.unit, self.shape)
        return curve, f"{start:g} -> {self.end:g}, {self.shape} from {_at(span.unit, span.begin)} to {span.until:,}"

    def _wsd(self, span: Span, start: float, wish: int | None) -> tuple[Trajectory, str]:
        if wish is not None:
            until = wish + max(1, round((wish - span.begin) * self.decay / (1 - self.decay)))
            how = f"{start:g} -> {self.end:g}, the decay asked for, {self.decay_shape}"
            curve = Ramp(start, self.end, wish, until, span.unit, self.decay_shape)
            return curve, f"{how} from {_at(span.unit, wish)} to {until:,}"
        if span.until is None:
            return Constant(start), f"{start:g} until the decay is asked for"
        begin = self._planned(span, span.until)
        how = f"{start:g} until {_at(span.unit, begin)}, then {self.decay_shape} to {self.end:g} at {span.until:,}"
        return Ramp(start, self.end, begin, span.until, span.unit, self.decay_shape), how

    def _steps(self, span: Span, start: float) -> tuple[Trajectory, str]:
        marks, worths = [span.begin], [1.0]
        for number in self.marks or range(self.every or 1, 10**15, self.every or 1):
            mark, worth = span.mark(number), product([worths[-1], self.gamma])
            over = self.marks is None and span.until is not None and mark > span.until
            if over or len(marks) == MOST_MARKS or not NEGLIGIBLE <= worth <= 1 / NEGLIGIBLE:
                break
            marks.append(mark)
            worths.append(worth)
        if len(marks) == 1:
            return Constant(start), f"{start:g}, with no step before the end"
        values = tuple(product([start, worth]) for worth in worths)
        how = f"{start:g} -> {values[-1]:g} in {len(marks) - 1} steps x {self.gamma:g} from {_at(span.unit, marks[1])}"
        return Table(tuple(marks), values, span.unit, "step"), f"{how} to {marks[-1]:,}"

    def _table(self, span: Span) -> tuple[Trajectory, str]:
        marks, values = tuple(span.mark(number) for number in self.marks or ()), self.values or ()
        how = f"{values[0]:g} -> {values[-1]:g}, a {self.interpolation} table of {len(values)} values"
        curve = Table(marks, values, span.unit, self.interpolation)
        return curve, f"{how} from {_at(span.unit, marks[0])} to {marks[-1]:,}"


def _at(unit: Unit, mark: int) -> str:
    return f"{unit.removesuffix('s')} {mark:,}"
