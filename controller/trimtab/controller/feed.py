"""The feed of live events: numbered by the controller, kept for a while, so that a reader can resume."""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from pydantic_core import to_json

Topic = Literal["metrics", "hparams", "changes", "runs", "alerts"]
KEPT = 20_000  # items
KEPT_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Item:
    seq: int  # 1, 2, 3, ... within the controller's term
    topic: Topic
    run: str
    data: str  # JSON


@dataclass(frozen=True, slots=True)
class Batch:
    """Items after the one asked for. `gap` says that some are no longer kept: the reader must load the state anew."""

    term: int
    items: tuple[Item, ...]
    gap: bool = False


class Feed:
    """A ring of the newest items; reading never holds up publishing."""

    def __init__(self, term: int, kept: int = KEPT, kept_bytes: int = KEPT_BYTES) -> None:
        self._term = term
        self._kept = kept
        self._kept_bytes = kept_bytes
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._seq = 0
        self.published: Counter[Topic] = Counter()
        self._news = asyncio.Event()  # set and exchanged with every item

    def publish(self, topic: Topic, run: str, data: Any) -> None:
        self._seq += 1
        self.published[topic] += 1
        text = to_json(data, inf_nan_mode="strings", by_alias=True).decode()
        self._items.append(Item(self._seq, topic, run, text))
        self._bytes += len(text)
        while len(self._items) > self._kept or self._bytes > self._kept_bytes:
            self._bytes -= len(self._items.popleft().data)
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, term: int, seq: int, timeout_s: float) -> Batch:
        """Items after (term, seq), as soon as there are any; an empty batch when the time is up.

        `seq` -1 asks for the present position. A position of another term, or one that is too old, is a gap.
        """
        if seq == -1:
            return Batch(self._term, (Item(self._seq, "alerts", "", "{}"),))
        if term == self._term and seq == self._seq:
            try:
                await asyncio.wait_for(self._news.wait(), timeout_s)
            except TimeoutError:
                return Batch(self._term, ())
        if term != self._term or not self._seq - len(self._items) <= seq <= self._seq:
            return Batch(self._term, (), gap=True)
        start = len(self._items) - (self._seq - seq)
        return Batch(self._term, tuple(islice(self._items, start, None)))
