"""The graph service as its callers meet it: a real process, with account beside it."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import grpc
import psycopg
import pytest
from kafka import KafkaConsumer
from photomesh.account.v1.account_service_pb2 import CreateAccountRequest
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.graph.v1 import graph_internal_service_pb2 as internal_pb
from photomesh.graph.v1 import graph_service_pb2 as pb
from photomesh.graph.v1.events_pb2 import FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceStub

from deploy.local.stack import Stack
from services.common.ids import shard_of
from tests.callers import Refusal, as_user, channel_to


@pytest.fixture(scope="module")
def services(infrastructure: Stack) -> Stack:
    infrastructure.up(["account", "graph"])
    return infrastructure


@pytest.fixture
async def graph(services: Stack) -> AsyncIterator[GraphServiceStub]:
    async with channel_to(services, "graph", identity="gateway") as channel:
        yield GraphServiceStub(channel)


@pytest.fixture
async def internal(services: Stack) -> AsyncIterator[GraphInternalServiceStub]:
    async with channel_to(services, "graph", identity="fanout") as channel:
        yield GraphInternalServiceStub(channel)


@pytest.fixture
async def accounts(services: Stack) -> list[int]:
    """Three people's ids."""
    async with channel_to(services, "account", identity="gateway") as channel:
        stub = AccountServiceStub(channel)
        answers = [
            await stub.CreateAccount(
                CreateAccountRequest(username=secrets.token_hex(8), password="password")
            )
            for _ in range(3)
        ]
    return [answer.account.account_id for answer in answers]


async def test_a_follow_is_told_to_the_mesh_once(services, graph, internal, accounts):
    fan, star, other = accounts

    for _ in range(2):
        await graph.Follow(pb.FollowRequest(account_id=star), metadata=as_user(fan))
    followees = await internal.ListFollowees(internal_pb.ListFolloweesRequest(follower_id=fan))
    assert list(followees.followee_ids) == [star]

    for _ in range(2):
        await graph.Unfollow(pb.UnfollowRequest(account_id=star), metadata=as_user(fan))
    checked = await internal.BatchCheckFollows(
        internal_pb.BatchCheckFollowsRequest(
            pairs=[
                internal_pb.FollowPair(follower_id=fan, followee_id=star),
                internal_pb.FollowPair(follower_id=star, followee_id=fan),
            ]
        )
    )
    assert [check.follows for check in checked.checks] == [False, False]

    # Events of one account keep their order, so a third one says that there is none between.
    await graph.Follow(pb.FollowRequest(account_id=other), metadata=as_user(fan))
    events = await asyncio.to_thread(events_of, services, fan, 3)
    assert [event.followee_id for event in events] == [star, star, other]


def events_of(stack: Stack, follower_id: int, count: int) -> list[FollowChanged]:
    consumer = KafkaConsumer(
        "follow_changed",
        bootstrap_servers=stack.kafka_bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=10_000,
    )
    events = []
    for record in consumer:
        if record.key == str(follower_id).encode():
            events.append(FollowChanged.FromString(record.value))
        if len(events) == count:
            break
    consumer.close()
    return events


@pytest.mark.parametrize(
    ("followee", "expected"),
    [
        ("self", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "SELF_FOLLOW", ("account_id",))),
        ("nobody", Refusal(grpc.StatusCode.NOT_FOUND, "ACCOUNT_UNKNOWN", ("account_id",))),
        ("zero", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", ("account_id",))),
    ],
)
async def test_who_cannot_be_followed(graph, accounts, followee, expected):
    caller = accounts[0]
    followee_id = {"self": caller, "nobody": 12345, "zero": 0}[followee]

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await graph.Follow(pb.FollowRequest(account_id=followee_id), metadata=as_user(caller))

    assert Refusal.of(refused.value) == expected


async def test_nobody_in_particular_follows_nobody(graph, accounts):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await graph.Follow(pb.FollowRequest(account_id=accounts[0]))
    assert Refusal.of(refused.value).reason == "TOKEN_MISSING"


async def test_an_account_that_is_gone_can_still_be_unfollowed(graph, accounts):
    await graph.Unfollow(pb.UnfollowRequest(account_id=12345), metadata=as_user(accounts[0]))


FANS = 60_000


@pytest.fixture(scope="module")
def star(services: Stack) -> int:
    """Somebody whom the accounts 1 to 60,000 follow."""
    star = 77 << 23 | 4711 << 10
    with psycopg.connect(services.database_url("graph"), autocommit=True) as database:
        database.execute(
            """
            INSERT INTO followers (shard, followee_id, follower_id)
            SELECT %(shard)s, %(star)s, fan FROM generate_series(1, %(fans)s) AS fan
            """,
            {"shard": shard_of(star), "star": star, "fans": FANS},
        )
    return star


async def test_followers_are_streamed_in_order_and_from_anywhere(internal, star):
    async def stream(after: int) -> list[list[int]]:
        request = internal_pb.StreamFollowersRequest(followee_id=star, after_follower_id=after)
        return [list(batch.follower_ids) async for batch in internal.StreamFollowers(request)]

    batches = await stream(0)
    assert [fan for batch in batches for fan in batch] == list(range(1, FANS + 1))
    assert {len(batch) for batch in batches} == {2_000}
    assert await stream(FANS - 2_500) == [
        list(range(FANS - 2_499, FANS - 499)),
        list(range(FANS - 499, FANS + 1)),
    ]
    assert await stream(FANS) == []


async def test_readers_that_dawdle_hold_up_nobody(internal, star):
    """More of them than there are connections to the database, each with batches unread."""
    request = internal_pb.StreamFollowersRequest(followee_id=star)
    streams = [internal.StreamFollowers(request) for _ in range(20)]
    try:
        for stream in streams:
            assert len((await stream.read()).follower_ids) == 2_000

        await internal.ListFollowees(internal_pb.ListFolloweesRequest(follower_id=1), timeout=2)
    finally:
        for stream in streams:
            stream.cancel()
