"""The post service as callers use it: real processes of post, media, its worker and account."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from kafka import KafkaConsumer
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.post.v1 import post_internal_service_pb2 as internal_pb
from photomesh.post.v1 import post_service_pb2 as pb
from photomesh.post.v1.events_pb2 import PostCreated
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub
from photomesh.post.v1.post_service_pb2_grpc import PostServiceStub

from deploy.local.stack import Stack
from tests.callers import Refusal, channel_to
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.pictures import photo
from tests.post.conftest import Author

PROCESSING, PUBLISHED, FAILED = (
    pb.POST_STATE_PROCESSING,
    pb.POST_STATE_PUBLISHED,
    pb.POST_STATE_FAILED,
)


@pytest.fixture
async def posts(services: Stack) -> AsyncIterator[PostServiceStub]:
    async with channel_to(services, "post", identity="gateway") as channel:
        yield PostServiceStub(channel)


@pytest.fixture
async def internal(services: Stack) -> AsyncIterator[PostInternalServiceStub]:
    async with channel_to(services, "post", identity="feed") as channel:
        yield PostInternalServiceStub(channel)


@pytest.fixture
def worker_stopped(services: Stack) -> Iterator[None]:
    """Stops the media worker until the test starts it or ends."""
    services.stop("media-worker")
    yield
    services.start("media-worker")


async def create(
    posts: PostServiceStub, author: Author, *media_ids: int, caption: str = "", request_id: str = ""
) -> pb.Post:
    request = pb.CreatePostRequest(media_ids=media_ids, caption=caption, request_id=request_id)
    return (await posts.CreatePost(request, metadata=author.metadata)).post


async def get(posts: PostServiceStub, reader: Author, post_id: int) -> pb.Post:
    request = pb.GetPostRequest(post_id=post_id)
    return (await posts.GetPost(request, metadata=reader.metadata)).post


async def recent(internal: PostInternalServiceStub, author: Author) -> list[int]:
    answer = await internal.ListRecentByAuthors(
        internal_pb.ListRecentByAuthorsRequest(author_ids=[author.account_id], limit=10)
    )
    return list(answer.post_ids)


async def test_a_post_of_media_that_are_ready_is_published_at_once(
    services, posts, internal, author, stranger
):
    media_ids = [await author.photo(seed) for seed in (3, 1, 2)]

    made = await create(posts, author, *media_ids, caption="Three of them: ä, 日本, 🌄")

    assert made.state == PUBLISHED
    assert made.caption == "Three of them: ä, 日本, 🌄"
    assert (made.author.account_id, made.author.username) == (author.account_id, author.username)
    assert [item.media_id for item in made.media] == media_ids
    for item in made.media:
        assert (item.state, item.width, item.height) == (media_pb.MEDIA_STATE_READY, 240, 240)
        # One token serves all variants of an item.
        assert len({variant.url.partition("?")[2] for variant in item.variants}) == 1
        assert len({variant.url.partition("?")[0] for variant in item.variants}) >= 2
        folder = f"/media/{item.create_time.ToDatetime():%Y/%m/%d}/{item.owner_id}/{item.media_id}/"
        assert all(folder in variant.url for variant in item.variants)
    assert await get(posts, stranger, made.post_id) == made

    # As in GetPost, in the order of the request, with blanks for unknown posts.
    batch = await internal.BatchGetPosts(
        internal_pb.BatchGetPostsRequest(post_ids=[7, made.post_id, 8, made.post_id])
    )
    assert list(batch.posts) == [pb.Post(), made, pb.Post(), made]
    assert await recent(internal, author) == [made.post_id]

    last = await create(posts, author, media_ids[0])
    events = await asyncio.to_thread(events_of, services, author, 2)
    assert [event.post_id for event in events] == [made.post_id, last.post_id]


def events_of(stack: Stack, author: Author, count: int) -> list[PostCreated]:
    consumer = KafkaConsumer(
        "post_created",
        bootstrap_servers=stack.kafka_bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=PATIENCE_SECONDS * 1000,
    )
    events = []
    for record in consumer:
        if record.key == str(author.account_id).encode():
            events.append(PostCreated.FromString(record.value))
        if len(events) == count:
            break
    consumer.close()
    return events


async def test_a_post_waits_for_its_media_and_only_its_author_sees_it(
    services, worker_stopped, posts, internal, author, stranger
):
    good, broken = await author.upload(photo()), await author.upload(b"this is no picture")
    waiting = await create(posts, author, good, request_id="good")
    doomed = await create(posts, author, good, broken)

    assert (waiting.state, doomed.state) == (PROCESSING, PROCESSING)
    assert waiting.media[0].state == media_pb.MEDIA_STATE_UPLOADED
    assert await get(posts, author, waiting.post_id) == waiting
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await get(posts, stranger, waiting.post_id)
    assert Refusal.of(refused.value) == Refusal(
        grpc.StatusCode.NOT_FOUND, "POST_UNKNOWN", ("post_id",)
    )
    batch = await internal.BatchGetPosts(
        internal_pb.BatchGetPostsRequest(post_ids=[waiting.post_id])
    )
    assert list(batch.posts) == [pb.Post()]
    assert await recent(internal, author) == []

    await asyncio.to_thread(services.start, "media-worker")

    async def state_of(post: pb.Post) -> pb.PostState:
        return (await get(posts, author, post.post_id)).state

    await eventually(lambda: state_of(waiting), lambda state: state == PUBLISHED)
    await eventually(lambda: state_of(doomed), lambda state: state == FAILED)
    failed = await get(posts, author, doomed.post_id)
    assert failed.media[1].failure == media_pb.MEDIA_FAILURE_NOT_AN_IMAGE
    with pytest.raises(grpc.aio.AioRpcError):
        await get(posts, stranger, doomed.post_id)
    assert await recent(internal, author) == [waiting.post_id]
    # A repeat of the request returns the post as it is now.
    assert (await create(posts, author, good, request_id="good")).state == PUBLISHED

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create(posts, author, good, broken)
    assert Refusal.of(refused.value) == Refusal(
        grpc.StatusCode.FAILED_PRECONDITION, "MEDIA_FAILED", ("media_ids[1]",)
    )


async def test_media_that_cannot_be_posted_are_named(posts, author, stranger):
    own, foreign = await author.photo(), await stranger.photo()
    pending = (await author.open_upload(b"x")).media.media_id
    missing = grpc.StatusCode.NOT_FOUND, "MEDIA_UNKNOWN"
    early = grpc.StatusCode.FAILED_PRECONDITION, "MEDIA_NOT_UPLOADED"
    invalid = grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"

    for media_ids, expected in [
        ([own, foreign], Refusal(*missing, ("media_ids[1]",))),
        ([12345, own], Refusal(*missing, ("media_ids[0]",))),
        ([own, pending], Refusal(*early, ("media_ids[1]",))),
        ([own, own], Refusal(*invalid, ("media_ids",))),
        ([], Refusal(*invalid, ("media_ids",))),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(posts, author, *media_ids)
        assert Refusal.of(refused.value) == expected


async def test_ten_identical_requests_make_one_post(posts, internal, author, stranger):
    media_id, request_id = await author.photo(), secrets.token_hex(16)

    made = await asyncio.gather(
        *(create(posts, author, media_id, caption="one", request_id=request_id) for _ in range(10))
    )

    assert len({post.post_id for post in made}) == 1
    assert await recent(internal, author) == [made[0].post_id]
    for media_ids, caption in [([media_id], "other"), ([await author.photo(1)], "one")]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(posts, author, *media_ids, caption=caption, request_id=request_id)
        assert Refusal.of(refused.value).reason == "REQUEST_ID_REUSED"
    # Request ids are separate for each author; without one, every request makes a new post.
    assert await create(posts, stranger, await stranger.photo(), request_id=request_id)
    assert await create(posts, author, media_id) != await create(posts, author, media_id)


async def test_while_account_is_unavailable_posts_have_no_author_names(
    services, posts, internal, author
):
    made = await create(posts, author, await author.photo(), caption="still here")
    request = internal_pb.BatchGetPostsRequest(post_ids=[made.post_id])

    services.kill("account")
    try:
        answer = await internal.BatchGetPosts(request, timeout=PATIENCE_SECONDS)
    finally:
        services.start("account")

    assert [post.caption for post in answer.posts] == ["still here"]
    assert answer.posts[0].author.account_id == author.account_id
    assert answer.posts[0].author.username == ""
    await eventually(
        lambda: internal.BatchGetPosts(request),
        lambda answer: answer.posts[0].author.username == author.username,
    )
