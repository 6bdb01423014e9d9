"""One Ray cluster for all tests that need one; it and what it runs end with the session of tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

RAY = {
    "api/test_job_server.py",
    "api/test_probe.py",
    "api/test_run.py",
    "api/test_server.py",
    "controller/test_actor.py",
    "dashboards/test_end_to_end.py",
    "dashboards/test_page.py",
    "deploy/test_cluster.py",
    "deploy/test_operations.py",
    "deploy/test_wheel.py",
    "workers/test_attach.py",
    "workers/test_chaos.py",
    "workers/test_launch.py",
    "workers/test_nodes.py",
    "workers/test_probe.py",
}


def starts_ray(nodeid: str) -> bool:
    return nodeid.partition("::")[0].removeprefix("tests/") in RAY


class Scheduling(LoadFileScheduling):
    """Of several processes (`-n 2`) one runs each file, and one all that start Ray: two Rays that start on one machine
    at a time may take each other's ports."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if starts_ray(nodeid) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not starts_ray(item.nodeid))  # they take longest


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local cluster of 4 CPUs with no controller yet; the home that one would use."""
    import ray

    home = tmp_path_factory.mktemp("home")
    os.environ["TRIMTAB_HOME"] = str(home)
    ray.init(num_cpus=4, namespace="trimtab", include_dashboard=False, log_to_driver=False)
    yield home
    ray.shutdown()


@pytest.fixture(scope="session")
def controller(ray_cluster: Path) -> Path:
    """The cluster's controller runs; its home."""
    from trimtab.controller import actor

    actor.start(ray_cluster)
    return ray_cluster
