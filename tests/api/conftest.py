"""An app over a plain controller, asked without a network; and one served by uvicorn in a thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `plain`, which is a script too

from plain import UNLIMITED, Door, LocalGateway, controller_with_run, serving

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens


@pytest.fixture
def door(tmp_path: Path) -> Door:
    gateway = LocalGateway(controller_with_run(tmp_path / "metrics"), tmp_path / "metrics")
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.new("alice", Role.ADMIN)
    hub = Hub(gateway)
    page = tmp_path / "page"
    app = create_app(gateway, tokens, hub, page, Hosts("127.0.0.1"), UNLIMITED)
    return Door(app, gateway, tokens, token, hub, page)


@pytest.fixture
def served(door: Door) -> Iterator[str]:
    with serving(door.app, door.hub) as url:
        yield url
