"""Policies that exist for a test only."""

from collections.abc import Callable, Iterator, Mapping

import pytest

from trimtab.controller.policies import Policy
from trimtab.controller.policies import policy as registry

Install = Callable[..., None]


@pytest.fixture(scope="module")
def install() -> Iterator[Install]:
    """install(Cls, ...) makes kinds known as if they were installed packages; those that are stay."""
    known = dict(registry.kinds())
    added: dict[str, type[Policy]] = {}

    def kinds() -> Mapping[str, type[Policy]]:
        return known | added

    def add(*classes: type[Policy]) -> None:
        added.update({cls.kind: cls for cls in classes})

    with pytest.MonkeyPatch.context() as patch:
        for module in ("policies.policy", "engine", "controller"):
            patch.setattr(f"trimtab.controller.{module}.kinds", kinds)
        yield add
