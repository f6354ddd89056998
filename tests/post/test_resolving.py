"""Resolving posts: a post is published once, however many processes resolve it."""

import asyncio

from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.events_pb2 import MediaDeleted, MediaProcessed
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.post.v1 import post_service_pb2 as pb

from services.chassis.config import DatabaseSettings
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Relay
from services.post.store import State
from tests.post.conftest import Replica, sign_in


async def test_a_post_resolved_twenty_times_concurrently_is_published_once(replicas, author):
    media_ids = [await author.photo(seed) for seed in (1, 2)]
    store = replicas[0].store
    post = await store.add_post(author.account_id, media_ids, "caption", "")
    assert post.state is State.PROCESSING

    outcomes = await asyncio.gather(*(replica.resolver.resolve(post) for replica in replicas * 10))

    assert {resolved.state for resolved, _ in outcomes} == {State.PUBLISHED}
    assert await replicas[0].events() == [post.post_id]
    published = await store.post(post.post_id)
    assert [item.media_id for item in published.snapshots] == media_ids
    assert all(item.variants and item.key_prefix.endswith("/") for item in published.snapshots)


async def test_an_event_resolves_only_the_posts_that_wait_for_its_media(replicas, author):
    ready, pending = await author.photo(), (await author.open_upload(b"x")).media.media_id
    store, replica = replicas[0].store, replicas[0]
    one, other, waiting, third = [
        await store.add_post(author.account_id, media_ids, "", "")
        for media_ids in ([ready], [ready], [pending, ready], [pending])
    ]

    for _ in range(2):
        await replica.handlers.on_media_processed(
            MediaProcessed(media_id=ready, owner_id=author.account_id)
        )

    assert await replicas[0].events() == sorted([one.post_id, other.post_id])
    left = await store.posts([waiting.post_id, third.post_id])
    assert {post.state for post in left.values()} == {State.PROCESSING}


async def test_sweeps_of_two_replicas_publish_each_overdue_post_once(replicas, author):
    ready, pending = await author.photo(), (await author.open_upload(b"x")).media.media_id
    store = replicas[0].store
    # More than one batch, including some posts whose media are not ready.
    posts = [
        await store.add_post(author.account_id, [pending if n % 10 == 0 else ready], "", "")
        for n in range(120)
    ]
    await replicas[0].sweep()
    assert await replicas[0].events() == [], "a new post is left to the call that creates it"

    await replicas[0].make_due()
    await asyncio.gather(*(replica.sweep() for replica in replicas))

    forgotten = [post.post_id for post in posts if post.media_ids == (ready,)]
    assert await replicas[0].events() == sorted(forgotten)
    assert await store.take_unresolved(100) == [], "posts that still wait are not due for a while"


async def test_a_post_fails_with_its_media(replicas, author):
    broken = await author.upload(b"this is no picture")
    await author.processed(broken)
    store, replica = replicas[0].store, replicas[0]
    post = await store.add_post(author.account_id, [await author.photo(), broken], "", "")

    resolved, media = await replica.resolver.resolve(post)

    assert resolved.state is State.FAILED
    assert [item.failure != 0 for item in media] == [False, True]
    assert await replicas[0].events() == []


async def test_posts_of_a_deleted_photo_remain_without_it(replicas, author):
    gone, kept = await author.photo(1), await author.photo(2)
    store, replica = replicas[0].store, replicas[0]
    post = await store.add_post(author.account_id, [gone, kept], "", "")
    await replica.resolver.resolve(post)

    for replica in replicas:
        await replica.handlers.on_media_deleted(
            MediaDeleted(media_id=gone, owner_id=author.account_id)
        )

    left = await store.post(post.post_id)
    assert left.state is State.PUBLISHED
    first, second = left.snapshots
    assert (first.media_id, first.state) == (gone, media_pb.MEDIA_STATE_DELETED)
    assert not first.variants
    assert second.media_id == kept
    assert second.variants
    assert set(await replicas[0].changes()) == {post.post_id}, "so that cached copies are refreshed"


async def test_a_photo_that_is_deleted_while_its_post_is_published_is_not_shown(
    replicas, author, peers
):
    media_id = await author.photo()
    store = replicas[0].store
    post = await store.add_post(author.account_id, [media_id], "", "")
    media = await peers.media([media_id])

    deleted = StoredMedia(media_id=media_id, state=media_pb.MEDIA_STATE_DELETED)
    await replicas[1].store.forget_media(deleted)
    # With the state from before the deletion.
    await store.publish(post, media)

    assert not (await store.post(post.post_id)).snapshots[0].variants
    assert await replicas[0].changes() == [], "there was no copy"


async def test_posts_show_reprocessed_photos_unless_they_are_deleted(replicas, author, peers):
    media_id = await author.photo()
    store, replica = replicas[0].store, replicas[0]
    old = StoredMedia(media_id=media_id, state=media_pb.MEDIA_STATE_READY, width=1)
    deleted = StoredMedia(media_id=media_id, state=media_pb.MEDIA_STATE_DELETED)
    posts = [await store.add_post(author.account_id, [media_id], "", "") for _ in range(2)]
    await store.publish(posts[0], [old])
    await store.publish(posts[1], [deleted])

    for _ in range(2):
        await replica.handlers.on_media_processed(
            MediaProcessed(media_id=media_id, owner_id=author.account_id)
        )

    [now] = await peers.media([media_id])
    assert (await store.post(posts[0].post_id)).snapshots == (now,)
    assert (await store.post(posts[1].post_id)).snapshots == (deleted,)
    assert await replicas[0].changes() == [posts[0].post_id]


async def test_a_post_that_waits_for_a_photo_fails_when_it_is_deleted(replicas, author):
    media_id = (await author.open_upload(b"x")).media.media_id
    store, replica = replicas[0].store, replicas[0]
    post = await store.add_post(author.account_id, [media_id], "", "")
    await author.delete(media_id)

    await replica.handlers.on_media_deleted(
        MediaDeleted(media_id=media_id, owner_id=author.account_id)
    )

    assert (await store.post(post.post_id)).state is State.FAILED


async def test_a_post_is_created_even_if_it_cannot_be_resolved_at_once(
    replicas, author, post_service, peers, kafka
):
    unavailable = DatabaseSettings(
        database_url="postgresql://post@127.0.0.1:1/photomesh", database_timeout_seconds=0.2
    )
    sign_in(author)
    async with Database(unavailable) as database:
        resolver = Replica(database, Relay(unavailable, kafka), peers).resolver
        async with post_service(resolver=resolver) as service:
            request = pb.CreatePostRequest(media_ids=[await author.photo()], request_id="once")
            answer = await service.CreatePost(request, None)

    assert answer.post.state == pb.POST_STATE_PROCESSING
    assert [item.media_id for item in answer.post.media] == list(request.media_ids)
    await replicas[0].make_due()
    await replicas[0].sweep()
    assert await replicas[0].events() == [answer.post.post_id]
