import asyncio
import json

import pytest

from trimtab.controller.feed import Batch, Feed


def after(feed: Feed, term: int, seq: int, timeout_s: float = 0.01) -> Batch:
    return asyncio.run(feed.after(term, seq, timeout_s))


def filled(count: int, **limits: int) -> Feed:
    feed = Feed(7, **limits)
    for number in range(count):
        feed.publish("runs", "r", {"n": number})
    return feed


def test_a_reader_resumes_where_it_was() -> None:
    feed = filled(5)
    assert [item.seq for item in after(feed, 7, 0).items] == [1, 2, 3, 4, 5]
    assert [item.seq for item in after(feed, 7, 3).items] == [4, 5]
    assert after(feed, 7, 5) == Batch(7, ())
    (here,) = after(feed, 7, -1).items
    assert here.seq == 5


@pytest.mark.parametrize(("term", "seq"), [(6, 3), (8, 0), (7, 6), (7, 1), (7, -2)])
def test_a_place_that_is_not_known_is_a_gap(term: int, seq: int) -> None:
    assert after(filled(5, kept=3), term, seq) == Batch(7, (), gap=True)


def test_the_oldest_place_that_is_kept_is_no_gap() -> None:
    assert [item.seq for item in after(filled(5, kept=3), 7, 2).items] == [3, 4, 5]


def test_the_feed_is_bounded_in_bytes() -> None:
    feed = filled(100, kept_bytes=100)
    assert after(feed, 7, 50).gap
    items = after(feed, 7, 95).items
    assert [item.seq for item in items] == [96, 97, 98, 99, 100]
    feed.publish("runs", "r", "x" * 1000)
    assert after(feed, 7, 100).gap
    assert after(feed, 7, 101) == Batch(7, ())


def test_all_who_wait_are_woken() -> None:
    async def scene() -> list[Batch]:
        feed = Feed(7)
        waiting = [asyncio.create_task(feed.after(7, 0, 5)) for _ in range(3)]
        await asyncio.sleep(0.01)
        late = asyncio.create_task(feed.after(7, 0, 5))
        feed.publish("alerts", "r", {})
        return await asyncio.gather(*waiting, late)

    assert [[item.seq for item in batch.items] for batch in asyncio.run(scene())] == [[1]] * 4


def test_a_reader_that_is_overrun_while_it_waits_is_told() -> None:
    async def scene() -> Batch:
        feed = Feed(7, kept=3)
        waiting = asyncio.create_task(feed.after(7, 0, 5))
        await asyncio.sleep(0.01)
        for number in range(10):
            feed.publish("runs", "r", number)
        return await waiting

    assert asyncio.run(scene()).gap


def test_what_is_not_finite_is_strict_json() -> None:
    feed = Feed(1)
    feed.publish("metrics", "r", {"loss": [float("nan"), float("inf"), 1.5]})
    (item,) = after(feed, 1, 0).items
    assert json.loads(item.data, parse_constant=pytest.fail) == {"loss": ["NaN", "Infinity", 1.5]}
