"""Learners of one process: the same seed gives the same run, and one gradient of many parts is that of the whole."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import one of the benchmarks' modules, which find each other as scripts do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    threads = torch.get_num_threads()
    yield import_module
    torch.set_num_threads(threads)


def data() -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=random)
    y = x @ torch.ones(8, 1) + 0.1 * torch.randn(512, 1, generator=random)
    return x[:384], y[:384], x[384:], y[384:]


def squared(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(x), y)


def error(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(squared(model, x, y)) / 20


def made(bench: Any, way: str, learners: int, batch: int, lr: float = 0.01, seed: int = 1, **task: Any) -> Any:
    module = bench("learners")
    settings = {"target": 0.002, "adam": False, "samples": 5_000, "every": 200} | task
    line = bench("lockstep").Task("line", data, lambda: torch.nn.Linear(8, 1), squared, error, **settings)
    return module.run(line, module.Trial(way, learners, batch, lr, seed))


@pytest.mark.parametrize("way", ["allreduce", "sma, centre", "sma, mean"])
def test_a_seed_gives_the_same_run_and_arrives(bench: Any, way: str) -> None:
    once, again = ({k: v for k, v in asdict(made(bench, way, 4, 8)).items() if k != "cpu_s"} for _ in range(2))
    assert once == again
    assert once["samples_to"] == once["samples"] == 32 * once["steps_to"] < 5_000
    assert once["epochs_to"] == pytest.approx(once["samples_to"] / 384)
    assert once["modelled_s_to"] == pytest.approx(once["steps_to"] * (0.005 + 2e-5 * 8))


def test_the_mean_of_the_learners_gradients_is_that_of_the_whole_batch(bench: Any) -> None:
    many, one = made(bench, "allreduce", 4, 8, target=0.0), made(bench, "allreduce", 1, 32, target=0.0)
    assert many.best == pytest.approx(one.best, rel=1e-3)
    assert many.noise_scale is not None
    assert one.noise_scale is None


def test_one_averaged_learner_makes_no_steps_of_another_size(bench: Any) -> None:
    """The mean of one is itself; a central model follows it with its own momentum."""
    alone, mean, centre = (made(bench, way, 1, 8, target=0.0) for way in ("allreduce", "sma, mean", "sma, centre"))
    assert mean.best == pytest.approx(alone.best, rel=1e-4)
    assert centre.best == pytest.approx(alone.best, rel=0.5)


def test_what_is_not_finite_ends_early(bench: Any) -> None:
    high = made(bench, "sma, centre", 4, 8, lr=50.0)
    assert high.samples_to is None
    assert high.best is None
    assert high.samples < 2_500
