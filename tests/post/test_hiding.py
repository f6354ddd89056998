"""Archiving, unarchiving and deleting take effect before the response, and publish events."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from photomesh.graph.v1 import graph_service_pb2 as graph_pb
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.events_pb2 import MediaProcessed
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.post.v1 import post_service_pb2 as pb

from services.chassis.cache.client import Cache, connect
from services.chassis.config import CacheSettings
from services.chassis.errors import MeshError
from services.domain.post_cache import CachedPost, PostCache
from services.post.service import PostService
from services.post.store import Post, State
from tests.callers import channel_to
from tests.eventually import PATIENCE_SECONDS
from tests.post.conftest import Author, Replica, sign_in

ARCHIVED, PUBLISHED, DELETED = (
    pb.POST_STATE_ARCHIVED,
    pb.POST_STATE_PUBLISHED,
    pb.POST_STATE_DELETED,
)

# A port without a listener.
NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def cache(services) -> AsyncIterator[Cache]:
    async with connect(
        CacheSettings(valkey_url=services.valkey_url, valkey_timeout_seconds=PATIENCE_SECONDS)
    ) as cache:
        yield cache


@pytest.fixture
async def service(post_service) -> AsyncIterator[PostService]:
    async with post_service() as service:
        yield service


@pytest.fixture
async def stalled() -> AsyncIterator[str]:
    """The address of a server that accepts all requests and never answers."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    server.close()


_media_ids = itertools.count(1)


async def published(replica: Replica, author: Author) -> Post:
    """Publishes a post of a photo that media does not know."""
    media = StoredMedia(
        media_id=next(_media_ids) << 23 | author.account_id & 8191 << 10,
        owner_id=author.account_id,
        state=media_pb.MEDIA_STATE_READY,
        key_prefix="2026/11/21/7/8/",
    )
    post = await replica.store.add_post(author.account_id, [media.media_id], "words", "")
    assert post
    assert await replica.store.publish(post, [media])
    return post


async def archive(service: PostService, post: Post) -> pb.Post:
    return (await service.ArchivePost(pb.ArchivePostRequest(post_id=post.post_id), None)).post


async def unarchive(service: PostService, post: Post) -> pb.Post:
    return (await service.UnarchivePost(pb.UnarchivePostRequest(post_id=post.post_id), None)).post


async def delete(service: PostService, post: Post) -> None:
    await service.DeletePost(pb.DeletePostRequest(post_id=post.post_id), None)


async def get(service: PostService, post: Post) -> pb.Post:
    return (await service.GetPost(pb.GetPostRequest(post_id=post.post_id), None)).post


async def reason(call) -> str:
    with pytest.raises(MeshError) as refused:
        await call
    return refused.value.reason


async def listed(replica: Replica, author: Author) -> list[int]:
    return await replica.store.recent([author.account_id], before=0, limit=10)


async def test_only_its_author_sees_an_archived_post_until_it_is_unarchived(
    replicas, service, cache, author, stranger
):
    posts, cached = [await published(replicas[0], author) for _ in range(3)], PostCache(cache)
    old, post, new = posts
    await cached.put({post.post_id: CachedPost(author.account_id, b"a copy")})
    sign_in(author)

    assert (await archive(service, post)).state == ARCHIVED

    assert await cached.get([post.post_id]) == {post.post_id: None}
    assert await listed(replicas[0], author) == [new.post_id, old.post_id]
    assert (await get(service, post)).state == ARCHIVED
    assert (await get(service, post)).media[0].media_id == post.media_ids[0]
    sign_in(stranger)
    assert await reason(get(service, post)) == "POST_UNKNOWN"
    sign_in(author)
    assert (await archive(service, post)).state == ARCHIVED, "again"

    for _ in range(2):
        assert (await unarchive(service, post)).state == PUBLISHED

    # Neither a tombstone any more nor a copy, which only the next read makes.
    assert await cached.get([post.post_id]) == {}
    assert await listed(replicas[0], author) == [new.post_id, post.post_id, old.post_id]
    sign_in(stranger)
    assert (await get(service, post)).caption == "words"
    assert await replicas[0].changes() == [post.post_id] * 2, "repeats change nothing"


async def test_repeating_the_request_does_not_recreate_a_deleted_post(
    replicas, service, cache, author, stranger
):
    request = pb.CreatePostRequest(
        media_ids=[await author.photo()], caption="words", request_id="mine"
    )
    sign_in(author)
    made = (await service.CreatePost(request, None)).post
    post = await replicas[0].store.post(made.post_id)
    await PostCache(cache).put({post.post_id: CachedPost(author.account_id, b"a copy")})

    for _ in range(2):
        await delete(service, post)

    assert await PostCache(cache).get([post.post_id]) == {post.post_id: None}
    assert await listed(replicas[0], author) == []
    assert await replicas[0].changes() == [post.post_id]
    for call in (get(service, post), archive(service, post), unarchive(service, post)):
        assert await reason(call) == "POST_UNKNOWN"
    again = (await service.CreatePost(request, None)).post
    assert (again.post_id, again.state) == (post.post_id, DELETED)
    assert (again.caption, list(again.media)) == ("", [])
    # Only the post is deleted: its photo can be posted again.
    request.request_id = "another"
    assert (await service.CreatePost(request, None)).post.state == PUBLISHED


async def test_a_post_of_another_author_is_unknown_to_hide_and_delete(
    replicas, service, author, stranger
):
    post = await published(replicas[0], author)
    unknown = Post(7, author.account_id, "", State.PUBLISHED, (), ())
    sign_in(stranger)

    for tried in (post, unknown):
        for verb in (archive, unarchive, delete):
            assert await reason(verb(service, tried)) == "POST_UNKNOWN"

    assert (await replicas[0].store.post(post.post_id)).state is State.PUBLISHED
    assert await replicas[0].changes() == []


async def test_an_unpublished_post_can_be_deleted_but_not_archived(
    replicas, service, cache, author
):
    media_id = await author.photo()
    post = await replicas[0].store.add_post(author.account_id, [media_id], "", "")
    sign_in(author)

    assert await reason(archive(service, post)) == "POST_NOT_PUBLISHED"
    # A tombstone would hide it when it is published.
    assert await PostCache(cache).get([post.post_id]) == {}

    await delete(service, post)
    await replicas[0].handlers.on_media_processed(
        MediaProcessed(media_id=media_id, owner_id=author.account_id)
    )
    await replicas[0].make_due()
    await replicas[0].sweep()
    # A process that read the post before it was deleted cannot publish it any more.
    resolved, _ = await replicas[1].resolver.resolve(post)
    assert resolved.state is State.DELETED
    assert await replicas[0].events() == []


async def test_concurrent_changes_each_publish_an_event_and_deletion_is_last(replicas, author):
    posts = [await published(replicas[0], author) for _ in range(4)]
    steps = [
        (replica.store.archive, replica.store.unarchive)[n % 2](post)
        for n in range(5)
        for replica in replicas
        for post in posts
    ]

    await asyncio.gather(*steps, *(replicas[1].store.delete(post) for post in posts))

    found = await replicas[0].store.posts([post.post_id for post in posts])
    assert {(post.state, post.caption, post.media_ids) for post in found.values()} == {
        (State.DELETED, "", ())
    }
    changes = await replicas[0].changes()
    assert {post.post_id for post in posts} == set(changes)


@pytest.mark.parametrize("how", ["unavailable", "stalled"])
async def test_authors_do_not_wait_for_a_stalled_cache(
    replicas, post_service, author, stalled, how
):
    posts = [await published(replicas[0], author) for _ in range(2)]
    sign_in(author)
    address = NOWHERE if how == "unavailable" else stalled
    async with post_service(valkey_url=f"redis://{address}/0") as service:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await archive(service, posts[0])).state == ARCHIVED
            await delete(service, posts[1])

    # Fan-out withdraws them when the cache is available again.
    assert await replicas[0].changes() == [post.post_id for post in posts]


async def test_viewers_of_an_account_see_its_posts(replicas, service, services, author, stranger):
    post = await published(replicas[0], author)
    of_author = graph_pb.FollowRequest(account_id=author.account_id)
    sign_in(stranger)
    async with channel_to(services, "graph", identity="gateway") as channel:
        graph = GraphServiceStub(channel)

        await graph.SetPrivacy(graph_pb.SetPrivacyRequest(private=True), metadata=author.metadata)
        assert await reason(get(service, post)) == "POST_UNKNOWN"

        await graph.SetPrivacy(graph_pb.SetPrivacyRequest(private=False), metadata=author.metadata)
        await graph.Follow(of_author, metadata=stranger.metadata)
        await graph.SetPrivacy(graph_pb.SetPrivacyRequest(private=True), metadata=author.metadata)
        assert (await get(service, post)).post_id == post.post_id

        block = graph_pb.BlockRequest(account_id=author.account_id)
        await graph.Block(block, metadata=stranger.metadata)
        assert await reason(get(service, post)) == "POST_UNKNOWN"


async def test_while_graph_is_unavailable_only_the_author_sees_a_post(
    replicas, post_service, author, stranger
):
    post = await published(replicas[0], author)
    async with post_service(graph_address=NOWHERE) as service:
        sign_in(author)
        assert (await get(service, post)).post_id == post.post_id

        sign_in(stranger)
        assert await reason(get(service, post)) == "UNAVAILABLE"
