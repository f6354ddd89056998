"""Feeds that are watched: what is new in them is told while it happens.

Nothing is published to watchers. One hub in each process looks at all watched timelines a few
times a second, by a few cheap scripts for all of them, and reads those that have changed. So a
watcher costs nothing where it does not watch, nobody needs to know who watches what, and nothing
is lost while the cache is away: whatever is found afterwards and was not told before is told then.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd

from services.common import context, logs
from services.common.errors import Unavailable
from services.common.ids import least_id
from services.common.open_streams import OpenStreams
from services.common.post_cache import CachedPost
from services.common.timelines import AuthorTimelines, Extent, HomeTimelines, Signature
from services.feed.authors import HotAuthors
from services.feed.hydration import Hydration
from services.feed.skeleton import Skeletons

_log = logs.logger(__name__)

_POLL_SECONDS = 0.25
_LEAST_PAUSE_SECONDS = 0.05
"""How long the hub leaves the process to others even when it is late."""

_AUTHORS_SECONDS = 1.0
"""How often pulled authors are looked at."""

_LOOK_SECONDS = (5.0, 15.0)
"""After how long a timeline is read though it seems the same: rules may have changed beside it."""

_LATE = timedelta(minutes=10)
"""How much older than its publication a post may be, because its media took so long. What is older
still was not posted now: it came because its author was followed, or an entry above it left."""

_CHUNK = 500
"""How many timelines one script looks at: one or two milliseconds of the server's time."""

_AUTHORS_CHUNK = 20
"""How many authors' timelines are read, and perhaps rebuilt, at a time."""

_MOST_AUTHORS = 500
"""How many authors' timelines are read at once, by and by; the others have their turn later."""

_AUTHORS_POSTS = 100
"""How many posts of an author are looked at: as many as HotAuthors copies."""

_HYDRATED = 200
"""How many posts are hydrated in one batch."""

_WINDOW = 200
"""How many posts a watch looks at when it begins."""

_MOST_MISSED = 100
"""How many posts a watch that is resumed tells before those that are new."""

_MOST_KNOWN = 1_000
"""How many posts are remembered of which a watcher need not be told."""

_REBUILDS = 8
"""How many rebuilds are asked for at a time: pages' readers have their turns in between."""

_REBUILD_PAUSE_SECONDS = 1.0
"""After how long a rebuild that failed is tried again."""


@dataclass(frozen=True)
class WatchLimits:
    """How much watchers may cost."""

    most: int = 2_500
    """How many watch at a time, in this process."""
    of_one_reader: int = 5
    """How many of them for one reader."""
    seconds: float = 1_800.0
    """How long a watch lasts, give or take a tenth, so that those that began together do not all
    begin anew together."""
    heartbeat_seconds: float = 15.0
    """How long nothing may be told."""
    waiting: int = 100
    """How many posts wait for a watcher that is slow to read."""
    patience_seconds: float = 30.0
    """How long the last message waits to be read; then the call is cut."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a watcher is told; neither a post nor the end: nothing happens."""

    resume_after: int
    """With which id to go on after this."""
    post: bytes = b""
    """A serialised photomesh.post.v1.Post."""
    post_id: int = 0
    end: WatchFeedEnd.ValueType = WatchFeedEnd.WATCH_FEED_END_UNSPECIFIED


class _Watcher:
    """One watch: what it need not be told, and what waits for it to be read."""

    def __init__(self, known: Iterable[int], *, floor: int, resume_after: int) -> None:
        self.floor = floor
        """Posts with ids up to this one are none of its business."""
        self.known = {post_id for post_id in known if post_id > floor}
        """Those above it that it need not be told, or was."""
        self.resume_after = resume_after
        """Of the last message that was taken."""
        self.ended = False
        self._newest = resume_after
        self._waiting: asyncio.Queue[Told] = asyncio.Queue()
        self._call: asyncio.Task[Any] | None = None
        self._cut: asyncio.TimerHandle | None = None

    async def next(self) -> Told:
        """Waits for what there is to tell."""
        told = await self._waiting.get()
        self.resume_after = told.resume_after
        return told

    @contextmanager
    def within_call(self, *, until: float) -> Iterator[None]:
        """Cuts the call at hand when it has not ended by then, or long after it should have."""
        self._call = asyncio.current_task()
        self._cut_at(until)
        try:
            yield
        finally:
            if self._cut:
                self._cut.cancel()

    def tell(self, posts: Sequence[tuple[int, bytes]], limits: WatchLimits) -> None:
        """Lets posts wait to be read.

        When too many do, the watch ends, and is to go on where none of them is lost.
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
        """Lets the last message wait behind the others."""
        if not self.ended:
            self.ended = True
            self._waiting.put_nowait(Told(self._newest, end=why))

    def settle(self, floor: int) -> None:
        """Forgets what is too old to come again."""
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
    """The home feed of somebody who watches it."""

    watchers: list[_Watcher] = field(default_factory=list)
    signature: Signature | None = None
    """The timeline's when it was last read, and all that was found was told; None: it was not."""
    pulled: frozenset[int] = frozenset()
    """Authors whose timelines belong into the feed."""
    look_at: float = 0.0
    """When it is read though it seems the same."""
    rebuild_at: float = 0.0
    """When it may be rebuilt again."""


@dataclass(frozen=True, slots=True)
class _News:
    """What a watcher was not told yet."""

    feed: _Feed
    watcher: _Watcher
    post_ids: Sequence[int]
    """Oldest first."""
    hidden: frozenset[int]
    """Authors whose posts must not be shown."""


@dataclass
class _Author:
    """An author whose timeline is pulled into feeds that are watched."""

    readers: set[int] = field(default_factory=set)
    signature: Signature | None = None
    """The timeline's when it was last read; None: it was not."""
    recent: frozenset[int] = frozenset()
    """The latest posts."""


class Watches:
    """All feeds that are watched in this process."""

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
            "watches of feeds", most=limits.most, of_one_account=limits.of_one_reader
        )
        self._feeds: dict[int, _Feed] = {}
        self._authors: dict[int, _Author] = {}
        self._authors_at = 0.0
        self._authors_floor = _oldest_new()
        self._somebody = asyncio.Event()
        self._draining = False
        self._rebuilds: dict[int, asyncio.Task[None]] = {}
        self._may_rebuild = asyncio.Semaphore(_REBUILDS)

    # -- A watcher's side --------------------------------------------------------------------

    async def watch(self, reader_id: int, after: int) -> AsyncGenerator[Told, None]:
        """Tells what is new in a reader's feed: what is newer than `after`, or comes from now on.

        The first message tells nothing but where to begin, the last one has `end` set.

        Raises:
            TooManyStreams: the reader, or this process, has no room for one more.
            Unavailable: it cannot be told what is new.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + self._limits.seconds * random.uniform(0.9, 1.1)
        with self._open.opened_by(reader_id):
            floor = _oldest_new()
            # Also builds the timeline where there is none.
            newest = await self._skeletons.read(reader_id, 0, _WINDOW)
            if newest.more:
                floor = max(floor, newest.post_ids[-1])
            known = newest.post_ids
            # Even an empty feed must be resumed where it was, and not at that time's present.
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
        """Waits for something to tell, until there must be something."""
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
        """Lets the hub tell a watcher what comes."""
        feed = self._feeds.setdefault(reader_id, _Feed())
        feed.watchers.append(watcher)
        # Read once more, for what has come since the watcher's own look.
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
        """Lets every watch end with its last message, for the process is about to stop."""
        self._draining = True
        for feed in self._feeds.values():
            for watcher in feed.watchers:
                watcher.end(WatchFeedEnd.WATCH_FEED_END_DRAINING)

    # -- The hub -----------------------------------------------------------------------------

    async def run(self, ready: Callable[[], None]) -> None:
        """Looks at what is watched, and tells watchers, until it is cancelled."""
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
                        _log.warning("watched feeds wait", error=str(error))
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
        """Reads timelines, and tells their watchers what they were not told."""
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
                # Once more, soon.
                its.feed.signature = None

    async def _posts(self, post_ids: Sequence[int]) -> tuple[dict[int, CachedPost], set[int]]:
        """Returns the posts that may be shown, and of which it is not known."""
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
        """Lets the feeds be looked at into which something new is pulled."""
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
        """Notes whose timelines belong into a feed."""
        for author_id in feed.pulled - pulled:
            readers = self._authors[author_id].readers
            readers.remove(reader_id)
            if not readers:
                del self._authors[author_id]
        for author_id in pulled - feed.pulled:
            self._authors.setdefault(author_id, _Author()).readers.add(reader_id)
        feed.pulled = pulled

    def _rebuild(self, reader_id: int, feed: _Feed, now: float) -> None:
        """Has a timeline rebuilt that is no longer there."""
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
                _log.warning("a watched feed is not rebuilt", error=str(error))


def _oldest_new() -> int:
    """Returns the id from which on posts may be new now."""
    return least_id(datetime.now(UTC) - _LATE)


def _chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
