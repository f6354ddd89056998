"""Feeds are served while a part stalls, which is worse than a crash: calls time out.

With `PHOTOMESH_PROVE` each part stalls for 30 seconds while 200 users read. `make bench
BENCH=outages` measures the latency of these pages.
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

# The state of warm feeds while a part stalls. Cold feeds are DEGRADED.
STATES = {"graph": "COMPLETE", "post": "COMPLETE", "valkey": "DEGRADED", "postgres": "COMPLETE"}


@pytest.mark.parametrize("victim", STATES)
async def test_every_page_is_served_while_a_part_stalls(mesh, victim):
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
            await eventually(lambda reader=reader: page(crowd, reader), lambda seen: seen[1])

        async def read(reader: int, seen: Counter[str], until: float) -> None:
            while asyncio.get_running_loop().time() < until:
                if reader in cold:
                    try:
                        await timelines.drop(reader)
                    except Unavailable:
                        assert victim == "valkey"
                state, post_ids = await page(crowd, reader)
                seen[state] += 1
                # The whole feed or nothing: a part of it would look complete.
                assert post_ids in (newest, []), state
                assert post_ids or state == "DEGRADED"
                await asyncio.sleep(random.uniform(0.4, 0.6))

        of_warm: Counter[str] = Counter()
        of_cold: Counter[str] = Counter()
        at_last = (STATES[victim], newest)
        with mesh.stalled(victim):
            until = asyncio.get_running_loop().time() + SECONDS
            await asyncio.gather(
                *(read(reader, of_warm, until) for reader in warm),
                *(read(reader, of_cold, until) for reader in cold),
            )
            # Still so at the end of the stall. Retries, because a busy machine may answer late.
            for reader in warm:
                await eventually(
                    lambda reader=reader: page(crowd, reader), lambda seen: seen == at_last
                )
        for reader in readers:
            await eventually(
                lambda reader=reader: page(crowd, reader),
                lambda seen: seen == ("COMPLETE", newest),
            )

    assert set(of_cold) == {"DEGRADED"}
    assert STATES[victim] in of_warm
    assert set(of_warm) <= {STATES[victim], "DEGRADED"}


async def test_posts_hidden_while_the_cache_stalls_are_shown_for_three_seconds_at_most(mesh):
    async with crowd_of(mesh, 3, random.Random(2)) as crowd:
        reader, deleting, blocking = crowd.people
        for author in (deleting, blocking):
            await crowd.do("follow", reader, author)
        deleted, *kept = [await crowd.make_post(deleting) for _ in range(3)]
        posts = [await crowd.make_post(blocking), *reversed(kept), deleted]
        await quiet(mesh)
        await eventually(lambda: page(crowd, reader), lambda seen: seen == ("COMPLETE", posts))
        with mesh.stalled("valkey"):
            await eventually(lambda: page(crowd, reader), lambda seen: seen == ("DEGRADED", posts))
            await crowd.do("delete", deleting, deleted)
            await crowd.do("block", blocking, reader)
            hidden_at = asyncio.get_running_loop().time()
            left = ("DEGRADED", kept[::-1])
            # A reader who polls is always answered from memory.
            while asyncio.get_running_loop().time() < hidden_at + 6:
                began = asyncio.get_running_loop().time()
                _, seen = await page(crowd, reader)
                assert set(seen) <= set(kept) or began < hidden_at + 3
                await asyncio.sleep(0.1)
            await eventually(lambda: page(crowd, reader), lambda seen: seen == left)
        await eventually(lambda: page(crowd, reader), lambda seen: seen == ("COMPLETE", kept[::-1]))
        # Otherwise fan-out's backlog would delay the next test.
        await quiet(mesh)


async def page(crowd: Crowd, reader: int) -> tuple[str, list[int]]:
    """Returns the state of the first page of a feed, and its posts. The call must succeed."""
    answer = await crowd.feed.GetFeed(
        GetFeedRequest(), metadata=as_user(reader), timeout=PATIENCE_SECONDS
    )
    state = FeedState.Name(answer.state).removeprefix("FEED_STATE_")
    return state, [post.post_id for post in answer.posts]
