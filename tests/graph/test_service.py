"""The graph service as its callers use it: real processes of graph and account."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import psycopg
import pytest
from kafka import KafkaConsumer
from photomesh.graph.v1 import graph_internal_service_pb2 as internal_pb
from photomesh.graph.v1 import graph_service_pb2 as pb
from photomesh.graph.v1.events_pb2 import FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceStub

from deploy.local.stack import Stack
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.chassis.database.ids import shard_of
from services.domain.timelines import HomeTimelines
from tests.callers import Refusal, as_user, channel_to
from tests.eventually import PATIENCE_SECONDS

PUSHED = internal_pb.AudienceMode.AUDIENCE_MODE_PUSHED
FOLLOWING = pb.FollowState.FOLLOW_STATE_FOLLOWING
REQUESTED = pb.FollowState.FOLLOW_STATE_REQUESTED

UNKNOWN = Refusal(grpc.StatusCode.NOT_FOUND, "ACCOUNT_UNKNOWN", ("account_id",))
OWN = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "OWN_ACCOUNT", ("account_id",))
PRIVATE = Refusal(grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT_PRIVATE")

Act = Callable[..., Any]


@pytest.fixture(scope="module")
def services(infrastructure: Stack) -> Stack:
    infrastructure.up(["account", "graph"])
    return infrastructure


@pytest.fixture
async def act(services: Stack) -> AsyncIterator[Act]:
    """Calls a method of GraphService by its name, as a given user."""
    async with channel_to(services, "graph", identity="gateway") as channel:
        stub = GraphServiceStub(channel)

        async def act(caller_id: int, method: str, account_id: int = 0, **fields: Any) -> Any:
            request = getattr(pb, f"{method}Request")(**fields)
            if account_id:
                request.account_id = account_id
            return await getattr(stub, method)(request, metadata=as_user(caller_id))

        yield act


@pytest.fixture
async def internal(services: Stack) -> AsyncIterator[GraphInternalServiceStub]:
    """A stub of the internal methods, with the identities of allowed callers."""
    async with (
        channel_to(services, "graph", identity="fanout") as fanout,
        channel_to(services, "graph", identity="feed") as feed,
    ):
        stub = GraphInternalServiceStub(fanout)
        stub.ListFollowees = GraphInternalServiceStub(feed).ListFollowees
        yield stub


@pytest.fixture(scope="module")
def people(services: Stack) -> list[int]:
    """The ids of accounts without a password, because hashing one takes as long as a test."""
    with psycopg.connect(services.database_url("account"), autocommit=True) as database:
        return [
            account_id
            for (account_id,) in database.execute(
                """
                INSERT INTO accounts (shard, account_id, username, password_hash)
                SELECT shard, next_id(shard), 'graph' || shard, ''
                  FROM generate_series(1, 60) AS shard
                RETURNING account_id
                """
            )
        ]


@pytest.fixture
def accounts(people: list[int]) -> list[int]:
    """The ids of four unused accounts."""
    return [people.pop() for _ in range(4)]


async def refusal(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return Refusal.of(refused.value)


def listed(accounts: Any) -> list[int]:
    assert all(one.account.username and one.HasField("create_time") for one in accounts)
    return [one.account.account_id for one in accounts]


# -- Public methods ----------------------------------------------------------------------------


async def test_a_follow_publishes_one_event(services, act, internal, accounts):
    fan, star, other, _ = accounts

    for _ in range(2):
        assert (await act(fan, "Follow", star)).state == FOLLOWING
    followees = await internal.ListFollowees(internal_pb.ListFolloweesRequest(follower_id=fan))
    assert (list(followees.followee_ids), list(followees.hidden_ids)) == ([star], [])

    for _ in range(2):
        await act(fan, "Unfollow", star)
    followees = await internal.ListFollowees(internal_pb.ListFolloweesRequest(follower_id=fan))
    assert (list(followees.followee_ids), list(followees.hidden_ids)) == ([], [star])
    pairs = [
        internal_pb.FollowPair(follower_id=one, followee_id=two)
        for one, two in [(fan, star), (star, fan)]
    ]
    checked = await internal.BatchCheckFollows(internal_pb.BatchCheckFollowsRequest(pairs=pairs))
    assert list(checked.checks) == [
        internal_pb.FollowCheck(mode=PUSHED, version=2),
        internal_pb.FollowCheck(mode=PUSHED),
    ]

    # Events of one account keep their order, so receiving a third one proves there is none between.
    await act(fan, "Follow", other)
    events = await asyncio.to_thread(events_of, services, fan, 3)
    assert [event.followee_id for event in events] == [star, star, other]


def events_of(stack: Stack, follower_id: int, count: int) -> list[FollowChanged]:
    consumer = KafkaConsumer(
        "follow_changed",
        bootstrap_servers=stack.kafka_bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=PATIENCE_SECONDS * 1000,
    )
    events = []
    for record in consumer:
        if record.key == str(follower_id).encode():
            events.append(FollowChanged.FromString(record.value))
        if len(events) == count:
            break
    consumer.close()
    return events


async def test_a_private_account_chooses_its_followers(act, accounts):
    shy, friend, pest, stranger = accounts
    await act(shy, "SetPrivacy", private=True)
    assert (await act(shy, "GetPrivacy")).private

    for person in (friend, pest):
        assert (await act(person, "Follow", shy)).state == REQUESTED
    assert listed((await act(shy, "ListReceivedRequests")).requesters) == [pest, friend]
    assert listed((await act(pest, "ListSentRequests")).requested) == [shy]
    assert await refusal(act(friend, "ListFollowers", shy)) == PRIVATE

    for _ in range(2):
        await act(shy, "AcceptFollow", friend)
        await act(shy, "DeclineFollow", pest)
    assert (await refusal(act(shy, "AcceptFollow", pest))).reason == "FOLLOW_REQUEST_UNKNOWN"
    for person in (shy, friend):
        assert listed((await act(person, "ListFollowers", shy)).followers) == [friend]
        assert listed((await act(person, "ListFollowing", shy)).followees) == []
    for method in ("ListFollowers", "ListFollowing"):
        assert await refusal(act(stranger, method, shy)) == PRIVATE
    counts = await act(stranger, "GetFollowCounts", shy)
    assert (counts.followers, counts.followees) == (1, 0)

    for _ in range(2):
        await act(shy, "RemoveFollower", friend)
    assert await refusal(act(friend, "ListFollowers", shy)) == PRIVATE

    await act(shy, "SetPrivacy", private=False)
    assert listed((await act(stranger, "ListFollowers", shy)).followers) == []


async def test_a_block_hides_two_accounts_from_each_other(act, accounts):
    blocker, blocked, star, _ = accounts
    for one, other in [(blocker, blocked), (blocked, blocker), (blocked, star), (blocker, star)]:
        await act(one, "Follow", other)

    await act(blocker, "Block", blocked)

    for one, other in [(blocker, blocked), (blocked, blocker)]:
        for method in ("Follow", "Mute", "ListFollowers", "ListFollowing", "GetFollowCounts"):
            assert await refusal(act(one, method, other)) == UNKNOWN
        assert listed((await act(one, "ListFollowers", star)).followers) == [one]
        assert listed((await act(one, "ListFollowers", one)).followers) == []
        assert listed((await act(one, "ListFollowing", one)).followees) == [star]
    assert len(listed((await act(star, "ListFollowers", star)).followers)) == 2
    assert listed((await act(blocker, "ListBlocks")).blocked) == [blocked]
    assert listed((await act(blocked, "ListBlocks")).blocked) == []
    [mine] = (await act(blocker, "BatchGetRelationships", account_ids=[blocked])).relationships
    assert mine == pb.Relationship(account_id=blocked, blocks=True)

    # A block looks like an unknown account, but the blocked account may block too.
    await act(blocker, "SetPrivacy", private=True)
    hers = (await act(blocked, "BatchGetRelationships", account_ids=[blocker, 12345])).relationships
    assert list(hers) == [pb.Relationship(account_id=one) for one in (blocker, 12345)]
    await act(blocked, "Block", blocker)
    await act(blocker, "Unblock", blocked)
    assert await refusal(act(blocker, "Follow", blocked)) == UNKNOWN
    await act(blocked, "Unblock", blocker)
    assert (await act(blocker, "Follow", blocked)).state == FOLLOWING


async def test_muted_accounts_stay_out_of_the_feed(act, internal, accounts):
    fan, star, _, _ = accounts
    await act(fan, "Follow", star)

    await act(fan, "Mute", star)
    assert listed((await act(fan, "ListMutes")).muted) == [star]
    followees = await internal.ListFollowees(internal_pb.ListFolloweesRequest(follower_id=fan))
    assert (list(followees.followee_ids), list(followees.hidden_ids)) == ([], [star])

    await act(fan, "Unmute", star)
    followees = await internal.ListFollowees(internal_pb.ListFolloweesRequest(follower_id=fan))
    assert (list(followees.followee_ids), list(followees.hidden_ids)) == ([star], [])
    assert followees.version == 3


async def test_relationships_are_in_the_order_of_the_request(act, accounts):
    me, followed, fan, stranger = accounts
    await act(me, "Follow", followed)
    await act(fan, "Follow", me)
    await act(me, "Mute", fan)

    asked = [stranger, followed, fan, followed]
    answer = await act(me, "BatchGetRelationships", account_ids=asked)

    assert list(answer.relationships) == [
        pb.Relationship(account_id=stranger),
        pb.Relationship(account_id=followed, follows=True),
        pb.Relationship(account_id=fan, followed_by=True, mutes=True),
        pb.Relationship(account_id=followed, follows=True),
    ]


async def test_page_tokens_only_work_for_their_list(act, accounts):
    star, *fans = accounts
    for fan in fans:
        await act(fan, "Follow", star)

    first = await act(star, "ListFollowers", star, page_size=2)
    second = await act(star, "ListFollowers", star, page_size=2, page_token=first.next_page_token)
    assert listed([*first.followers, *second.followers]) == fans[::-1]
    assert second.next_page_token == ""

    token = first.next_page_token
    for caller, method, owner in [
        (fans[0], "ListFollowers", star),
        (star, "ListFollowing", star),
        (star, "ListFollowers", fans[0]),
        (star, "ListMutes", 0),
    ]:
        refused = await refusal(act(caller, method, owner, page_token=token))
        assert refused.reason == "BAD_PAGE_TOKEN"


@pytest.mark.parametrize("method", ["Follow", "Block", "Mute"])
async def test_actions_on_oneself_or_unknown_accounts_are_refused(act, people, method):
    caller = people[0]

    assert await refusal(act(caller, method, caller)) == OWN
    assert await refusal(act(caller, method, 12345)) == UNKNOWN
    zero = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", ("account_id",))
    assert await refusal(act(caller, method)) == zero
    assert (await refusal(act(0, method, people[1]))).reason == "TOKEN_MISSING"


async def test_relations_to_a_deleted_account_can_be_undone(act, accounts):
    for method in ("Unfollow", "DeclineFollow", "RemoveFollower", "Unblock", "Unmute"):
        await act(accounts[0], method, 12345)


@pytest.fixture
async def timelines(services: Stack) -> AsyncIterator[HomeTimelines]:
    async with connect(
        CacheSettings(valkey_url=services.valkey_url, valkey_timeout_seconds=PATIENCE_SECONDS)
    ) as cache:
        yield HomeTimelines(cache)


@pytest.mark.parametrize("method", ["Unfollow", "RemoveFollower", "Block", "Mute"])
async def test_lost_authors_are_hidden_before_the_response(act, timelines, accounts, method):
    """No process consumes events here, so the service itself must have hidden them."""
    one, other, third, _ = accounts
    for reader, author in [(one, other), (other, one), (one, third)]:
        await act(reader, "Follow", author)
    for reader in (one, other):
        marker = await timelines.begin_rebuild(reader)
        await timelines.finish_rebuild(reader, marker, [], whole=True, version=2)

    await act(one, method, other)

    hidden = {
        (reader, author)
        for reader in (one, other)
        for author in (await timelines.read(reader, 0, 1)).hidden
    }
    there, back = (one, other), (other, one)
    assert (
        hidden
        == {
            "Unfollow": {there},
            "RemoveFollower": {back},
            "Block": {there, back},
            "Mute": {there},
        }[method]
    )


# -- Internal methods --------------------------------------------------------------------------


async def test_post_can_check_what_a_viewer_may_see(services, act, accounts):
    viewer, public, shy, blocked = accounts
    await act(shy, "SetPrivacy", private=True)
    await act(viewer, "Follow", shy)
    await act(blocked, "Block", viewer)
    request = internal_pb.BatchCheckVisibilityRequest(
        viewer_id=viewer, account_ids=[blocked, viewer, shy, public, shy]
    )

    async with channel_to(services, "graph", identity="post") as channel:
        stub = GraphInternalServiceStub(channel)
        before = await stub.BatchCheckVisibility(request)
        await act(shy, "AcceptFollow", viewer)
        await act(viewer, "Mute", shy)
        after = await stub.BatchCheckVisibility(request)

    assert list(before.visible) == [False, True, False, True, False]
    assert list(after.visible) == [False, True, True, True, True]


FANS = 70_000


@pytest.fixture(scope="module")
def star(services: Stack) -> int:
    """An account with the followers 1 to 70,000."""
    star = 77 << 23 | 4711 << 10
    values = {"shard": shard_of(star), "star": star, "fans": FANS}
    with psycopg.connect(services.database_url("graph"), autocommit=True) as database:
        database.execute(
            """
            INSERT INTO followers (shard, followee_id, follower_id)
            SELECT %(shard)s, %(star)s, fan FROM generate_series(1, %(fans)s) AS fan
            """,
            values,
        )
        database.execute(
            "INSERT INTO follower_counts VALUES (%(shard)s, %(star)s, 0, %(fans)s)", values
        )
    return star


async def test_any_range_of_followers_is_streamed_in_order(internal, star):
    async def stream(after: int, until: int = 0) -> list[list[int]]:
        request = internal_pb.StreamFollowersRequest(
            followee_id=star, after_follower_id=after, until_follower_id=until
        )
        return [list(batch.follower_ids) async for batch in internal.StreamFollowers(request)]

    batches = await stream(0)
    assert [fan for batch in batches for fan in batch] == list(range(1, FANS + 1))
    assert [len(batch) for batch in batches] == [32_768, 32_768, 4_464]
    assert await stream(FANS - 2) == [[FANS - 1, FANS]]
    assert await stream(100, 103) == [[101, 102, 103]]
    assert await stream(FANS) == []


async def test_an_audience_is_divided_into_chunks_that_can_be_streamed(internal, star):
    whole = await internal.GetAudience(
        internal_pb.GetAudienceRequest(followee_id=star, chunk_size=FANS)
    )
    cut = await internal.GetAudience(
        internal_pb.GetAudienceRequest(followee_id=star, chunk_size=30_000)
    )
    audience = await internal.GetAudience(
        internal_pb.GetAudienceRequest(followee_id=1, chunk_size=30_000)
    )

    assert (whole.mode, whole.followers, list(whole.bounds)) == (PUSHED, FANS, [])
    assert (cut.mode, cut.followers, list(cut.bounds)) == (PUSHED, FANS, [30_000, 60_000])
    assert (audience.mode, audience.followers, list(audience.bounds)) == (PUSHED, 0, [])


async def test_slow_readers_of_streams_do_not_block_other_calls(internal, star):
    """There are more of them than database connections, each with unread batches."""
    request = internal_pb.StreamFollowersRequest(followee_id=star)
    streams = [internal.StreamFollowers(request) for _ in range(20)]
    try:
        for stream in streams:
            assert len((await stream.read()).follower_ids) == 32_768

        await internal.ListFollowees(
            internal_pb.ListFolloweesRequest(follower_id=1), timeout=PATIENCE_SECONDS
        )
    finally:
        for stream in streams:
            stream.cancel()
