"""The event stream: one reader of the controller's feed, however many clients.

All clients read from one ring; a client is only a position in it, so a slow one costs nothing and holds up nobody.
When the ring has gone past its position it is told so and closed. An id of an event is `term-seq`; a client that
comes back with one goes on exactly there, or is told to `reset` where that place is no longer known.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from trimtab.api.gateway import Gateway
from trimtab.controller.errors import ControllerUnreachable
from trimtab.controller.feed import Batch, Item, Topic

log = logging.getLogger(__name__)

KEPT = 5_000  # events
POLL_S = 10.0  # a call to the controller that waits for news
RETRY_S = 0.5
KEEP_ALIVE_S = 10.0
STALLED_S = 30.0  # a client that takes nothing for so long is cut off
CHUNK = 256  # events sent at once
