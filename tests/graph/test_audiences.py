"""Audiences in a real database: streams, chunks, and modes by thresholds of 4 and 3 followers."""

import asyncio
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.graph.store.audiences import Audience, Mode, Thresholds
from tests.graph.conftest import Graph, ids

NO_END = (1 << 63) - 1


@pytest.fixture
def fans(account) -> list[int]:
    return sorted(account() for _ in range(11))


async def followed(graph: Graph, star: int, fans: list[int]) -> None:
    for fan in random.sample(fans, len(fans)):
        await graph.stores[0].follow(fan, star)


async def test_batches_of_followers_have_no_gap_or_repeat(graph: Graph, account, fans):
    star = account()
    await followed(graph, star, fans)

    async def seen(after: int, until: int) -> list[int]:
        batches = [after]
        while batch := ids(
            await graph.audiences[0].followers(star, after=batches[-1], until=until, limit=4)
        ):
            batches += batch
        return batches[1:]

    assert await seen(0, NO_END) == fans
    assert await seen(fans[2], fans[8]) == fans[3:9]
    assert await seen(fans[-1], NO_END) == []


async def test_chunks_contain_every_follower_once(graph: Graph, account, fans):
    star = account()
    await followed(graph, star, fans)

    for size in (1, 3, 5, 10, 11):
        bounds = await graph.audiences[0].bounds(star, size=size)
        ends = [0, *bounds, NO_END]
        chunks = [
            ids(await graph.audiences[0].followers(star, after=after, until=until, limit=100))
            for after, until in itertools.pairwise(ends)
        ]

        assert [fan for chunk in chunks for fan in chunk] == fans
        assert all(len(chunk) == size for chunk in chunks[:-1])
        assert chunks[-1]


async def test_the_thresholds_of_mode_changes_have_a_gap(graph: Graph, account, fans):
    store, audiences, star = graph.stores[0], graph.audiences[0], account()

    async def count(number: int) -> Audience:
        audience = await audiences.audience(star)
        while audience.followers != number:
            await (
                store.follow(fans[audience.followers], star)
                if audience.followers < number
                else store.unfollow(fans[audience.followers - 1], star)
            )
            await audiences.update_mode(star)
            audience = await audiences.audience(star)
        return audience

    assert await count(3) == Audience(Mode.PUSHED, 0, 3)
    assert await count(4) == Audience(Mode.PROMOTING, 1, 4)
    assert await count(6) == Audience(Mode.PROMOTING, 1, 6)
    await audiences.finish_change(star, 1)
    assert await count(3) == Audience(Mode.PULLED, 1, 3)
    assert await graph.reading(fans[0]) == ([star], [star], [])
    assert await count(2) == Audience(Mode.DEMOTING, 2, 2)
    assert await graph.reading(fans[0]) == ([star], [], [])
    assert await count(3) == Audience(Mode.DEMOTING, 2, 3)
    await audiences.finish_change(star, 2)
    await audiences.finish_change(star, 2)
    assert await count(3) == Audience(Mode.PUSHED, 2, 3)
    assert await graph.mode_events() == [star, star]


async def test_a_reverted_change_of_mode_cannot_be_finished(graph: Graph, account, fans):
    store, audiences, star = graph.stores[0], graph.audiences[0], account()
    await followed(graph, star, fans[:4])
    await audiences.update_mode(star)
    for fan in fans[:2]:
        await store.unfollow(fan, star)
    await audiences.update_mode(star)
    assert await audiences.audience(star) == Audience(Mode.DEMOTING, 2, 2)

    await audiences.finish_change(star, 1)
    assert await audiences.audience(star) == Audience(Mode.DEMOTING, 2, 2)

    await followed(graph, star, fans[:2])
    await audiences.update_mode(star)
    assert await audiences.audience(star) == Audience(Mode.PROMOTING, 3, 4)
    await audiences.finish_change(star, 2)
    assert (await audiences.audience(star)).mode is Mode.PROMOTING
    await audiences.finish_change(star, 3)
    assert (await audiences.audience(star)).mode is Mode.PULLED


async def test_concurrent_follows_over_the_threshold_begin_one_change(graph: Graph, account, fans):
    star = account()
    stores, audiences = itertools.cycle(graph.stores), itertools.cycle(graph.audiences)

    async def follow(fan: int) -> None:
        await next(stores).follow(fan, star)
        await next(audiences).update_mode(star)

    await asyncio.gather(*(follow(fan) for fan in fans))

    assert await graph.audiences[0].audience(star) == Audience(Mode.PROMOTING, 1, len(fans))
    assert await graph.mode_events() == [star]


async def test_a_missed_change_of_mode_begins_at_the_next_follow(graph: Graph, account, fans):
    """The process may die between a follow and the check of the count."""
    star = account()
    await followed(graph, star, fans[:6])
    assert (await graph.audiences[0].audience(star)).mode is Mode.PUSHED

    await graph.stores[0].unfollow(fans[0], star)
    await graph.audiences[0].update_mode(star)

    assert (await graph.audiences[0].audience(star)).mode is Mode.PROMOTING


@given(
    counts=st.lists(st.integers(0, 20)),
    promote_at=st.integers(1, 15),
    gap=st.integers(0, 5),
)
def test_a_finished_change_of_mode_is_not_due_again(counts, promote_at, gap):
    thresholds = Thresholds(promote_at, max(promote_at - gap, 0))
    finished = {Mode.PROMOTING: Mode.PULLED, Mode.DEMOTING: Mode.PUSHED}
    mode = Mode.PUSHED
    for followers in counts:
        mode = thresholds.due(mode, followers) or mode
        assert thresholds.due(mode, followers) is None
        mode = finished.get(mode, mode)
        assert thresholds.due(mode, followers) is None
        assert mode is Mode.PULLED or followers < promote_at
        assert mode is Mode.PUSHED or followers >= thresholds.demote_below
