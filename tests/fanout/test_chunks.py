"""Large audiences are divided into chunks, which can be shared, resumed and retried."""

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
    """A cache that becomes unavailable after some batches."""

    def __init__(self, cache, batches: int) -> None:
        super().__init__(cache)
        self.left = batches

    async def push(self, owner_ids, post_ids, *, complete_from=0):
        self.left -= 1
        if self.left < 0:
            raise Unavailable("The cache")
        return await super().push(owner_ids, post_ids, complete_from=complete_from)


async def test_a_large_audience_is_divided_into_chunks_with_few_keys(parts):
    author = await parts.reader()
    readers = await parts.crowd(author, 20 * CHUNK - 1)
    post_id = parts.world.post(author)
    created = PostCreated(post_id=post_id, author_id=author)

    await parts.events.on_post_created(created)
    # The event is delivered again.
    await parts.events.on_post_created(created)

    assert await parts.feed(author) == [post_id]
    [in_progress] = await parts.store.in_flight(after_id=0, limit=10)
    # Only the first chunk is handled at once.
    assert await parts.feeds(readers) == [[post_id]] + [[]] * (len(readers) - 1)
    assert (in_progress.chunks, in_progress.chunks_done) == (19, 0)
    assert (in_progress.followers, in_progress.reached) == (19 * CHUNK - 1, 0)
    events = await parts.waiting()
    # At most this many events of one fan-out delay those of others.
    assert [event.chunk for _, event in events] == list(range(16))
    assert len({key for key, _ in events}) == 4
    for _, event in events[:2]:
        await parts.chunks.on_chunk_ready(event)
    [in_progress] = await parts.store.in_flight(after_id=0, limit=10)
    assert (in_progress.chunks_done, in_progress.reached) == (2, 2 * CHUNK)

    # Each may be delivered again, concurrently.
    again = [*events, *events]
    await asyncio.gather(*(parts.chunks.on_chunk_ready(event) for _, event in again))
    assert await parts.handle_chunks() == 3

    assert await parts.feeds(readers) == [[post_id]] * len(readers)
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_a_chunk_resumes_where_it_stopped(parts, cache):
    author = new_id()
    readers = await parts.crowd(author, 7 * CHUNK)
    post_id = parts.world.post(author)
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))
    _, event = (await parts.waiting())[0]
    # One chunk with all followers, which is streamed in batches of 40.
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


async def test_a_post_deleted_during_its_fan_out_stays_in_no_timeline(parts):
    author = new_id()
    readers = await parts.crowd(author, 4 * CHUNK)
    post_id = parts.world.post(author)
    await parts.events.on_post_created(PostCreated(post_id=post_id, author_id=author))
    pushes = await parts.waiting()

    async def delete():
        parts.world.posts[author].remove(post_id)
        another_event()
        await parts.events.on_post_changed(PostChanged(post_id=post_id, author_id=author))
        await parts.handle_chunks()

    # The deletion runs after the first chunk has read the post and before it pushes.
    parts.world.meanwhile.append(delete)
    await parts.chunks.on_chunk_ready(pushes[0][1])
    for _, event in pushes[1:]:
        await parts.chunks.on_chunk_ready(event)

    assert await parts.feeds(readers) == [[]] * len(readers)
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_a_reverted_change_of_mode_leaves_no_trace(parts):
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
    # The remaining chunks of the promotion could still undo the demotion.
    assert parts.world.finished == []
    for _, event in promotion[1:]:
        await parts.chunks.on_chunk_ready(event)

    assert parts.world.finished == [(author, demotion_id)]
    for reader in readers:
        assert (await parts.homes.read(reader, 0, 10)).pulled == []
    assert await parts.store.in_flight(after_id=0, limit=10) == []


async def test_a_change_of_mode_is_finished_after_a_crash_before_its_report(parts):
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


async def test_finished_fan_outs_are_deleted_after_a_day(parts):
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
    # An event of a deleted fan-out is ignored.
    await parts.chunks.on_chunk_ready(events[0])
    assert len(await parts.store.in_flight(after_id=0, limit=10)) == 1
    assert await parts.store.purge(now + KEPT_UNFINISHED + timedelta(minutes=1)) == 1
