import pytest
from pydantic import ValidationError

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Horizon, Observation, Scale
from trimtab.controller.policies.warmup import Warmup
from trimtab.controller.trajectory import Progress, Ramp

PLAN = Batching(1, 8, 8).plan(8)


def first(policy: Warmup, progress: Progress = Progress(), horizon: Horizon | None = None) -> Scale:  # noqa: B008
    state, proposals = policy.decide(policy.initial(), Observation(progress, {"lr": 0.1}, PLAN, horizon=horizon))
    (proposal,) = proposals
    assert isinstance(proposal, Scale)
    again, nothing = policy.decide(state, Observation(progress, {"lr": 0.1}, PLAN, horizon=horizon))
    assert (again, tuple(nothing)) == (state, ())
    return proposal


def test_rises_over_a_share_of_the_horizon() -> None:
    assert first(Warmup(), horizon=Horizon(50_000)) == Scale(
        "lr", Ramp(0.01, 1.0, 0, 2500), "warm-up: lr x 0.01 -> 1, linear over 2,500 samples from sample 0"
    )
    assert first(Warmup(fraction=0.1), horizon=Horizon(900, "steps")).by == Ramp(0.01, 1.0, 0, 90, "steps")


def test_without_a_horizon_it_takes_1000_samples() -> None:
    assert first(Warmup()).by == Ramp(0.01, 1.0, 0, 1000)


def test_begins_where_the_run_is() -> None:
    assert first(Warmup(samples=640), Progress(10, 320)).by == Ramp(0.01, 1.0, 320, 960)
    proposal = first(Warmup(steps=1500, start=0.1, shape="exponential", param="momentum"), Progress(10, 320))
    assert proposal == Scale(
        "momentum",
        Ramp(0.1, 1.0, 10, 1510, "steps", "exponential"),
        "warm-up: momentum x 0.1 -> 1, exponential over 1,500 steps from step 10",
    )


def test_a_tiny_horizon_still_has_a_ramp() -> None:
    assert first(Warmup(), horizon=Horizon(3, "steps")).by == Ramp(0.01, 1.0, 0, 1, "steps")


def test_an_explicit_length_wins_over_the_horizon() -> None:
    assert first(Warmup(samples=7), horizon=Horizon(100)).by == Ramp(0.01, 1.0, 0, 7)


def test_refuses_what_contradicts_itself() -> None:
    with pytest.raises(ValidationError, match="not both; got 5 samples and 6 steps"):
        Warmup(samples=5, steps=6)
    with pytest.raises(ValidationError, match="start above 0"):
        Warmup(start=0, shape="exponential")
    assert Warmup(param="weight_decay").writes() == {"weight_decay": "factor"}


def test_an_edit_draws_the_ramp_anew_from_the_same_beginning() -> None:
    state, _ = Warmup(samples=1000).decide(Warmup().initial(), Observation(Progress(5, 160), {"lr": 0.1}, PLAN))
    edited = Warmup(samples=4000, start=0.1)
    state, proposals = edited.decide(state, Observation(Progress(20, 640), {"lr": 0.1}, PLAN))
    (proposal,) = proposals
    assert isinstance(proposal, Scale)
    assert proposal.by == Ramp(0.1, 1.0, 160, 4160)
    assert edited.decide(state, Observation(Progress(30, 960), {"lr": 0.1}, PLAN))[1] == ()
