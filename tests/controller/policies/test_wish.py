import pytest

from trimtab.controller.batching import Batching
from trimtab.controller.observation import Observation
from trimtab.controller.policies.wish import NONE, Wish, asking, look, others, present
from trimtab.controller.trajectory import Progress, Scalar

SEEN = Wish(size=4, asked=False, waited=0)


def observation(ranks: int, **values: Scalar) -> Observation:
    return Observation(Progress(), values, Batching(ranks, 8, 8).plan(64))


@pytest.mark.parametrize(
    ("wish", "seen", "fate", "size", "waited"),
    [
        (NONE, observation(4), "absent", 0, 0),
        (NONE, observation(4, workers="four"), "absent", 0, 0),
        (NONE, observation(4, workers=0.5), "absent", 0, 0),
        (NONE, observation(4, workers=4), "granted", 4, 0),
        (NONE, observation(8, workers=4, learners=2), "granted", 4, 0),
        (NONE, observation(4, workers=4, learners=2), "waiting", 4, 1),
        (asking(4), observation(4, workers=4), "granted", 4, 0),
        (asking(5), observation(4, workers=5), "waiting", 5, 1),
        (Wish(size=5, asked=False, waited=7), observation(4, workers=5), "waiting", 5, 8),
        (Wish(size=5, asked=False, waited=7), observation(5, workers=5), "granted", 5, 0),
        (asking(5), observation(4, workers=4), "denied", 4, 0),
        (SEEN, observation(4, workers=7), "moved", 7, 0),
    ],
)
def test_what_becomes_of_a_wish(wish: Wish, seen: Observation, fate: str, size: int, waited: int) -> None:
    before = Wish(**wish)
    assert look(wish, seen, "workers") == (fate, Wish(size=size, asked=False, waited=waited))
    assert wish == before


def test_the_size_of_what_trains() -> None:
    seen = observation(7, workers=4, learners=2)
    assert (present(seen, "workers"), others(seen, "workers")) == (3, 2)
    assert (present(seen, "learners"), others(seen, "learners")) == (1, 4)
    assert present(observation(1, workers=4, learners=2), "workers") == 1
