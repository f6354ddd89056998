"""Watching feeds: each new post is sent once, and the last message has the reason of the end."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest
from grpc.aio import AioRpcError, UnaryStreamCall
from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd, WatchFeedRequest
from photomesh.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.chassis.cache.client import Cache, connect
from services.chassis.config import CacheSettings
from services.chassis.database.ids import EPOCH_MS
from services.chassis.rpc.open_streams import TooManyStreams
from services.domain.post_cache import CachedPost, Form, PostCache
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.feed.authors import HotAuthors
from services.feed.hydration import Hydration
from services.feed.peers import Peers
from services.feed.skeleton import Skeletons
from services.feed.watching.hub import Hub
from services.feed.watching.messages import WatchLimits, WatchMessage
from services.feed.watching.pulled_authors import PulledAuthors
from services.feed.watching.watches import Watches
from tests.callers import Refusal, as_user, channel_to
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.line import line_to

AUTHOR = 4711
LONG = 10 * PATIENCE_SECONDS
"""Longer than any test takes."""

_readers = itertools.count(3_000_000)
_sequence = itertools.count()


def post_id(*, age: float = 0.0) -> int:
    """Returns the id of a post that is `age` seconds old; ids of the same age increase."""
    milliseconds = int((time.time() - age) * 1000) - EPOCH_MS
    return milliseconds << 23 | 7 << 10 | next(_sequence) % 1024


@dataclass
class Scene:
    """The parts of feed, with a real cache, graph and post."""

    cache: Cache
    peers: Peers

    def __post_init__(self) -> None:
        self.timelines = HomeTimelines(self.cache)
        self.authors = AuthorTimelines(self.cache)
        self.posts = PostCache(self.cache)

    def watches(self, **limits) -> Watches:
        hot = HotAuthors(self.authors, self.peers)
        skeletons = Skeletons(self.timelines, hot, self.peers)
        hydration = Hydration(self.cache, self.peers, Form.PROTO)
        return Watches(
            Hub(self.timelines, PulledAuthors(self.authors, hot), skeletons, hydration),
            skeletons,
            hydration,
            WatchLimits(**{"heartbeat_seconds": LONG, "patience_seconds": LONG} | limits),
        )

    @asynccontextmanager
    async def watched(self, **limits) -> AsyncIterator[Watches]:
        watches = self.watches(**limits)
        task = asyncio.create_task(watches._hub.run(lambda: None))
        try:
            yield watches
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            hub = watches._hub
            assert (hub._feeds, hub._authors._authors, watches._open.count) == ({}, {}, 0)

    async def make(self, *post_ids: int, author: int = AUTHOR) -> None:
        await self.posts.put(
            {each: CachedPost(author, b"a post %d" % each + bytes(100)) for each in post_ids}
        )

    async def post(self, reader: int, *post_ids: int, author: int = AUTHOR) -> None:
        """Publishes posts as post and fan-out do."""
        await self.make(*post_ids, author=author)
        assert await self.timelines.push([reader], post_ids) == 1

    async def feed_of(self, *post_ids: int, pulled=(), hidden=()) -> int:
        """Returns a new reader whose feed has these posts."""
        reader = next(_readers)
        await self.make(*post_ids)
        marker = await self.timelines.begin_rebuild(reader)
        await self.timelines.finish_rebuild(
            reader,
            marker,
            sorted(post_ids, reverse=True),
            whole=True,
            version=1,
            pulled=pulled,
            hidden=hidden,
        )
        return reader


class Watch:
    """A watch, and the messages that it has received."""

    def __init__(self, watches: Watches, reader: int, after: int = 0) -> None:
        self.messages: list[WatchMessage] = []
        self._stream = watches.watch(reader, after)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self._stream) as stream:
            async for message in stream:
                self.messages.append(message)

    @property
    def posts(self) -> list[int]:
        return [message.post_id for message in self.messages if message.post]

    async def has_begun(self) -> None:
        await eventually(self._received)

    async def has(self, *post_ids: int) -> None:
        await eventually(self._posts, lambda posts: posts == list(post_ids))

    async def end(self) -> WatchMessage:
        await asyncio.wait_for(self._reading, PATIENCE_SECONDS)
        assert [bool(each.end) for each in self.messages[:-1]] == [False] * (len(self.messages) - 1)
        return self.messages[-1]

    async def _received(self) -> list[WatchMessage]:
        return self.messages

    async def _posts(self) -> list[int]:
        return self.posts

    async def leave(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def watching(watches: Watches, reader: int, after: int = 0) -> AsyncIterator[Watch]:
    watch = Watch(watches, reader, after)
    await watch.has_begun()
    try:
        yield watch
    finally:
        await watch.leave()


@pytest.fixture(scope="session")
async def scene(infrastructure) -> AsyncIterator[Scene]:
    infrastructure.up(["graph", "post"])
    async with (
        connect(CacheSettings(valkey_url=infrastructure.valkey_url)) as cache,
        channel_to(infrastructure, "graph", identity="feed") as graph,
        channel_to(infrastructure, "post", identity="feed") as post,
    ):
        yield Scene(cache, Peers(GraphInternalServiceStub(graph), PostInternalServiceStub(post)))


async def test_each_new_post_is_sent_once_and_older_ones_are_not(scene):
    known, early, late = post_id(age=60), post_id(age=30), post_id(age=1)
    reader = await scene.feed_of(known)
    async with scene.watched() as watches, watching(watches, reader) as watch:
        assert watch.messages == [WatchMessage(known)]

        await scene.post(reader, late)
        await watch.has(late)
        # Older, because its media took longer.
        await scene.post(reader, early)
        await watch.has(late, early)
        # Of an author whom the reader has just followed.
        await scene.post(reader, post_id(age=1_000))
        await scene.timelines.retract([reader], [late])
        newest = post_id()
        await scene.post(reader, late, newest)
        await watch.has(late, early, newest)

        assert [each.resume_after for each in watch.messages] == [known, late, late, newest]
        assert watch.messages[-1].post.startswith(b"a post %d" % newest)


async def test_removals_from_a_feed_send_no_older_posts(scene):
    reader = await scene.feed_of(*(post_id(age=60) for _ in range(300)))
    async with scene.watched() as watches, watching(watches, reader) as watch:
        newest = await scene.timelines.read(reader, 0, 250)
        await scene.timelines.retract([reader], newest.post_ids)
        new = post_id()
        await scene.post(reader, new)
        await watch.has(new)


async def test_missed_posts_are_sent_first(scene):
    seen, *missed = [post_id(age=age) for age in (3_000, 2_000, 1_000, 10)]
    reader = await scene.feed_of(seen, *missed)
    async with scene.watched() as watches, watching(watches, reader, after=seen) as watch:
        await watch.has(*missed)
        new = post_id()
        await scene.post(reader, new)
        await watch.has(*missed, new)

        assert [each.resume_after for each in watch.messages] == [seen, *missed, new]


async def test_a_watch_ends_if_too_much_was_missed(scene):
    reader = await scene.feed_of(*(post_id(age=60) for _ in range(101)))

    watch = Watch(scene.watches(), reader, after=1)

    assert await watch.end() == WatchMessage(1, end=WatchFeedEnd.WATCH_FEED_END_TOO_FAR_BEHIND)


async def test_posts_of_celebrities_are_sent(scene):
    star = next(_readers)
    old, other, new = post_id(age=60), post_id(age=2), post_id()
    await scene.make(old, new, author=star)
    marker = await scene.authors.begin_rebuild(star)
    await scene.authors.finish_rebuild(star, marker, [old], whole=True)
    fans = [await scene.feed_of(pulled=[star]) for _ in range(2)]
    async with (
        scene.watched() as watches,
        watching(watches, fans[0]) as first,
        watching(watches, fans[1]) as second,
    ):
        await scene.post(fans[0], other)
        await first.has(other)
        await scene.authors.push([star], [new])
        await first.has(other, new)
        await second.has(new)


async def test_hidden_and_withdrawn_posts_are_not_sent(scene):
    foe = next(_readers)
    reader = await scene.feed_of(hidden=[foe])
    async with scene.watched() as watches, watching(watches, reader) as watch:
        hidden, withdrawn, shown = post_id(), post_id(), post_id()
        await scene.posts.withdraw([withdrawn])
        await scene.post(reader, hidden, author=foe)
        await scene.post(reader, withdrawn, shown)
        await watch.has(shown)


async def test_an_evicted_feed_is_rebuilt(scene):
    """Even one that was never read before."""
    reader = next(_readers)
    async with scene.watched() as watches, watching(watches, reader) as watch:
        await scene.timelines.drop(reader)
        await eventually(lambda: scene.timelines.exists(reader))
        new = post_id()
        await scene.post(reader, new)
        await watch.has(new)


async def test_no_post_is_lost_while_the_cache_is_unavailable(scene, infrastructure):
    reader = await scene.feed_of()
    async with (
        scene.watched(heartbeat_seconds=0.1) as watches,
        watching(watches, reader) as watch,
    ):
        before, after = post_id(), post_id()
        await scene.make(after)
        await scene.post(reader, before)
        with infrastructure.stalled("valkey"):
            count = len(watch.messages)
            await eventually(watch._received, lambda now: len(now) > count + 10)
        await eventually(lambda: scene.timelines.push([reader], [after]))
        await watch.has(before, after)


async def test_a_slow_client_loses_no_posts(scene):
    reader = await scene.feed_of()
    posts = [post_id() for _ in range(40)]
    async with scene.watched(max_queued=30) as watches, watching(watches, reader) as quick:
        slow = watches.watch(reader, 0)
        await anext(slow)
        asking = asyncio.create_task(anext(slow))
        await eventually(lambda: _watchers(watches, reader), lambda count: count == 2)
        for some in (posts[:1], posts[1:20], posts[20:]):
            await scene.post(reader, *some)
            await quick.has(*posts[: posts.index(some[-1]) + 1])

        assert (await asking).post_id == posts[0]
        last = await anext(slow)
        assert last == WatchMessage(posts[0], end=WatchFeedEnd.WATCH_FEED_END_TOO_SLOW)
        assert [each async for each in slow] == []
        async with watching(watches, reader, after=last.resume_after) as resumed:
            await resumed.has(*posts[1:])


async def _watchers(watches: Watches, reader: int) -> int:
    return len(watches._hub._feeds[reader].watchers)


async def test_the_number_of_watches_is_limited_and_ended_ones_make_room(scene):
    one, other, third = [await scene.feed_of() for _ in range(3)]
    watches = scene.watches(max_open=2, max_per_reader=1)
    async with watching(watches, one), watching(watches, other):
        with pytest.raises(TooManyStreams, match="Too many watches"):
            await anext(watches.watch(third, 0))
        # The account's own limit comes first, because the user can do something about it.
        with pytest.raises(TooManyStreams, match="You have 1 watches"):
            await anext(watches.watch(one, 0))
    async with watching(watches, one):
        with pytest.raises(TooManyStreams, match="You have 1 watches"):
            await anext(watches.watch(one, 0))
        async with watching(watches, third):
            pass
    assert (watches._hub._feeds, watches._open.count) == ({}, 0)


async def test_disconnected_clients_make_room(scene, infrastructure):
    infrastructure.up(["feed"])
    reader, other = await scene.feed_of(), await scene.feed_of()

    async def begin(stub: FeedServiceStub, who: int) -> UnaryStreamCall:
        watch = stub.WatchFeed(WatchFeedRequest(), metadata=as_user(who))
        assert (await watch.read()).resume_after_post_id
        return watch

    async with (
        channel_to(infrastructure, "feed", identity="gateway") as direct,
        line_to(infrastructure.ports.grpc["feed"]) as line,
        channel_to(infrastructure, "feed", identity="gateway", port=line.port) as vanishing,
    ):
        stub = FeedServiceStub(direct)
        for _ in range(WatchLimits.max_per_reader):
            await begin(FeedServiceStub(vanishing), reader)
        with pytest.raises(AioRpcError) as refused:
            await begin(stub, reader)
        assert Refusal.of(refused.value).reason == "TOO_MANY_STREAMS"
        (await begin(stub, other)).cancel()
        line.cut()

        for _ in range(WatchLimits.max_per_reader):
            await eventually(lambda: begin(stub, reader))


async def test_idle_watches_get_heartbeats(scene):
    newest = post_id(age=60)
    reader = await scene.feed_of(newest)

    async with watching(scene.watches(heartbeat_seconds=0.1), reader) as watch:
        messages = await eventually(watch._received, lambda messages: len(messages) > 3)

    assert messages == [WatchMessage(newest)] * len(messages)


async def test_a_watch_ends_after_its_maximum_time(scene):
    newest = post_id(age=60)
    reader = await scene.feed_of(newest)

    watch = Watch(scene.watches(seconds=0.1), reader)

    assert await watch.end() == WatchMessage(newest, end=WatchFeedEnd.WATCH_FEED_END_TIME_LIMIT)
    assert watch.messages[:-1] == [WatchMessage(newest)]


async def test_a_watch_ends_before_the_process_does(scene):
    reader = await scene.feed_of()
    watches = scene.watches()
    async with watching(watches, reader) as watch:
        await eventually(lambda: _watchers(watches, reader))
        watches._hub.drain()
        assert await watch.end() == WatchMessage(1, end=WatchFeedEnd.WATCH_FEED_END_DRAINING)
    late = Watch(watches, reader)
    assert (await late.end()).end == WatchFeedEnd.WATCH_FEED_END_DRAINING
