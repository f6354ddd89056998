"""Handling of events, whatever their order and however often they are delivered."""

import pytest
from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated

from services.domain.post_cache import CachedPost
from services.domain.timelines import HomeTimelines
from services.fanout.events import Events
from services.fanout.walk import Walks
from tests.fanout.conftest import (
    BACKFILL,
    CHUNK,
    DEMOTING,
    PROMOTING,
    PULLED,
    PUSHED,
    another_event,
    new_id,
)


async def post(parts, author: int) -> int:
    post_id = parts.world.post(author)
    another_event()
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))
    return post_id


async def test_a_post_reaches_its_author_and_all_followers_once(parts):
    author = await parts.reader()
    readers = [await parts.reader(author) for _ in range(3)]
    stranger = await parts.reader()
    absent = new_id()
    parts.world.follow(absent, author)

    post_id = await post(parts, author)
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))

    assert await parts.feeds([author, *readers]) == [[post_id]] * 4
    assert await parts.feed(stranger) == []
    assert not await parts.homes.exists(absent)
    assert await parts.waiting() == []


async def test_a_deleted_post_is_withdrawn_from_all_feeds(parts):
    author = await parts.reader()
    readers = [await parts.reader(author) for _ in range(3)]
    kept, gone = await post(parts, author), await post(parts, author)
    await parts.posts.put({gone: CachedPost(author, b"copy")})

    parts.world.posts[author].remove(gone)
    await parts.events.on_post_changed(PostChanged(post_id=gone, author_id=author))

    assert await parts.feeds([author, *readers]) == [[kept]] * 4
    assert await parts.posts.get([gone]) == {gone: None}


async def test_an_unarchived_post_returns_to_feeds(parts):
    author = await parts.reader()
    reader = await parts.reader(author)
    post_id = parts.world.post(author)
    await parts.posts.withdraw([post_id])

    await parts.events.on_post_changed(PostChanged(post_id=post_id, author_id=author))

    assert await parts.feeds([author, reader]) == [[post_id]] * 2
    # Readers get a miss and query post.
    assert await parts.posts.get([post_id]) == {}


async def test_events_in_the_wrong_order_leave_the_current_state(parts):
    author = await parts.reader()
    reader = await parts.reader(author)
    post_id = parts.world.post(author)
    parts.world.posts[author].remove(post_id)

    await parts.events.on_post_changed(PostChanged(post_id=post_id, author_id=author))
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))

    assert await parts.feeds([author, reader]) == [[], []]
    assert await parts.posts.get([post_id]) == {post_id: None}


async def test_a_change_during_the_handling_of_an_event_is_noticed(parts):
    author = await parts.reader()
    reader = await parts.reader(author)
    post_id = parts.world.post(author)
    parts.world.posts[author].remove(post_id)

    async def show_again():
        parts.world.posts[author].append(post_id)

    parts.world.meanwhile.append(show_again)
    await parts.events.on_post_changed(PostChanged(post_id=post_id, author_id=author))

    assert await parts.feed(reader) == [post_id]
    assert await parts.posts.get([post_id]) == {}


async def test_a_post_of_a_pulled_author_costs_nothing_per_follower(parts):
    author = new_id()
    reader = await parts.reader(author)
    parts.world.modes[author] = PULLED
    marker = await parts.authors.begin_rebuild(author)
    assert await parts.authors.finish_rebuild(author, marker, [], whole=True)

    post_id = await post(parts, author)

    assert await parts.feed(reader) == []
    assert (await parts.authors.read([author], 0, 10))[author].post_ids == [post_id]
    assert parts.world.streams == []


async def test_a_follow_adds_the_last_posts_and_an_unfollow_hides_them(parts):
    author, reader = new_id(), await parts.reader()
    posts = [parts.world.post(author) for _ in range(BACKFILL + 2)]
    change = FollowChanged(follower_id=reader, followee_id=author)

    parts.world.follow(reader, author)
    await parts.events.on_follow_changed(change)
    assert await parts.feed(reader) == posts[: -BACKFILL - 1 : -1]

    parts.world.unfollow(reader, author)
    await parts.events.on_follow_changed(change)
    assert (await parts.homes.read(reader, 0, 10)).hidden == {author}

    # Late events do not restore an outdated state.
    await parts.events.on_follow_changed(change)
    assert (await parts.homes.read(reader, 0, 10)).hidden == {author}


async def test_a_mute_hides_an_author_and_an_unmute_shows_them(parts):
    author = new_id()
    reader = await parts.reader(author)
    post_id = await post(parts, author)
    change = FollowChanged(follower_id=reader, followee_id=author)

    parts.world.muted.add((reader, author))
    await parts.events.on_follow_changed(change)
    assert (await parts.homes.read(reader, 0, 10)).hidden == {author}

    parts.world.muted.clear()
    await parts.events.on_follow_changed(change)
    held = await parts.homes.read(reader, 0, 10)
    assert (held.hidden, held.post_ids) == (frozenset(), [post_id])


async def test_a_follow_of_a_pulled_author_makes_the_feed_pull(parts):
    author, reader = new_id(), await parts.reader()
    parts.world.modes[author] = PULLED
    parts.world.follow(reader, author)

    await parts.events.on_follow_changed(FollowChanged(follower_id=reader, followee_id=author))

    assert (await parts.homes.read(reader, 0, 10)).pulled == [author]


async def test_a_feed_pulls_an_author_until_their_posts_are_pushed(parts, cache):
    author, reader = new_id(), new_id()
    parts.world.follow(reader, author)
    await parts.build(reader, pulled=(author,))
    parts.world.modes[author] = DEMOTING
    post_id = parts.world.post(author)
    pulled_at_pushes = []

    class Watched(HomeTimelines):
        async def push(self, owner_ids, post_ids, *, complete_from=0):
            pulled_at_pushes.append((await self.read(reader, 0, 10)).pulled)
            return await super().push(owner_ids, post_ids, complete_from=complete_from)

    walks = Walks(parts.peers)
    homes = Watched(cache)
    events = Events(homes, parts.authors, parts.posts, parts.peers, walks, parts.store)
    await events.on_follow_changed(FollowChanged(follower_id=reader, followee_id=author))

    assert pulled_at_pushes == [[author]]
    held = await parts.homes.read(reader, 0, 10)
    assert (held.pulled, held.post_ids) == ([], [post_id])


@pytest.mark.parametrize("followers", [3, 2 * CHUNK])
async def test_the_first_post_after_a_demotion_leaves_no_gap(parts, followers):
    author = new_id()
    readers = await parts.crowd(author, followers, seen=2)
    long_ago = new_id() - (4_000 << 23)
    parts.world.posts[author].append(long_ago)
    parts.world.modes[author] = PULLED
    before = [await post(parts, author) for _ in range(BACKFILL + 2)]
    parts.world.modes[author] = DEMOTING

    first = await post(parts, author)
    await parts.handle_chunks()

    assert await parts.feeds(readers) == [[first, *before[::-1]]] * len(readers)


async def test_a_follow_during_a_promotion_pulls_the_author(parts):
    author, reader = new_id(), await parts.reader()
    parts.world.follow(reader, author)

    async def promote():
        # Handles all followers before the feed shows the author, so it changes nothing.
        parts.world.begin_change(author, PROMOTING)

    parts.world.meanwhile.append(promote)
    await parts.events.on_follow_changed(FollowChanged(follower_id=reader, followee_id=author))

    assert (await parts.homes.read(reader, 0, 10)).pulled == [author]


async def test_a_concurrent_unfollow_is_not_undone(parts):
    """Graph hides the author before it responds, so fan-out's earlier read is outdated."""
    author, reader = new_id(), await parts.reader()
    parts.world.follow(reader, author)

    async def unfollow():
        parts.world.unfollow(reader, author)
        await parts.homes.hide(reader, author, parts.world.versions[reader])

    parts.world.meanwhile.append(unfollow)
    await parts.events.on_follow_changed(FollowChanged(follower_id=reader, followee_id=author))

    held = await parts.homes.read(reader, 0, 10)
    assert (held.hidden, held.pulled) == ({author}, [])


async def test_a_timeline_that_is_ahead_of_graph_is_dropped(parts):
    """This happens after graph's database is restored from a backup."""
    author, reader = new_id(), await parts.reader()
    parts.world.follow(reader, author)
    future = parts.world.versions[reader] + 1_000
    assert await parts.homes.hide(reader, new_id(), future)
    assert await parts.homes.hide(reader, author, future)

    await parts.events.on_follow_changed(FollowChanged(follower_id=reader, followee_id=author))

    assert not await parts.homes.exists(reader)


async def test_a_change_of_mode_and_its_reversal_reach_all_followers(parts):
    author = new_id()
    readers = await parts.crowd(author, 2 * CHUNK + 10)
    old = [await post(parts, author) for _ in range(BACKFILL + 1)]
    await parts.handle_chunks()
    change = parts.world.begin_change(author, PROMOTING)

    another_event()
    await parts.events.on_celebrity_changed(CelebrityChanged(account_id=author))
    assert await parts.handle_chunks() == 3

    # Chunks that end concurrently may each find that they are the last.
    assert set(parts.world.finished) == {(author, change)}
    for reader in readers:
        assert (await parts.homes.read(reader, 0, 10)).pulled == [author]
    newer = await post(parts, author)
    assert await parts.feeds(readers) == [old[::-1]] * len(readers)

    change = parts.world.begin_change(author, DEMOTING)
    another_event()
    await parts.events.on_celebrity_changed(CelebrityChanged(account_id=author))
    await parts.handle_chunks()

    assert parts.world.finished[-1] == (author, change)
    assert parts.world.modes[author] == PUSHED
    for reader in readers:
        held = await parts.homes.read(reader, 0, 10)
        assert held.pulled == []
        assert held.post_ids == [newer, *old[::-1]][:BACKFILL]
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_an_event_about_an_unchanged_mode_causes_no_work(parts):
    author = new_id()
    await parts.crowd(author, CHUNK + 1, seen=1)
    parts.world.modes[author] = PULLED

    await parts.events.on_celebrity_changed(CelebrityChanged(account_id=author))

    assert await parts.waiting() == []
