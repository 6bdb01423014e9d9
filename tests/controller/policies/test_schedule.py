import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Horizon, Notice, Observation, Proposal, Scale, Set
from trimtab.controller.policies.schedule import Schedule
from trimtab.controller.trajectory import MOST_MARKS, Constant, Progress, Ramp, Table, Trajectory

PLAN = Batching(1, 8, 8).plan(8)
HERE = Observation(Progress(), {"lr": 0.1}, PLAN)
RUN = replace(HERE, horizon=Horizon(50_000))


def ask(
    policy: Schedule, observation: Observation, state: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Any], Proposal]:
    """The state and the one proposal; asked again it has nothing to say."""
    state, proposals = policy.decide(policy.initial() if state is None else state, observation)
    (proposal,) = proposals
    assert policy.decide(state, observation) == (state, ())
    return state, proposal


def curve(policy: Schedule, observation: Observation = RUN) -> Trajectory:
    _, proposal = ask(policy, observation)
    assert isinstance(proposal, Scale)
    assert not isinstance(proposal.by, str)
    return proposal.by  # type: ignore[return-value]


def wish(observation: Observation, now: int, at: int) -> Observation:
    """`observation` at sample `now`, after the decay was asked for at sample `at`; a step is ten samples."""
    return replace(observation, progress=Progress(now // 10, now), decay_from=Progress(at // 10, at))


def test_a_cosine_over_the_runs_horizon() -> None:
    assert ask(Schedule(), RUN)[1] == Scale(
        "lr", Ramp(1.0, 0.0, 0, 50_000, shape="cosine"), "schedule: lr x 1 -> 0, cosine from sample 0 to 50,000"
    )
    run = replace(HERE, horizon=Horizon(900, "steps"))
    assert curve(Schedule(shape="linear", end=0.1), run) == Ramp(1.0, 0.1, 0, 900, "steps")


def test_begins_where_the_run_is_and_ends_with_it_or_after_its_own_horizon() -> None:
    later = replace(RUN, progress=Progress(100, 1000))
    assert curve(Schedule(), later) == Ramp(1.0, 0.0, 1000, 50_000, shape="cosine")
    assert curve(Schedule(horizon=4000), later) == Ramp(1.0, 0.0, 1000, 5000, shape="cosine")
    assert curve(Schedule(horizon=400, unit="steps"), later) == Ramp(1.0, 0.0, 100, 500, "steps", "cosine")
    beyond = replace(RUN, progress=Progress(10_000, 60_000))
    assert curve(Schedule(), beyond) == Ramp(1.0, 0.0, 60_000, 60_001, shape="cosine")


def test_epochs_are_samples_once_the_size_of_the_data_set_is_known() -> None:
    policy = Schedule(horizon=3, unit="epochs")
    state, told = ask(policy, RUN)
    assert isinstance(told, Notice)
    assert told.reason == (
        "the schedule of lr waits: the size of the data set, which makes samples of epochs, is not known"
    )
    later = replace(RUN, progress=Progress(5, 40), dataset_size=1000)
    _, proposal = ask(policy, later, state)
    assert isinstance(proposal, Scale)
    assert proposal.by == Ramp(1.0, 0.0, 0, 3000, shape="cosine")  # from where it was added
    steps = Schedule(shape="step", marks=(30, 60), unit="epochs")
    assert curve(steps, later) == Table((40, 30_040, 60_040), (1.0, 0.1, 0.1 * 0.1), "samples", "step")


def test_without_any_horizon_it_says_what_is_missing() -> None:
    _, told = ask(Schedule(param="momentum"), HERE)
    assert told == Notice("the schedule of momentum waits: it has no horizon, and the run has none")


def test_a_constant_needs_no_horizon() -> None:
    proposal = ask(Schedule(shape="constant", start=0.5), HERE)[1]
    assert proposal == Scale("lr", Constant(0.5), "schedule: lr x 0.5, constant")


def test_a_base_is_set_to_absolute_values_and_owned() -> None:
    policy = Schedule(param="weight_decay", of="base", shape="linear", start=0.1, end=0.4)
    assert policy.writes() == {"weight_decay": "base"}
    assert ask(policy, RUN)[1] == Set(
        "weight_decay", Ramp(0.1, 0.4, 0, 50_000), "schedule: weight_decay 0.1 -> 0.4, linear from sample 0 to 50,000"
    )


def test_steps_at_marks() -> None:
    proposal = ask(Schedule(shape="step", marks=(30, 60), unit="steps", gamma=0.5), HERE)[1]
    assert proposal == Scale(
        "lr",
        Table((0, 30, 60), (1.0, 0.5, 0.25), "steps", "step"),
        "schedule: lr x 1 -> 0.25 in 2 steps x 0.5 from step 30 to 60",
    )


def test_a_step_every_so_often_until_the_end() -> None:
    cut = Schedule(shape="step", every=20_000, gamma=0.5)
    assert curve(cut) == Table((0, 20_000, 40_000), (1.0, 0.5, 0.25), "samples", "step")
    own = Schedule(shape="step", every=20, gamma=0.5, horizon=60, unit="steps", start=8.0)
    assert curve(own) == Table((0, 20, 40, 60), (8.0, 4.0, 2.0, 1.0), "steps", "step")
    assert curve(Schedule(shape="step", every=60_000)) == Constant(1.0)
    # the run's horizon in samples says nothing about steps: it goes on until nothing is left
    endless = curve(Schedule(shape="step", every=7, unit="steps", gamma=2.0**-10))
    assert endless == Table((0, 7, 14, 21), (1.0, 2.0**-10, 2.0**-20, 2.0**-30), "steps", "step")
    slow = curve(Schedule(shape="step", every=1, gamma=0.999))
    assert isinstance(slow, Table)
    assert len(slow.marks) == MOST_MARKS


def test_a_table() -> None:
    policy = Schedule(param="batch_size", shape="table", marks=(0, 100, 900), values=(0.0, 1.0, 0.25))
    later = replace(RUN, progress=Progress(10, 100))
    assert ask(policy, later)[1] == Scale(
        "batch_size",
        Table((100, 200, 1000), (0.0, 1.0, 0.25)),
        "schedule: batch_size x 0 -> 0.25, a linear table of 3 values from sample 100 to 1,000",
    )


def test_wsd_decays_over_the_last_share_of_the_horizon() -> None:
    assert ask(Schedule(shape="wsd"), RUN)[1] == Scale(
        "lr",
        Ramp(1.0, 0.0, 45_000, 50_000, shape="sqrt"),
        "schedule: lr x 1 until sample 45,000, then sqrt to 0 at 50,000",
    )
    decay = curve(Schedule(shape="wsd", decay=0.2, decay_shape="linear", end=0.1))
    assert [decay.at(Progress(0, mark)) for mark in (0, 40_000, 45_000, 50_000)] == pytest.approx([1, 1, 0.55, 0.1])
    assert curve(Schedule(shape="wsd", horizon=1)) == Ramp(1.0, 0.0, 0, 1, shape="sqrt")


def test_wsd_decays_from_where_it_was_asked_for() -> None:
    policy = Schedule(shape="wsd", decay=0.2)
    state, _ = ask(policy, RUN)
    assert policy.decide(state, replace(RUN, progress=Progress(1000, 10_000))) == (state, ())
    state, proposal = ask(policy, wish(RUN, 20_100, 20_000), state)
    assert proposal == Scale(
        "lr",
        Ramp(1.0, 0.0, 20_000, 25_000, shape="sqrt"),  # a fifth of the 25,000 that it is in all
        "schedule: lr x 1 -> 0, the decay asked for, sqrt from sample 20,000 to 25,000",
    )
    assert policy.decide(state, wish(RUN, 30_000, 20_000)) == (state, ())
    _, edited = ask(Schedule(shape="wsd", decay=0.5, decay_shape="linear"), wish(RUN, 20_200, 20_000), state)
    assert isinstance(edited, Scale)
    assert edited.by == Ramp(1.0, 0.0, 20_000, 40_000)


def test_wsd_without_a_horizon_waits_for_the_word() -> None:
    policy = Schedule(shape="wsd", start=2.0, end=1.0)
    state, proposal = ask(policy, HERE)
    assert proposal == Scale("lr", Constant(2.0), "schedule: lr x 2 until the decay is asked for")
    _, proposal = ask(policy, wish(HERE, 9000, 9000), state)
    assert isinstance(proposal, Scale)
    assert proposal.by == Ramp(2.0, 1.0, 9000, 10_000, shape="sqrt")


def test_a_wish_that_comes_too_late_or_was_there_before_changes_nothing() -> None:
    policy = Schedule(shape="wsd")
    state, _ = ask(policy, RUN)
    assert policy.decide(state, wish(RUN, 46_000, 45_000)) == (state, ())
    assert curve(policy, wish(RUN, 10_000, 5000)) == Ramp(1.0, 0.0, 46_000, 50_000, shape="sqrt")
    assert Schedule().decide(ask(Schedule(), RUN)[0], wish(RUN, 9000, 9000))[1] == ()


def test_an_edit_draws_anew_from_the_same_beginning() -> None:
    state, _ = ask(Schedule(), replace(RUN, progress=Progress(100, 1000)))
    later = replace(RUN, progress=Progress(200, 2000))
    _, proposal = ask(Schedule(shape="linear", horizon=600, unit="steps"), later, state)
    assert isinstance(proposal, Scale)
    assert proposal.by == Ramp(1.0, 0.0, 100, 700, "steps")


def test_no_decay_is_longer_than_the_largest_number() -> None:
    far = replace(HERE, progress=Progress(0, 0))
    policy = Schedule(shape="wsd", decay=0.9)
    state, _ = ask(policy, far)
    _, proposal = ask(policy, wish(far, 10**15, 10**15), state)
    assert isinstance(proposal, Scale)
    assert math.isclose(proposal.by.until, 10**16)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"shape": "constant", "horizon": 5}, "a constant schedule makes nothing of horizon; got 5"),
        ({"shape": "cosine", "every": 5}, "a cosine schedule makes nothing of every; got 5"),
        ({"shape": "table", "marks": (0, 1), "values": (1, 2), "start": 1}, "makes nothing of start"),
        ({"of": "base"}, "needs its start; got none"),
        ({"shape": "step"}, "either every or marks; got None and None"),
        ({"shape": "step", "every": 3, "marks": (1,)}, "either every or marks"),
        ({"shape": "step", "marks": (0, 5)}, r"above 0 and need no horizon; got \(0, 5\)"),
        ({"shape": "step", "marks": (5,), "horizon": 9}, "above 0 and need no horizon"),
        ({"shape": "step", "marks": (5, 5)}, r"marks must rise; got \(5, 5\)"),
        ({"shape": "table"}, "two marks or more, and as many values; got None and None"),
        ({"shape": "table", "marks": (1,), "values": (1,)}, "two marks or more"),
        ({"shape": "table", "marks": (1, 2), "values": (1, 2, 3)}, "as many values"),
        ({"shape": "table", "marks": (1, 2), "values": (1, math.inf)}, "finite"),
        ({"decay": 1.0}, "less than or equal to 0.9"),
    ],
)
def test_refuses_what_contradicts_itself(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Schedule(**params)
