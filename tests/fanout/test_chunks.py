"""Large audiences: cut, shared, resumed and retried, and in the end as small ones."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from photomesh.graph.v1.events_pb2 import CelebrityChanged
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated

from services.chassis.errors import Unavailable
from services.domain.timelines import HomeTimelines
from services.fanout.events import Chunks
from services.fanout.store import KEPT_FINISHED, KEPT_UNFINISHED
from services.fanout.walk import Walks
from tests.fanout.conftest import CHUNK, DEMOTING, PROMOTING, another_event, new_id


class Failing(HomeTimelines):
    """A cache that goes away after some batches."""

    def __init__(self, cache, batches: int) -> None:
        super().__init__(cache)
        self.left = batches

    async def push(self, owner_ids, post_ids, *, complete_from=0):
        self.left -= 1
        if self.left < 0:
            raise Unavailable("The cache")
        return await super().push(owner_ids, post_ids, complete_from=complete_from)


async def test_a_large_audience_is_cut_into_chunks_of_few_lanes(parts):
    author = await parts.reader()
    readers = await parts.crowd(author, 20 * CHUNK - 1)
    post_id = parts.world.post(author)
    created = PostCreated(post_id=post_id, author_id=author)

    await parts.events.on_post_created(created)
    # The event comes again.
    await parts.events.on_post_created(created)

    assert await parts.feed(author) == [post_id]
    [under_way] = await parts.store.in_flight(after_id=0, limit=10)
    # But for the first, which is gone through at once.
    assert await parts.feeds(readers) == [[post_id]] + [[]] * (len(readers) - 1)
    assert (under_way.chunks, under_way.chunks_done) == (19, 0)
    assert (under_way.followers, under_way.reached) == (19 * CHUNK - 1, 0)
    events = await parts.waiting()
    # No more than that lie in front of everybody else's.
    assert [event.chunk for _, event in events] == list(range(16))
    assert len({key for key, _ in events}) == 4
    for _, event in events[:2]:
        await parts.chunks.on_chunk_ready(event)
    [under_way] = await parts.store.in_flight(after_id=0, limit=10)
    assert (under_way.chunks_done, under_way.reached) == (2, 2 * CHUNK)

    # Each may come again, and side by side.
    again = [*events, *events]
    await asyncio.gather(*(parts.chunks.on_chunk_ready(event) for _, event in again))
    assert await parts.work_off() == 3

    assert await parts.feeds(readers) == [[post_id]] * len(readers)
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_a_chunk_goes_on_where_it_was_left(parts, cache):
    author = new_id()
    readers = await parts.crowd(author, 7 * CHUNK)
    post_id = parts.world.post(author)
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))
    _, event = (await parts.waiting())[0]
    # One chunk of them all, which is streamed in batches of 40.
    async with parts.database.connection() as connection:
        await connection.execute("UPDATE fanout_chunks SET until_id = 0 WHERE chunk = 0")
    dying = Chunks(Failing(cache, batches=8), parts.peers, Walks(parts.peers), parts.store)

    with pytest.raises(Unavailable):
        await dying.on_chunk_ready(event)
    left = await parts.store.chunk(event.fanout_id, 0)
    assert left.reached == 5 * 40
    parts.world.streams.clear()
    await parts.chunks.on_chunk_ready(event)

    assert parts.world.streams == [(left.position, 0)]
    assert await parts.feeds(readers) == [[post_id]] * len(readers)
    done = await parts.store.chunk(event.fanout_id, 0)
    assert (done.done, done.reached) == (True, 6 * CHUNK)


async def test_a_post_that_is_deleted_while_it_is_pushed_stays_nowhere(parts):
    author = new_id()
    readers = await parts.crowd(author, 4 * CHUNK)
    post_id = parts.world.post(author)
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))
    pushes = await parts.waiting()

    async def delete():
        parts.world.posts[author].remove(post_id)
        another_event()
        await parts.events.on_post_changed(PostChanged(post_id=post_id, author_id=author))
        await parts.work_off()

    # After the first chunk has asked, all followers lose what is still to be pushed.
    parts.world.meanwhile.append(delete)
    await parts.chunks.on_chunk_ready(pushes[0][1])
    for _, event in pushes[1:]:
        await parts.chunks.on_chunk_ready(event)

    assert await parts.feeds(readers) == [[]] * len(readers)
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_a_change_of_mode_that_is_taken_back_leaves_no_trace(parts):
    author = new_id()
    readers = await parts.crowd(author, 3 * CHUNK)
    celebrity = CelebrityChanged(account_id=author)
    parts.world.begin_change(author, PROMOTING)
    await parts.events.on_celebrity_changed(celebrity)
    promotion = await parts.waiting()
    await parts.chunks.on_chunk_ready(promotion[0][1])

    demotion_id = parts.world.begin_change(author, DEMOTING)
    another_event()
    await parts.events.on_celebrity_changed(celebrity)
    demotion = await parts.waiting()
    for _, event in demotion:
        await parts.chunks.on_chunk_ready(event)
    # What is left of the promotion might still undo something.
    assert parts.world.finished == []
    for _, event in promotion[1:]:
        await parts.chunks.on_chunk_ready(event)

    assert parts.world.finished == [(author, demotion_id)]
    for reader in readers:
        assert (await parts.homes.read(reader, 0, 10)).pulled == []
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_a_change_of_mode_is_finished_though_the_process_dies_before_it_is_told(parts):
    author = new_id()
    await parts.crowd(author, CHUNK // 2, seen=1)
    change_id = parts.world.begin_change(author, PROMOTING)
    await parts.events.on_celebrity_changed(CelebrityChanged(account_id=author))
    [(_, event)] = await parts.waiting()
    chunk = await parts.store.chunk(event.fanout_id, 0)
    await parts.store.finish_chunk(chunk, reached=CHUNK // 2)

    await parts.chunks.on_chunk_ready(event)
    await parts.chunks.on_chunk_ready(event)

    assert parts.world.finished == [(author, change_id)]


async def test_what_ended_is_forgotten_after_a_day(parts):
    author = new_id()
    await parts.crowd(author, 3 * CHUNK - 1, seen=1)
    for _ in range(2):
        post_id = parts.world.post(author)
        another_event()
        await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))
    events = [event for _, event in await parts.waiting()]
    for event in events[:2]:
        await parts.chunks.on_chunk_ready(event)

    now = datetime.now(UTC)
    assert await parts.store.purge(now + KEPT_FINISHED - timedelta(minutes=1)) == 0
    assert await parts.store.purge(now + KEPT_FINISHED + timedelta(minutes=1)) == 1
    assert await parts.store.chunk(events[0].fanout_id, 0) is None
    # An event of what was forgotten asks for nothing.
    await parts.chunks.on_chunk_ready(events[0])
    assert len(await parts.store.in_flight(after_id=0, limit=10)) == 1
    assert await parts.store.purge(now + KEPT_UNFINISHED + timedelta(minutes=1)) == 1
