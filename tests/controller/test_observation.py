import pytest

from trimtab.controller.batching import Plan
from trimtab.controller.observation import Horizon, Observation, Reading
from trimtab.controller.trajectory import Progress


def test_a_horizon_tells_the_share_that_is_done() -> None:
    assert Horizon(100).fraction(Progress(7, 25)) == 0.25
    assert Horizon(10, "steps").fraction(Progress(7, 25)) == 0.7
    assert Horizon(10, "steps").fraction(Progress(70, 25)) == 1.0
    with pytest.raises(ValueError, match="got 0 steps"):
        Horizon(0, "steps")


def test_the_last_reading_of_a_metric() -> None:
    readings = (Reading(1, 64, 0.5), Reading(2, 128, 0.4))
    observation = Observation(Progress(), {}, Plan(1, 1, 1), metrics={"loss": readings, "none": ()})
    assert observation.last("loss") == readings[1]
    assert observation.last("none") is observation.last("other") is None
