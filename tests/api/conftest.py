"""An app over a plain controller, asked without a network; and one served by uvicorn in a thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `plain`, which is a script too

from plain import Door, door_to, serving


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return door_to(tmp_path)


@pytest.fixture
def served(door: Door) -> Iterator[str]:
    with serving(door.app, door.hub) as url:
        yield url
