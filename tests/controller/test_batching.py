import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.controller.batching import Batching, Plan


@st.composite
def batchings(draw: st.DrawFn) -> Batching:
    world_size, micro = draw(st.integers(1, 64)), draw(st.integers(1, 300))
    return Batching(world_size, micro, draw(st.integers(micro, 5000)), 2 if world_size == 1 else 1)


targets = st.floats(0, 1e6) | st.integers(1, 100_000).map(float)


def ladder(batching: Batching) -> set[int]:
    rungs = {batching.micro_batch >> halvings for halvings in range(10)}
    while (rung := 2 * max(rungs)) <= batching.max_micro_batch:
        rungs.add(rung)
    return rungs


@given(batchings(), targets)
def test_a_plan_is_one_that_the_ranks_can_take(batching: Batching, target: float) -> None:
    plan = batching.plan(target)
    assert plan.batch_size == plan.world_size * plan.accumulation * plan.micro_batch >= batching.smallest
    assert plan.accumulation >= batching.min_accumulation
    assert plan.micro_batch <= batching.max_micro_batch
    assert plan.micro_batch in ladder(batching)


@given(batchings(), targets)
def test_a_plan_is_near_its_target(batching: Batching, target: float) -> None:
    off = abs(batching.plan(target).batch_size - max(target, batching.smallest))
    assert off <= max(0.0625 * target, batching.world_size / 2)


@given(batchings(), st.integers(0, 6), st.integers(1, 50))
def test_what_is_planned_is_planned_again(batching: Batching, halvings: int, accumulation: int) -> None:
    first = batching.plan(batching.world_size * accumulation * max(1, batching.micro_batch >> halvings))
    assert batching.plan(first.batch_size).batch_size == pytest.approx(first.batch_size, rel=0.05)


@given(batchings(), st.floats(0, 1), st.integers(1, 100_000))
def test_a_bound_on_one_side_holds_where_the_ranks_can(batching: Batching, share: float, bound: int) -> None:
    assert batching.plan(share * bound, most=bound).batch_size <= max(bound, batching.smallest)
    assert batching.plan((1 + share) * bound, least=bound).batch_size >= bound


def test_rounding_never_passes_the_cap() -> None:
    assert Batching(3, 16, 16).plan(100).batch_size == 96
    assert Batching(3, 32, 32).plan(110, most=110).batch_size <= 110
    assert Batching(7, 13, 13).plan(100, most=100).batch_size == 98


@pytest.mark.parametrize(
    ("batching", "target", "plan"),
    [
        (Batching(2, 16, 64), 32, Plan(2, 16, 1)),
        (Batching(2, 16, 64), 64, Plan(2, 32, 1)),
        (Batching(2, 16, 64), 256, Plan(2, 64, 2)),
        (Batching(2, 16, 64), 20, Plan(2, 2, 5)),
        (Batching(2, 16, 64), 96, Plan(2, 16, 3)),
        (Batching(2, 16, 64), 66, Plan(2, 32, 1)),
        (Batching(1, 32, 64, 2), 64, Plan(1, 32, 2)),
        (Batching(1, 32, 64, 2), 1, Plan(1, 1, 2)),
        (Batching(4, 5, 5), 12, Plan(4, 1, 3)),
        (Batching(3, 21, 64), 64, Plan(3, 21, 1)),
    ],
)
def test_growth_takes_the_micro_batch_first(batching: Batching, target: int, plan: Plan) -> None:
    assert batching.plan(target) == plan


def test_a_rank_alone_always_has_two_gradients() -> None:
    batching = Batching(1, 64, 64, 2)
    assert batching.smallest == 2
    assert all(batching.plan(target).accumulation >= 2 for target in range(300))


@pytest.mark.parametrize("fields", [(0, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 1, 0)])
def test_impossible_batchings_are_refused(fields: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="micro"):
        Batching(*fields)
