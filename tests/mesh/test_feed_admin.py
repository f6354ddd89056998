"""Inspecting and repairing home feeds with the operator's certificate."""

import random

import grpc
import psycopg
import pytest
from photomesh.feed.v1 import feed_admin_service_pb2 as pb
from photomesh.feed.v1.feed_admin_service_pb2_grpc import FeedAdminServiceStub

from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.domain.timelines import HomeTimelines
from tests.callers import Refusal, channel_to
from tests.eventually import PATIENCE_SECONDS
from tests.mesh.crowd import crowd_of
from tests.mesh.mishaps import quiet


@pytest.fixture
async def admin(mesh):
    async with channel_to(mesh, "feed", identity="operator") as channel:
        yield FeedAdminServiceStub(channel)


async def test_missing_posts_of_a_timeline_are_reported_and_repaired(mesh, admin):
    async with (
        crowd_of(mesh, 3, random.Random(1)) as crowd,
        connect(
            CacheSettings(valkey_url=mesh.valkey_url, valkey_timeout_seconds=PATIENCE_SECONDS)
        ) as cache,
    ):
        reader, author, muted = crowd.people
        asked = pb.InspectFeedRequest(account_id=reader)
        timelines = HomeTimelines(cache)

        assert (await admin.InspectFeed(asked)).state == pb.TIMELINE_STATE_ABSENT

        for followee in (author, muted):
            await crowd.do("follow", reader, followee)
        await crowd.do("mute", reader, muted)
        posts = [await crowd.make_post(author) for _ in range(3)]
        await quiet(mesh)
        await admin.RebuildFeed(pb.RebuildFeedRequest(account_id=reader))

        assert await admin.InspectFeed(asked) == pb.InspectFeedResponse(
            state=pb.TIMELINE_STATE_WHOLE, post_ids=posts[::-1], hidden_account_ids=[muted]
        )

        await timelines.retract([reader], [posts[1]])

        seen = await admin.InspectFeed(asked)
        assert (seen.post_ids, seen.missing_post_ids) == ([posts[2], posts[0]], [posts[1]])

        await admin.RebuildFeed(pb.RebuildFeedRequest(account_id=reader))

        assert (await admin.InspectFeed(asked)).post_ids == posts[::-1]


async def test_a_celebrity_who_is_not_pulled_is_reported(mesh, admin):
    async with crowd_of(mesh, 2, random.Random(2)) as crowd:
        reader, author = crowd.people
        await crowd.do("follow", reader, author)
        await quiet(mesh)
        await admin.RebuildFeed(pb.RebuildFeedRequest(account_id=reader))
        with psycopg.connect(mesh.database_url("graph")) as graph:
            # Without the event that fan-out would have handled.
            graph.execute(
                "INSERT INTO celebrities (account_id, mode) VALUES (%s, 'PULLED')", [author]
            )

        seen = await admin.InspectFeed(pb.InspectFeedRequest(account_id=reader))

        assert (seen.pulled_account_ids, seen.missing_pulled_account_ids) == ([], [author])

        await admin.RebuildFeed(pb.RebuildFeedRequest(account_id=reader))

        seen = await admin.InspectFeed(pb.InspectFeedRequest(account_id=reader))
        assert (seen.pulled_account_ids, seen.missing_pulled_account_ids) == ([author], [])


async def test_only_the_operator_may_call_it(mesh):
    async with channel_to(mesh, "feed", identity="gateway") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await FeedAdminServiceStub(channel).InspectFeed(pb.InspectFeedRequest(account_id=1))

    assert Refusal.of(refused.value).code == grpc.StatusCode.PERMISSION_DENIED
