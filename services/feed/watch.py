"""Watches of feeds: sends new posts to watchers as they arrive.

Nothing is published to watchers. One hub per process polls all watched timelines a few times a
second, with a few cheap scripts for all of them, and reads those that have changed. So a process
does no work for feeds that it does not watch, and writers need not know who watches what. Nothing
is lost while the cache is unavailable: the first poll afterwards finds every post that was not yet
sent.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd

from services.chassis import context
from services.chassis.database.ids import least_id
from services.chassis.errors import Unavailable
from services.chassis.rpc.open_streams import OpenStreams
from services.chassis.telemetry import logs
from services.domain.post_cache import CachedPost
from services.domain.timelines import AuthorTimelines, Extent, HomeTimelines, Signature
from services.feed.authors import HotAuthors
from services.feed.hydration import Hydration
from services.feed.skeleton import Skeletons

_log = logs.logger(__name__)

_POLL_SECONDS = 0.25
_LEAST_PAUSE_SECONDS = 0.05
"""Minimum pause between polls, even if the hub is late: other tasks of the process run then."""

_AUTHORS_SECONDS = 1.0
"""How often pulled authors' timelines are polled."""

_LOOK_SECONDS = (5.0, 15.0)
"""After how long an unchanged timeline is read again: its rules may have changed."""

_LATE = timedelta(minutes=10)
"""Maximum time from a post's creation to its publication, which waits for its media. An older post
that appears is not new: its author was followed, or an entry above it was removed."""

_CHUNK = 500
"""How many timelines one script polls: one or two milliseconds of the server's time."""

_AUTHORS_CHUNK = 20
"""How many authors' timelines are read, and if necessary rebuilt, at a time."""

_MOST_AUTHORS = 500
"""Maximum number of authors' timelines read per poll; later polls read the others."""

_AUTHORS_POSTS = 100
"""How many posts of each author are read: as many as HotAuthors copies."""

_HYDRATED = 200
"""Maximum number of posts hydrated in one batch."""

_WINDOW = 200
"""How many posts a watch reads when it begins."""

_MOST_MISSED = 100
"""Maximum number of missed posts that a resumed watch sends first."""

_MOST_KNOWN = 1_000
"""Maximum number of posts remembered as known to a watcher."""

_REBUILDS = 8
"""Maximum number of concurrent rebuilds, so that rebuilds for pages get their turn, too."""

_REBUILD_PAUSE_SECONDS = 1.0
"""Minimum time between two rebuilds of one timeline."""


@dataclass(frozen=True)
class WatchLimits:
    """Limits on watches."""

    most: int = 2_500
    """Maximum number of open watches in this process."""
    of_one_reader: int = 5
    """Maximum number of open watches per reader."""
    seconds: float = 1_800.0
    """How long a watch lasts, plus or minus 10 %, so that watches that began together do not all
    restart together."""
    heartbeat_seconds: float = 15.0
    """Maximum time between two messages."""
    waiting: int = 100
    """Maximum number of posts queued for a slow watcher."""
    patience_seconds: float = 30.0
    """How long the last message waits to be read before the call is canceled."""


@dataclass(frozen=True, slots=True)
class Told:
    """A message to a watcher. With neither a post nor an end: the first one, or a heartbeat."""

    resume_after: int
    """The id to resume after, once this message is received."""
    post: bytes = b""
    """A serialized photomesh.post.v1.Post."""
    post_id: int = 0
    end: WatchFeedEnd.ValueType = WatchFeedEnd.WATCH_FEED_END_UNSPECIFIED


class _Watcher:
    """One watch: the posts it already knows, and the queue of messages to send."""

    def __init__(self, known: Iterable[int], *, floor: int, resume_after: int) -> None:
        self.floor = floor
        """Posts with ids up to this one are not sent."""
        self.known = {post_id for post_id in known if post_id > floor}
        """Ids above the floor that need not be sent, or have been."""
        self.resume_after = resume_after
        """From the last message taken from the queue."""
        self.ended = False
        self._newest = resume_after
        self._waiting: asyncio.Queue[Told] = asyncio.Queue()
        self._call: asyncio.Task[Any] | None = None
        self._cut: asyncio.TimerHandle | None = None

    async def next(self) -> Told:
        """Waits for the next message."""
        told = await self._waiting.get()
        self.resume_after = told.resume_after
        return told

    @contextmanager
    def within_call(self, *, until: float) -> Iterator[None]:
        """Cancels the current call at `until`, or sooner after the watch ends as too slow."""
        self._call = asyncio.current_task()
        self._cut_at(until)
        try:
            yield
        finally:
            if self._cut:
                self._cut.cancel()

    def tell(self, posts: Sequence[tuple[int, bytes]], limits: WatchLimits) -> None:
        """Queues posts.

        If too many are queued, ends the watch with a position from which it can resume without
        loss.
        """
        if self.ended:
            return
        for post_id, post in posts:
            self._newest = max(self._newest, post_id)
            self._waiting.put_nowait(Told(self._newest, post, post_id))
        if self._waiting.qsize() > limits.waiting:
            unread = [self._waiting.get_nowait().post_id for _ in range(self._waiting.qsize())]
            self._newest = min(self.resume_after, min(unread) - 1)
            self.end(WatchFeedEnd.WATCH_FEED_END_TOO_SLOW)
            self._cut_at(asyncio.get_running_loop().time() + limits.patience_seconds)

    def end(self, why: WatchFeedEnd.ValueType) -> None:
        """Queues the last message."""
        if not self.ended:
            self.ended = True
            self._waiting.put_nowait(Told(self._newest, end=why))

    def settle(self, floor: int) -> None:
        """Forgets posts that are too old to appear again."""
        self.floor = max(self.floor, floor)
        if len(self.known) > _MOST_KNOWN:
            self.floor = max(self.floor, sorted(self.known)[-_MOST_KNOWN])
        self.known = {post_id for post_id in self.known if post_id > self.floor}

    def _cut_at(self, when: float) -> None:
        if self._cut:
            self._cut.cancel()
        if self._call:
            self._cut = asyncio.get_running_loop().call_at(when, self._call.cancel)


@dataclass
class _Feed:
    """A watched home feed."""

    watchers: list[_Watcher] = field(default_factory=list)
    signature: Signature | None = None
    """The timeline's signature at the last read, if all posts found then were sent; otherwise
    None."""
    pulled: frozenset[int] = frozenset()
    """Authors whose timelines belong to the feed."""
    look_at: float = 0.0
    """When the timeline is read even if its signature is unchanged."""
    rebuild_at: float = 0.0
    """The earliest time of the next rebuild."""


@dataclass(frozen=True, slots=True)
class _News:
    """Posts that a watcher has not received yet."""

    feed: _Feed
    watcher: _Watcher
    post_ids: Sequence[int]
    """Oldest first."""
    hidden: frozenset[int]
    """Authors whose posts must not be shown."""


@dataclass
class _Author:
    """An author whose timeline is pulled into watched feeds."""

    readers: set[int] = field(default_factory=set)
    signature: Signature | None = None
    """The timeline's signature at the last read; None: not read yet."""
    recent: frozenset[int] = frozenset()
    """The author's latest posts."""


class Watches:
    """All watched feeds of this process."""

    def __init__(
        self,
        timelines: HomeTimelines,
        author_timelines: AuthorTimelines,
        authors: HotAuthors,
        skeletons: Skeletons,
        hydration: Hydration,
        limits: WatchLimits = WatchLimits(),
    ) -> None:
        self._timelines = timelines
        self._author_timelines = author_timelines
        self._hot_authors = authors
        self._skeletons = skeletons
        self._hydration = hydration
        self._limits = limits
        self._open = OpenStreams(
            "watches of feeds", most=limits.most, of_one_user=limits.of_one_reader
        )
        self._feeds: dict[int, _Feed] = {}
        self._authors: dict[int, _Author] = {}
        self._authors_at = 0.0
        self._authors_floor = _oldest_new()
        self._somebody = asyncio.Event()
        self._draining = False
        self._rebuilds: dict[int, asyncio.Task[None]] = {}
        self._may_rebuild = asyncio.Semaphore(_REBUILDS)

    # -- The watcher's side ------------------------------------------------------------------

    async def watch(self, reader_id: int, after: int) -> AsyncGenerator[Told, None]:
        """Yields the posts in a reader's feed that are newer than `after`, or arrive from now on.

        The first message only holds the position to resume after; the last one has `end` set.

        Raises:
            TooManyStreams: the reader, or this process, has too many open watches.
            Unavailable: dependencies are unavailable, so new posts cannot be found.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + self._limits.seconds * random.uniform(0.9, 1.1)
        with self._open.opened_by(reader_id):
            floor = _oldest_new()
            # Also rebuilds the timeline if there is none.
            newest = await self._skeletons.read(reader_id, 0, _WINDOW)
            if newest.more:
                floor = max(floor, newest.post_ids[-1])
            known = newest.post_ids
            # Not 0, even for an empty feed: a watch that resumes after 0 skips posts made until
            # then.
            begin = after or max([*known[:1], 1])
            told = Told(begin)
            yield told
            missed = sorted(post_id for post_id in known if post_id > begin)
            if len(missed) > _MOST_MISSED:
                yield Told(begin, end=WatchFeedEnd.WATCH_FEED_END_TOO_FAR_BEHIND)
                return
            if newest.more and missed and missed[0] == known[-1]:
                raise Unavailable("What is between")
            hydrated = await self._hydration.hydrate(missed)
            if not hydrated.all_known:
                raise Unavailable("Post")
            for post_id, post in hydrated.posts:
                if post.author_id not in newest.hidden:
                    begin = max(begin, post_id)
                    yield Told(begin, post.post, post_id)
            watcher = _Watcher(known, floor=floor, resume_after=begin)
            with (
                self._registered(reader_id, watcher),
                watcher.within_call(until=end + self._limits.patience_seconds),
            ):
                while not told.end:
                    told = await self._next(watcher, end)
                    yield told

    async def _next(self, watcher: _Watcher, end: float) -> Told:
        """Waits for the next message; sends a heartbeat, or the end, when it is due."""
        clock = asyncio.get_running_loop().time
        beat = clock() + self._limits.heartbeat_seconds
        try:
            async with asyncio.timeout_at(min(beat, end)):
                return await watcher.next()
        except TimeoutError:
            if clock() < end:
                return Told(watcher.resume_after)
        watcher.end(WatchFeedEnd.WATCH_FEED_END_TIME_LIMIT)
        return await watcher.next()

    @contextmanager
    def _registered(self, reader_id: int, watcher: _Watcher) -> Iterator[None]:
        """Registers a watcher with the hub."""
        feed = self._feeds.setdefault(reader_id, _Feed())
        feed.watchers.append(watcher)
        # Read the timeline again, for posts that arrived after `watch` read it.
        feed.signature = None
        self._somebody.set()
        if self._draining:
            watcher.end(WatchFeedEnd.WATCH_FEED_END_DRAINING)
        try:
            yield
        finally:
            feed.watchers.remove(watcher)
            if not feed.watchers:
                self._pull(reader_id, feed, frozenset())
                del self._feeds[reader_id]
            if not self._feeds:
                self._somebody.clear()

    def drain(self) -> None:
        """Ends every watch with its last message, because the process is about to stop."""
        self._draining = True
        for feed in self._feeds.values():
            for watcher in feed.watchers:
                watcher.end(WatchFeedEnd.WATCH_FEED_END_DRAINING)

    # -- The hub -----------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Polls watched feeds and sends new posts to watchers, until canceled."""
        ready()
        clock = asyncio.get_running_loop().time
        is_away = False
        try:
            while True:
                await self._somebody.wait()
                context.enter(context.CallContext(trace_id=context.trace_id_of(None)))
                began = clock()
                try:
                    await self._poll(began)
                    is_away = False
                except Unavailable as error:
                    if not is_away:
                        _log.warning("watch.blocked", error=str(error))
                    is_away = True
                await asyncio.sleep(max(began + _POLL_SECONDS - clock(), _LEAST_PAUSE_SECONDS))
        finally:
            for task in self._rebuilds.values():
                task.cancel()

    async def _poll(self, now: float) -> None:
        if now >= self._authors_at:
            self._authors_at = now + _AUTHORS_SECONDS
            await self._look_at_authors()
        changed: dict[int, Signature | None] = {}
        for chunk in _chunks(list(self._feeds), _CHUNK):
            for reader_id, signature in (await self._timelines.signatures(chunk)).items():
                feed = self._feeds.get(reader_id)
                if feed and (
                    signature is None or signature != feed.signature or now >= feed.look_at
                ):
                    changed[reader_id] = signature
        for chunk in _chunks(list(changed), _CHUNK):
            await self._look({reader_id: changed[reader_id] for reader_id in chunk}, now)

    async def _look(self, changed: Mapping[int, Signature | None], now: float) -> None:
        """Reads changed timelines and sends watchers the posts they do not know yet."""
        feeds = {each: feed for each in changed if (feed := self._feeds.get(each))}
        if not feeds:
            return
        settled = _oldest_new()
        floor = min(watcher.floor for feed in feeds.values() for watcher in feed.watchers)
        slices = await self._timelines.newer(list(feeds), floor)
        news: list[_News] = []
        for reader_id, home in slices.items():
            feed = feeds[reader_id]
            if feed is not self._feeds.get(reader_id):
                continue
            feed.signature = changed[reader_id]
            feed.look_at = now + random.uniform(*_LOOK_SECONDS)
            if home.extent in (Extent.ABSENT, Extent.REBUILDING):
                feed.signature = None
                if home.extent is Extent.ABSENT:
                    self._rebuild(reader_id, feed, now)
                continue
            self._pull(reader_id, feed, frozenset(home.pulled))
            found = set(home.post_ids).union(
                *(self._authors[author_id].recent for author_id in feed.pulled)
            )
            for watcher in feed.watchers:
                fresh = sorted(
                    post_id for post_id in found - watcher.known if post_id > watcher.floor
                )
                if fresh:
                    news.append(_News(feed, watcher, fresh, home.hidden))
                else:
                    watcher.settle(settled)
        await self._tell(news, settled)

    async def _tell(self, news: Sequence[_News], settled: int) -> None:
        posts, unsure = await self._posts(sorted({each for its in news for each in its.post_ids}))
        for its in news:
            sure = [post_id for post_id in its.post_ids if post_id not in unsure]
            its.watcher.known.update(sure)
            shown = [
                (post_id, post.post)
                for post_id in sure
                if (post := posts.get(post_id)) and post.author_id not in its.hidden
            ]
            its.watcher.tell(shown, self._limits)
            if len(sure) == len(its.post_ids):
                its.watcher.settle(settled)
            else:
                # Try again at the next poll.
                its.feed.signature = None

    async def _posts(self, post_ids: Sequence[int]) -> tuple[dict[int, CachedPost], set[int]]:
        """Returns the posts that may be shown, and the ids for which that is unknown."""
        posts: dict[int, CachedPost] = {}
        unsure: set[int] = set()
        for chunk in _chunks(post_ids, _HYDRATED):
            try:
                hydrated = await self._hydration.hydrate(chunk)
            except Unavailable:
                unsure.update(chunk)
                continue
            posts.update(hydrated.posts)
            if not hydrated.all_known:
                unsure.update(each for each in chunk if each not in posts)
        return posts, unsure

    async def _look_at_authors(self) -> None:
        """Polls pulled authors, and marks the feeds to be read into which new posts are pulled."""
        settled = _oldest_new()
        changed: dict[int, Signature | None] = {}
        for chunk in _chunks(list(self._authors), _CHUNK):
            signatures = await self._author_timelines.signatures(chunk)
            changed |= {
                author_id: signature
                for author_id, signature in signatures.items()
                if (author := self._authors.get(author_id))
                and (signature is None or signature != author.signature)
            }
        for chunk in _chunks(list(changed)[:_MOST_AUTHORS], _AUTHORS_CHUNK):
            self._hot_authors.outdate(chunk)
            slices, are_current = await self._hot_authors.slices(chunk, 0, _AUTHORS_POSTS)
            if not are_current:
                raise Unavailable("What celebrities post")
            for author_id, part in slices.items():
                if author := self._authors.get(author_id):
                    author.signature = changed[author_id]
                    recent = frozenset(
                        post_id for post_id in part.post_ids if post_id > self._authors_floor
                    )
                    if recent - author.recent:
                        for reader_id in author.readers:
                            self._feeds[reader_id].signature = None
                    author.recent = recent
        if len(changed) <= _MOST_AUTHORS:
            self._authors_floor = settled

    def _pull(self, reader_id: int, feed: _Feed, pulled: frozenset[int]) -> None:
        """Records which authors' timelines belong to a feed."""
        for author_id in feed.pulled - pulled:
            readers = self._authors[author_id].readers
            readers.remove(reader_id)
            if not readers:
                del self._authors[author_id]
        for author_id in pulled - feed.pulled:
            self._authors.setdefault(author_id, _Author()).readers.add(reader_id)
        feed.pulled = pulled

    def _rebuild(self, reader_id: int, feed: _Feed, now: float) -> None:
        """Rebuilds a timeline that no longer exists, in the background."""
        if reader_id not in self._rebuilds and now >= feed.rebuild_at:
            feed.rebuild_at = now + _REBUILD_PAUSE_SECONDS
            task = asyncio.create_task(self._rebuild_in_turn(reader_id))
            self._rebuilds[reader_id] = task
            task.add_done_callback(lambda _: self._rebuilds.pop(reader_id))

    async def _rebuild_in_turn(self, reader_id: int) -> None:
        async with self._may_rebuild:
            try:
                await self._skeletons.rebuild(reader_id)
            except Unavailable as error:
                _log.warning("rebuild.failed", error=str(error))


def _oldest_new() -> int:
    """Returns the lowest id that a post published now may have."""
    return least_id(datetime.now(UTC) - _LATE)


def _chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
