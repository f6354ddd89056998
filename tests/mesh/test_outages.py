"""Feeds are there while a part of the mesh stalls, which is worse than dead: it does not answer.

With `PHOTOMESH_PROVE` each part stalls for 30 seconds, and 200 people read meanwhile. How fast
pages are then is told by `make bench BENCH=outages`.
"""

import asyncio
import os
import random
from collections import Counter

import pytest
from photomesh.feed.v1.feed_service_pb2 import FeedState, GetFeedRequest

from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.chassis.errors import Unavailable
from services.domain.timelines import HomeTimelines
from tests.callers import as_user
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh.crowd import Crowd, crowd_of
from tests.mesh.mishaps import quiet

pytestmark = pytest.mark.prove

PROVING = "PHOTOMESH_PROVE" in os.environ
SECONDS = 30.0 if PROVING else 2.0
READERS = 200 if PROVING else 20

# What readers of warm feeds are told while a part stalls; those whose feeds are cold: DEGRADED.
TOLD = {"graph": "COMPLETE", "post": "COMPLETE", "valkey": "DEGRADED", "postgres": "COMPLETE"}


@pytest.mark.parametrize("victim", TOLD)
async def test_every_page_comes_while_a_part_stalls(mesh, victim):
    async with (
        crowd_of(mesh, READERS + 1, random.Random(1)) as crowd,
        connect(CacheSettings(valkey_url=mesh.valkey_url)) as cache,
    ):
        timelines = HomeTimelines(cache)
        author, *readers = crowd.people
        warm, cold = readers[: READERS // 2], readers[READERS // 2 :]
        await asyncio.gather(*(crowd.do("follow", reader, author) for reader in readers))
        posts = [await crowd.make_post(author) for _ in range(25)]
        newest = posts[:-21:-1]
        await quiet(mesh)
        for reader in readers:
            await eventually(lambda reader=reader: page(crowd, reader), lambda told: told[1])

        async def read(reader: int, told: Counter[str], until: float) -> None:
            while asyncio.get_running_loop().time() < until:
                if reader in cold:
                    try:
                        await timelines.drop(reader)
                    except Unavailable:
                        assert victim == "valkey"
                state, post_ids = await page(crowd, reader)
                told[state] += 1
                # All of the feed, or nothing of it: half of it would pass for the whole.
                assert post_ids in (newest, []), state
                assert post_ids or state == "DEGRADED"
                await asyncio.sleep(random.uniform(0.4, 0.6))

        of_warm: Counter[str] = Counter()
        of_cold: Counter[str] = Counter()
        at_last = (TOLD[victim], newest)
        with mesh.stalled(victim):
            until = asyncio.get_running_loop().time() + SECONDS
            await asyncio.gather(
                *(read(reader, of_warm, until) for reader in warm),
                *(read(reader, of_cold, until) for reader in cold),
            )
            # That long into the stall, too. A page of a machine that is busy may be degraded.
            for reader in warm:
                await eventually(
                    lambda reader=reader: page(crowd, reader), lambda told: told == at_last
                )
        for reader in readers:
            await eventually(
                lambda reader=reader: page(crowd, reader),
                lambda told: told == ("COMPLETE", newest),
            )

    assert set(of_cold) == {"DEGRADED"}
    assert TOLD[victim] in of_warm
    assert set(of_warm) <= {TOLD[victim], "DEGRADED"}


async def test_what_is_hidden_while_the_cache_stalls_is_shown_for_three_seconds_at_most(mesh):
    async with crowd_of(mesh, 3, random.Random(2)) as crowd:
        reader, deleting, blocking = crowd.people
        for author in (deleting, blocking):
            await crowd.do("follow", reader, author)
        deleted, *kept = [await crowd.make_post(deleting) for _ in range(3)]
        posts = [await crowd.make_post(blocking), *reversed(kept), deleted]
        await quiet(mesh)
        await eventually(lambda: page(crowd, reader), lambda told: told == ("COMPLETE", posts))
        with mesh.stalled("valkey"):
            await eventually(lambda: page(crowd, reader), lambda told: told == ("DEGRADED", posts))
            await crowd.do("delete", deleting, deleted)
            await crowd.do("block", blocking, reader)
            hidden_at = asyncio.get_running_loop().time()
            left = ("DEGRADED", kept[::-1])
            # Who reads all the time is answered from memory all the time.
            while asyncio.get_running_loop().time() < hidden_at + 6:
                began = asyncio.get_running_loop().time()
                _, shown = await page(crowd, reader)
                assert set(shown) <= set(kept) or began < hidden_at + 3
                await asyncio.sleep(0.1)
            await eventually(lambda: page(crowd, reader), lambda told: told == left)
        await eventually(lambda: page(crowd, reader), lambda told: told == ("COMPLETE", kept[::-1]))
        # What fan-out could not do meanwhile would delay what the next test asks of it.
        await quiet(mesh)


async def page(crowd: Crowd, reader: int) -> tuple[str, list[int]]:
    """Returns what a first page is worth, and its posts. There is always one."""
    answer = await crowd.feed.GetFeed(
        GetFeedRequest(), metadata=as_user(reader), timeout=PATIENCE_SECONDS
    )
    state = FeedState.Name(answer.state).removeprefix("FEED_STATE_")
    return state, [post.post_id for post in answer.posts]
