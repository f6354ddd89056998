"""Watching media: every watcher hears the end, nobody else's, and costs nothing afterwards."""

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
    """Gives media that wait for their file."""
    return lambda: store.add(new_user(), declared(b"x"))


@asynccontextmanager
async def running(watchers):
    task = asyncio.create_task(watchers.run(lambda: None))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def heard(watchers, media, *, seconds=LONG, heartbeat=LONG, into=None):
    """Returns all that a watcher is told; `into` has it as it comes."""
    told = [] if into is None else into
    async for seen, last in watchers.watch(
        media.media_id, media.owner_id, seconds=seconds, heartbeat=heartbeat
    ):
        told.append((seen and seen.state, last))
    return told


async def test_a_thousand_watchers_hear_of_each_step_and_the_end(store, add):
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
    crowd = [[] for _ in range(1000)]

    async def all_have(count):
        return all(len(told) == count for told in crowd)

    began = time.monotonic()
    async with running(watchers):
        watching = [asyncio.create_task(heard(watchers, media, into=told)) for told in crowd]
        beside = asyncio.create_task(heard(watchers, other, seconds=0.1))
        await eventually(lambda: all_have(1))
        await store.mark_uploaded(media, "etag", size_bytes=1, sha256=None)
        await eventually(lambda: all_have(2))
        await store.delete(media)
        await asyncio.gather(*watching)

        assert {tuple(told) for told in crowd} == {
            ((State.PENDING, False), (State.UPLOADED, False), (State.DELETED, True))
        }
        assert await beside == [(State.PENDING, False), (State.PENDING, True)]
    # As many as one watcher would cost.
    assert queries <= 1 + (time.monotonic() - began) / _POLL_SECONDS
    assert watchers._watching == {}


async def test_each_step_is_told(store, add):
    watchers, media, told = Watchers(store), await add(), []

    async def watch():
        async for seen, _ in watchers.watch(
            media.media_id, media.owner_id, seconds=LONG, heartbeat=LONG
        ):
            told.append((seen.state, seen.steps_done))

    async def has(count):
        return len(told) == count

    async with running(watchers):
        watching = asyncio.create_task(watch())
        await eventually(lambda: has(1))
        await store.mark_uploaded(media, "etag", size_bytes=1, sha256=None)
        await store.begin(media.media_id)
        await eventually(lambda: has(2))
        await store.add_steps(media, ["picture"])
        await eventually(lambda: has(3))
        # Another worker, which has begun anew, and knows a step that this one does not.
        await store.add_steps(media, ["w600", "w8192"])
        await eventually(lambda: has(4))
        await store.mark_failed(media, Failure.TOO_EXPENSIVE)
        await watching

    assert told == [
        (State.PENDING, ()),
        (State.PROCESSING, ()),
        (State.PROCESSING, ("picture",)),
        (State.PROCESSING, ("picture", "w600")),
        (State.FAILED, ("picture", "w600")),
    ]


async def test_what_is_at_its_end_is_told_at_once(store, add):
    media = await add()
    await store.delete(media)

    assert await heard(Watchers(store), media) == [(State.DELETED, True)]


async def test_an_upload_that_is_given_up_is_watched_no_longer(store, add):
    watchers, media = Watchers(store), await add()
    told = []

    async def first():
        return told

    async with running(watchers):
        watching = asyncio.create_task(heard(watchers, media, into=told))
        await eventually(first)
        await store.abort(media)
        assert await watching == [(State.PENDING, False), (State.PENDING, True)]


async def test_a_watcher_hears_that_nothing_happens(store, add):
    watchers, media = Watchers(store), await add()

    async with aclosing(
        watchers.watch(media.media_id, media.owner_id, seconds=LONG, heartbeat=0.1)
    ) as messages:
        assert await anext(messages) == (media, False)
        assert await anext(messages) == (None, False)
        assert await anext(messages) == (None, False)


async def test_a_watch_ends_in_time(store, add):
    told = await heard(Watchers(store), await add(), seconds=0.1)

    assert told == [(State.PENDING, False), (State.PENDING, True)]


async def test_there_is_room_for_so_many_and_those_who_leave_make_room(store, add):
    watchers, media, other = Watchers(store, max_open=1), await add(), await add()

    async with aclosing(
        watchers.watch(media.media_id, media.owner_id, seconds=LONG, heartbeat=LONG)
    ) as first:
        await anext(first)
        with pytest.raises(TooManyStreams, match="Too many watches"):
            await heard(watchers, other)
    assert await heard(watchers, other, seconds=0.1)


async def test_an_account_has_room_for_so_many_and_others_have_room_beside_it(store, add):
    watchers = Watchers(store, max_open=2, max_per_account=1)
    media, other = await add(), await add()

    async with aclosing(
        watchers.watch(media.media_id, media.owner_id, seconds=LONG, heartbeat=LONG)
    ) as first:
        await anext(first)
        with pytest.raises(TooManyStreams, match="You have 1 watches"):
            await heard(watchers, media)
        assert await heard(watchers, other, seconds=0.1)
    assert await heard(watchers, media, seconds=0.1)


async def test_the_owner_watches_and_nobody_else(uploader, infrastructure):
    infrastructure.up(["media-worker"])
    opened = await uploader.create(photo(300, 200))
    media_id = opened.media.media_id

    assert await refusal(uploader.somebody_else().watch(media_id).read()) == "MEDIA_UNKNOWN"

    told = []
    async for message in uploader.watch(media_id):
        if not message.HasField("media"):
            continue
        if not told:
            await uploader.delete(media_id)
        told.append((message.media.state, message.last))
    assert told == [(pb.MEDIA_STATE_PENDING, False), (pb.MEDIA_STATE_DELETED, True)]
