"""The benchmarks' own parts: the same seed gives the same run, and KungFu's rule is what it says."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.controller.batching import Plan
from trimtab.controller.noise import Noise
from trimtab.controller.observation import Observation
from trimtab.controller.policies.contract import check_policy
from trimtab.controller.trajectory import Progress


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import one of the benchmarks' modules, which find each other as scripts do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    threads = torch.get_num_threads()
    yield import_module
    torch.set_num_threads(threads)


def data() -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=random)
    y = x @ torch.randn(8, 1, generator=random) + torch.randn(256, 1, generator=random)
    return x[:192], y[:192], x[192:], y[192:]


def squared(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(x), y)


def error(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(squared(model, x, y))


def made(bench: Any, seed: int, **task: Any) -> dict[str, Any]:
    lockstep = bench("lockstep")
    settings = {"target": 0.0, "adam": False, "samples": 6_000, "every": 500} | task
    policies: Any = (("noise_scale", {"first_window": 20, "window": 20}), ("schedule", {}), ("spike_guard", {}))
    trial = lockstep.Trial("line", "steered", 8, 0.02, seed, policies)
    line = lockstep.Task("line", data, lambda: torch.nn.Linear(8, 1), squared, error, **settings)
    return {name: value for name, value in asdict(lockstep.run(line, trial)).items() if not name.startswith("cpu_s")}


def test_the_same_seed_gives_the_same_run(bench: Any) -> None:
    once, again, other = (made(bench, seed) for seed in (1, 1, 2))
    assert once == again
    assert once["best"] != other["best"]
    assert len(once["batches"]) > 1  # the policy had its say


def test_it_ends_where_the_target_is_reached(bench: Any) -> None:
    found = made(bench, 1, target=2.0)
    assert found["samples_to"] == found["samples"] < 6_000
    assert found["steps_to"] == found["steps"]
    assert found["modelled_s_to"] == pytest.approx(0.005 * found["steps"] + 2e-5 * found["samples"])


def test_kungfu_doubles_the_batch_where_the_noise_scale_has_risen(bench: Any) -> None:
    policy = bench("kungfu").KungFu(period=100, max=128)
    check_policy(policy)

    def see(state: Any, samples: int, scale: float) -> tuple[Any, list[int]]:
        noise = Noise(value=scale, low=None, high=None, grad_sq=1.0, trace=scale, estimates=samples, skipped=0)
        observation = Observation(Progress(samples // 10, samples), {"batch_size": 64}, Plan(1, 32, 2), noise=noise)
        state, proposals = policy.decide(state, observation)
        return state, [proposal.to.value for proposal in proposals]

    state, first = see(policy.initial(), 100, 640.0)
    state, within = see(state, 150, 6400.0)
    state, risen = see(state, 200, 1280.0)
    state, fallen = see(state, 300, 1000.0)
    assert (first, within, risen, fallen) == ([], [], [128], [])
