"""One Ray cluster for all tests that need one; it and what it runs end with the session of tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

SHARED = {  # files of tests on the cluster that they share
    "api/test_probe.py",
    "api/test_server.py",
    "controller/test_actor.py",
    "dashboards/test_page.py",
    "workers/test_attach.py",
    "workers/test_chaos.py",
    "workers/test_launch.py",
    "workers/test_probe.py",
}
OWN = {  # and those that start clusters of their own
    "api/test_job_server.py",
    "api/test_run.py",
    "dashboards/test_end_to_end.py",
    "deploy/test_cluster.py",
    "deploy/test_operations.py",
    "deploy/test_wheel.py",
    "workers/test_nodes.py",
}


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


class Scheduling(LoadFileScheduling):
    """Of several processes (`-n 2`) one runs each file. All on the shared cluster are run by one, and from the first;
    those that start others by one too, later: two Rays that start on one machine at a time may take each other's ports.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return "shared" if file in SHARED else "own" if file in OWN else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: file_of(item.nodeid) not in SHARED)


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
