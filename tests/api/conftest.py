"""An app over a plain controller, asked without a network; and one served by uvicorn in a thread."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `plain`, which is a script too

from plain import Door, LocalGateway, controller_with_run

from trimtab.api.app import create_app
from trimtab.api.guard import Hosts
from trimtab.api.serving import Server, bind
from trimtab.api.stream import Hub
from trimtab.api.tokens import Role, Tokens


@pytest.fixture
def door(tmp_path: Path) -> Door:
    gateway = LocalGateway(controller_with_run(tmp_path / "metrics"), tmp_path / "metrics")
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.new("alice", Role.ADMIN)
    hub = Hub(gateway)
    page = tmp_path / "page"
    app = create_app(gateway, tokens, hub, page, Hosts("127.0.0.1"))
    return Door(app, gateway, tokens, token, hub, page)


@pytest.fixture
def served(door: Door) -> Iterator[str]:
    """The URL of the door's app, served by uvicorn in a thread."""
    listening = bind("127.0.0.1", 0)
    server = Server(door.app, door.hub)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
