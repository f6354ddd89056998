"""Watching media: every watcher gets the final state of its item, and leaves nothing behind."""

import asyncio
import time
from contextlib import aclosing, asynccontextmanager

import pytest
from photomesh.media.v1 import media_service_pb2 as pb

from services.chassis.rpc.open_streams import TooManyStreams
from services.media.pipeline.outputs import Failure
from services.media.store import State
from services.media.watchers import _POLL_SECONDS, Watchers
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.media.conftest import declared, new_user, refusal
from tests.pictures import photo

LONG = 10 * PATIENCE_SECONDS
"""Longer than any test takes."""


@pytest.fixture
def add(store):
    """Returns a function that makes media without a file."""
    return lambda: store.add(new_user(), declared(b"x"))


@asynccontextmanager
async def running(watchers):
    task = asyncio.create_task(watchers.run(lambda: None))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def collect(watchers, media, *, seconds=LONG, heartbeat=LONG, into=None):
    """Returns all messages of a watch. They are appended to `into` as they arrive."""
    received = [] if into is None else into
    async for seen, last in watchers.watch(
        media.media_id, media.owner_id, seconds=seconds, heartbeat=heartbeat
    ):
        received.append((seen and seen.state, last))
    return received


async def test_a_thousand_watchers_get_each_state_and_the_end(store, add):
    watchers = Watchers(store, max_per_account=1000)
    media, other = await add(), await add()
    queries = 0

    class Counting:
        media = store.media

        async def many(self, media_ids):
            nonlocal queries
            queries += 1
            return await store.many(media_ids)

    watchers._store = Counting()
    watches = [[] for _ in range(1000)]

    async def all_have(count):
        return all(len(each) == count for each in watches)

    began = time.monotonic()
    async with running(watchers):
        watching = [asyncio.create_task(collect(watchers, media, into=each)) for each in watches]
        unchanged = asyncio.create_task(collect(watchers, other, seconds=0.1))
        await eventually(lambda: all_have(1))
        await store.mark_uploaded(media, "etag", size_bytes=1, sha256=None)
        await eventually(lambda: all_have(2))
        await store.delete(media)
        await asyncio.gather(*watching)

        assert {tuple(each) for each in watches} == {
            ((State.PENDING, False), (State.UPLOADED, False), (State.DELETED, True))
        }
        assert await unchanged == [(State.PENDING, False), (State.PENDING, True)]
    # As many queries as for one watcher.
    assert queries <= 1 + (time.monotonic() - began) / _POLL_SECONDS
    assert watchers._watching == {}


async def test_each_step_is_sent(store, add):
    watchers, media, received = Watchers(store), await add(), []

    async def watch():
        async for seen, _ in watchers.watch(
            media.media_id, media.owner_id, seconds=LONG, heartbeat=LONG
        ):
            received.append((seen.state, seen.steps_done))

    async def has(count):
        return len(received) == count

    async with running(watchers):
        watching = asyncio.create_task(watch())
        await eventually(lambda: has(1))
        await store.mark_uploaded(media, "etag", size_bytes=1, sha256=None)
        await store.begin(media.media_id)
        await eventually(lambda: has(2))
        await store.add_steps(media, ["picture"])
        await eventually(lambda: has(3))
        # From another worker, which restarted and has a step that this process does not know.
        await store.add_steps(media, ["w600", "w8192"])
        await eventually(lambda: has(4))
        await store.mark_failed(media, Failure.TOO_EXPENSIVE)
        await watching

    assert received == [
        (State.PENDING, ()),
        (State.PROCESSING, ()),
        (State.PROCESSING, ("picture",)),
        (State.PROCESSING, ("picture", "w600")),
        (State.FAILED, ("picture", "w600")),
    ]


async def test_a_final_state_is_sent_at_once(store, add):
    media = await add()
    await store.delete(media)

    assert await collect(Watchers(store), media) == [(State.DELETED, True)]


async def test_aborting_an_upload_ends_its_watch(store, add):
    watchers, media = Watchers(store), await add()
    received = []

    async def first():
        return received

    async with running(watchers):
        watching = asyncio.create_task(collect(watchers, media, into=received))
        await eventually(first)
        await store.abort(media)
        assert await watching == [(State.PENDING, False), (State.PENDING, True)]


async def test_idle_watches_get_heartbeats(store, add):
    watchers, media = Watchers(store), await add()

    async with aclosing(
        watchers.watch(media.media_id, media.owner_id, seconds=LONG, heartbeat=0.1)
    ) as messages:
        assert await anext(messages) == (media, False)
        assert await anext(messages) == (None, False)
        assert await anext(messages) == (None, False)


async def test_a_watch_ends_after_its_maximum_time(store, add):
    received = await collect(Watchers(store), await add(), seconds=0.1)

    assert received == [(State.PENDING, False), (State.PENDING, True)]


async def test_the_number_of_watches_is_limited_and_ended_ones_make_room(store, add):
    watchers, media, other = Watchers(store, max_open=1), await add(), await add()

    async with aclosing(
        watchers.watch(media.media_id, media.owner_id, seconds=LONG, heartbeat=LONG)
    ) as first:
        await anext(first)
        with pytest.raises(TooManyStreams, match="Too many watches"):
            await collect(watchers, other)
    assert await collect(watchers, other, seconds=0.1)


async def test_the_number_of_watches_per_account_is_limited(store, add):
    watchers = Watchers(store, max_open=2, max_per_account=1)
    media, other = await add(), await add()

    async with aclosing(
        watchers.watch(media.media_id, media.owner_id, seconds=LONG, heartbeat=LONG)
    ) as first:
        await anext(first)
        with pytest.raises(TooManyStreams, match="You have 1 watches"):
            await collect(watchers, media)
        assert await collect(watchers, other, seconds=0.1)
    assert await collect(watchers, media, seconds=0.1)


async def test_only_the_owner_can_watch(uploader, infrastructure):
    infrastructure.up(["media-worker"])
    opened = await uploader.create(photo(300, 200))
    media_id = opened.media.media_id

    assert await refusal(uploader.another_user().watch(media_id).read()) == "MEDIA_UNKNOWN"

    received = []
    async for message in uploader.watch(media_id):
        if not message.HasField("media"):
            continue
        if not received:
            await uploader.delete(media_id)
        received.append((message.media.state, message.last))
    assert received == [(pb.MEDIA_STATE_PENDING, False), (pb.MEDIA_STATE_DELETED, True)]
