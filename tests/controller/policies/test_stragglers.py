import random
from collections.abc import Mapping
from statistics import median
from typing import Any

import pytest

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Notice, Observation
from trimtab.controller.policies.stragglers import Stragglers, _medians_of_others
from trimtab.controller.trajectory import Progress

PLAN = Batching(4, 8, 8).plan(64)


class Run:
    def __init__(self, policy: Stragglers) -> None:
        self.policy = policy
        self.state: Mapping[str, Any] = policy.initial()

    def see(self, *times: float) -> list[Notice]:
        self.state, proposals = self.policy.decide(self.state, Observation(Progress(), {}, PLAN, rank_times=times))
        assert all(isinstance(proposal, Notice) for proposal in proposals)
        return list(proposals)  # type: ignore[arg-type]


def test_names_a_slow_rank_once_and_says_when_it_has_recovered() -> None:
    run = Run(Stragglers(window=3))
    slow, even = (0.1, 0.2, 0.1, 0.11), (0.1, 0.1, 0.1, 0.11)
    assert [run.see(*slow) for _ in range(2)] == [[]] * 2
    assert run.see(*slow) == [
        Notice(
            "rank 1 is slow: 200 ms of its own a step, the other ranks' median is 100 ms (2.0 x); "
            "consider replacing its node",
            rank=1,
        )
    ]
    assert [run.see(*slow) for _ in range(20)] == [[]] * 20
    assert [run.see(*even) for _ in range(2)] == [[]] * 2
    assert run.see(*even) == [
        Notice("rank 1 has recovered: 100 ms of its own a step, the other ranks' median is 100 ms", rank=1)
    ]
    assert [run.see(*even) for _ in range(20)] == [[]] * 20
    assert [len(run.see(*slow)) for _ in range(4)] == [0, 0, 1, 0]  # another episode


def test_a_moment_of_slowness_is_no_episode_and_a_moment_of_speed_ends_none() -> None:
    run = Run(Stragglers(window=3))
    slow, even = (0.1, 0.1, 0.2), (0.1, 0.1, 0.1)
    assert [run.see(*times) for times in [slow, slow, even] * 10] == [[]] * 30
    assert [len(run.see(*slow)) for _ in range(3)] == [0, 0, 1]
    assert [run.see(*times) for times in [even, even, slow] * 10] == [[]] * 30


def test_just_at_the_ratio_is_not_above() -> None:
    run = Run(Stragglers(window=1, ratio=1.5))
    assert run.see(1.0, 1.5) == []
    assert [notice.rank for notice in run.see(1.0, 1.501)] == [1]


def test_of_two_ranks_the_slower_is_measured_against_the_other() -> None:
    assert [notice.rank for notice in Run(Stragglers(window=1)).see(0.16, 0.1)] == [0]


def test_two_of_five() -> None:
    run = Run(Stragglers(window=1))
    assert [notice.rank for notice in run.see(0.1, 0.4, 0.1, 0.1, 0.3)] == [1, 4]


def test_unknown_times_count_for_nothing() -> None:
    run = Run(Stragglers(window=2))
    run.see(0.1, 0.3)
    assert [run.see() for _ in range(10)] == [[]] * 10
    assert len(run.see(0.1, 0.3)) == 1
    assert Run(Stragglers(window=1)).see(0.3) == []  # a rank alone waits for nobody
    assert Run(Stragglers(window=1)).see(0.0, 0.3) == []  # and no time is no measure


def test_another_group_of_workers_begins_anew() -> None:
    run = Run(Stragglers(window=2))
    for _ in range(2):
        run.see(0.1, 0.3, 0.1)
    assert [len(run.see(0.1, 0.3)) for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("ranks", range(2, 9))
def test_the_median_of_the_others(ranks: int) -> None:
    rng = random.Random(ranks)
    for _ in range(20):
        times = [rng.choice([0.1, 0.2, rng.random()]) for _ in range(ranks)]
        others = [median(times[:rank] + times[rank + 1 :]) for rank in range(ranks)]
        assert _medians_of_others(times) == pytest.approx(others)


def test_noise_alone_names_nobody() -> None:
    rng = random.Random(0)
    run = Run(Stragglers())
    for _ in range(2000):
        assert run.see(*(0.1 * rng.lognormvariate(0, 0.3) for _ in range(8))) == []
