"""One Ray cluster for all tests that need one; it and what it runs end with the session of tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
