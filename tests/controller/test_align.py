from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.controller.align import MAX_PENDING, Aligned, Aligner
from trimtab.controller.metrics.block import part
from trimtab.controller.records import COLUMNS, Records


def records(rank: int, steps: Sequence[int], logged: Mapping[str, Any] | None = None, **columns: Any) -> Records:
    at = np.array(steps, np.int64)
    filled = {name: np.asarray(columns.pop(name, at * 10.0 + rank), np.float32) for name in COLUMNS}
    extra = {name: np.asarray(values, np.float32) for name, values in columns.items()}
    return Records(
        "r", rank, 1, at, at * 64, at + rank / 10, filled | extra,
        logged={k: (np.array(s, np.int64), np.array(v, np.float32)) for k, (s, v) in (logged or {}).items()},
        produced=max(steps, default=0),
    )  # fmt: skip


def feed(aligner: Aligner, *messages: Records) -> Aligned | None:
    for message in messages:
        aligner.add(message)
    return aligner.take()


def test_a_step_is_final_when_every_rank_has_gone_past_it() -> None:
    aligner = Aligner(2)
    assert feed(aligner, records(0, [1, 2, 3])) is None
    aligned = feed(aligner, records(1, [1, 2]))
    assert aligned is not None
    assert aligned.dense.steps.tolist() == [1, 2]
    assert aligned.dense.samples.tolist() == [64, 128]
    assert aligned.dense.times.tolist() == pytest.approx([1.1, 2.1])
    assert aligned.dense.columns["loss"].tolist() == [10.5, 20.5]
    assert aligned.dense.columns["step_time_max"].tolist() == [11, 21]
    assert aligner.take() is None
    rest = feed(aligner, records(1, [3]))
    assert rest is not None
    assert rest.dense.steps.tolist() == [3]


def test_rows_that_one_rank_dropped_are_the_others_mean() -> None:
    aligned = feed(Aligner(2), records(0, [1, 2, 3]), records(1, [1, 3]))
    assert aligned is not None
    assert aligned.dense.columns["loss"].tolist() == [10.5, 20, 30.5]
    assert np.isnan(aligned.measured["local_sq"]).tolist() == [False, True, False]


def test_the_ranks_values_are_kept_beside_their_mean() -> None:
    first = records(0, [1, 2], {"val": ([1, 2], [1, 2]), "own": ([1], [7])}, loss=[np.nan, 2])
    second = records(1, [2], {"val": ([1, 2], [3, 4])}, loss=[4])
    aligner = Aligner(2)
    for message in (first, second):
        aligner.add(message)
    aligned = aligner.take(final=True)
    assert aligned is not None
    low, high = aligned.dense.spread["loss"]
    assert [low.tolist(), high.tolist()] == [
        [pytest.approx(np.nan, nan_ok=True), 2],
        [pytest.approx(np.nan, nan_ok=True), 4],
    ]
    low, high = aligned.sparse["val"].spread["val"]
    assert [low.tolist(), high.tolist()] == [[1, 2], [3, 4]]
    assert aligned.sparse["own"].spread == {}
    own = {key: block.columns[key].tolist() for block in aligned.by_rank for key in block.columns}
    assert own[part("loss", 1)] == [pytest.approx(np.nan, nan_ok=True), 4]
    assert (own[part("val", 1)], own[part("own", 0)]) == ([3, 4], [7])
    assert part("own", 1) not in own
    assert {part("loss", 0), part("step_time", 1)} <= own.keys()
    assert feed(Aligner(1), records(0, [1])).dense.spread == {}  # type: ignore[union-attr]


def test_a_ranks_own_time_is_what_it_does_not_wait() -> None:
    first = records(0, [1, 2], step_time=[0.5, 0.5], reduce_time=[0.375, 0.25])
    second = records(1, [2], step_time=[0.5], reduce_time=[0.125])
    aligned = feed(Aligner(2), first, second)
    assert aligned is not None
    assert aligned.own_times.tolist() == [[0.125, 0.25], pytest.approx([np.nan, 0.375], nan_ok=True)]


def test_settings_come_from_the_rank_that_has_them() -> None:
    settings = {"hp/lr": [0.1, 0.2]}
    aligned = feed(Aligner(2), records(0, [1, 3], **settings), records(1, [1, 2, 3]))
    assert aligned is not None
    assert aligned.dense.columns["hp/lr"].tolist() == pytest.approx([0.1, np.nan, 0.2], nan_ok=True)


def test_what_comes_twice_counts_once() -> None:
    aligner = Aligner(2)
    message = records(0, [1, 2], {"val": ([1], [4.0])})
    first = feed(aligner, message, message, records(1, [1, 2], {"val": ([1], [8.0])}))
    assert first is not None
    assert first.dense.steps.tolist() == [1, 2]
    assert first.sparse["val"].columns["val"].tolist() == [6.0]
    assert feed(aligner, message, records(1, [1, 2])) is None


def test_rows_out_of_order_are_put_in_order() -> None:
    aligned = feed(Aligner(1), records(0, [3, 1, 2, 2]))
    assert aligned is not None
    assert aligned.dense.steps.tolist() == [1, 2, 3]
    assert aligned.dense.columns["loss"].tolist() == [10, 20, 30]


def test_a_silent_rank_holds_up_the_others_for_so_long_only() -> None:
    aligner = Aligner(2)
    steps = list(range(1, MAX_PENDING + 2))
    assert feed(aligner, records(0, steps[:-1])) is None
    aligned = feed(aligner, records(0, steps[-1:]))
    assert aligned is not None
    assert len(aligned.dense) == MAX_PENDING + 1
    assert feed(aligner, records(1, steps)) is None
    late = feed(aligner, records(0, [MAX_PENDING + 2]), records(1, [MAX_PENDING + 2]))
    assert late is not None
    assert late.dense.steps.tolist() == [MAX_PENDING + 2]


def test_what_users_log_is_final_one_step_later() -> None:
    aligner = Aligner(2)
    first = feed(aligner, records(0, [1, 2], {"val": ([2], [4.0])}), records(1, [1, 2]))
    assert first is not None
    assert not first.sparse
    second = feed(aligner, records(1, [3], {"val": ([2], [8.0])}), records(0, [3]))
    assert second is not None
    block = second.sparse["val"]
    assert (block.steps.tolist(), block.samples.tolist()) == ([2], [128])
    assert block.columns["val"].tolist() == [6.0]


def test_the_end_makes_everything_final() -> None:
    aligner = Aligner(2)
    feed(aligner, records(0, [1, 2, 3], {"val": ([3], [4.0])}), records(1, [1]))
    last = aligner.take(final=True)
    assert last is not None
    assert last.dense.steps.tolist() == [2, 3]
    assert last.sparse["val"].steps.tolist() == [3]
    assert aligner.take(final=True) is None


def test_empty_messages_and_logs_before_the_first_step_do_no_harm() -> None:
    aligner = Aligner(1)
    assert feed(aligner, records(0, []), records(0, [], {"gpu": ([0], [50.0])})) is None
    assert aligner.take(final=True) is None
    aligned = feed(aligner, records(0, [1, 2]))
    assert aligned is not None
    assert aligned.sparse["gpu"].steps.tolist() == [0]


def test_a_log_of_a_step_that_nobody_knows_stands_at_the_nearest_before() -> None:
    aligner = Aligner(1)
    feed(aligner, records(0, [11, 12]))
    feed(aligner, records(0, [15, 16], {"a": ([5], [1.0]), "b": ([14], [1.0])}))
    aligned = feed(aligner, records(0, [17]))
    assert aligned is None or not aligned.sparse
    aligner.add(records(0, [18], {"a": ([5], [1.0]), "b": ([14], [1.0]), "c": ([16], [1.0])}))
    aligned = aligner.take()
    assert aligned is not None
    assert {name: block.samples.tolist() for name, block in aligned.sparse.items()} == {
        "a": [11 * 64], "b": [12 * 64], "c": [16 * 64],
    }  # fmt: skip


def test_a_rank_beyond_the_formation_is_an_error() -> None:
    with pytest.raises(KeyError):
        Aligner(2).add(records(2, [1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    aligned = feed(Aligner(2), records(0, [1], loss=[value], grad_norm=[value]), records(1, [1], loss=[1.0]))
    assert aligned is not None
    expected = value / 2 if value == 3e38 else value
    assert aligned.dense.columns["loss"].tolist() == pytest.approx([expected], nan_ok=True, rel=1e-6)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Records]]:
    """Messages of ranks that each lose some steps, cut and mixed at random; order within a rank is kept."""
    ranks, last = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    queues = []
    for rank in range(ranks):
        steps = [step for step in range(1, last + 1) if draw(st.integers(0, 9)) < 8] or [last]
        cuts = sorted(draw(st.lists(st.integers(0, len(steps)), max_size=5)))
        edges = [0, *cuts, len(steps)]
        values = st.floats(width=32, min_value=-1e6, max_value=1e6) | st.just(float("nan"))
        columns = {name: draw(st.lists(values, min_size=len(steps), max_size=len(steps))) for name in COLUMNS[:2]}
        queues.append(
            [
                records(rank, steps[a:b], **{name: column[a:b] for name, column in columns.items()})
                for a, b in pairwise(edges)
            ]
        )
    mixed = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        mixed.append(queue.pop(0))
        if draw(st.integers(0, 5)) == 0:
            mixed.append(mixed[-1])
    return ranks, mixed


@settings(max_examples=150, deadline=None)
@given(histories())
def test_it_is_the_reduction_by_hand(history: tuple[int, list[Records]]) -> None:
    ranks, messages = history
    aligner = Aligner(ranks)
    taken = [a for message in messages if (a := feed(aligner, message)) is not None]
    if (last := aligner.take(final=True)) is not None:
        taken.append(last)
    rows: dict[int, dict[int, tuple[Records, int]]] = {}
    for message in messages:
        for i, step in enumerate(message.steps.tolist()):
            rows.setdefault(step, {})[message.rank] = (message, i)
    steps = np.concatenate([a.dense.steps for a in taken])
    assert steps.tolist() == sorted(rows)
    for name, reduced in (("loss", np.mean), ("grad_norm", np.mean), ("step_time", np.mean), ("step_time", np.max)):
        key = "step_time_max" if reduced is np.max else name
        got = np.concatenate([a.dense.columns[key] for a in taken])
        want = [reduced([float(m.columns[name][i]) for m, i in rows[step].values()]) for step in steps.tolist()]
        np.testing.assert_allclose(got, np.array(want, np.float32), rtol=1e-6, atol=1e-6)
    whole = [len(rows[step]) == ranks for step in steps.tolist()]
    local_sq = np.concatenate([a.measured["local_sq"] for a in taken])
    assert np.isfinite(local_sq).tolist() == whole
