"""Finds the new posts of all watched feeds. Its worker runs beside the feed service.

Watches poll, instead of subscribing to writes. One hub per process polls all watched timelines a
few times a second, with a few cheap scripts for all of them, and reads those that have changed. So
a process does no work for feeds that it does not watch, and writers need not know about watchers.
Nothing is lost while the cache is unavailable: the first poll afterwards finds all unsent posts.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd

from services.chassis import context
from services.chassis.errors import Unavailable
from services.chassis.shared_tasks import SharedTasks
from services.chassis.telemetry import logs
from services.domain.post_cache import CachedPost
from services.domain.timelines import Extent, HomeTimelines, Signature
from services.feed.hydration import Hydration
from services.feed.skeleton import Skeletons
from services.feed.watching.ids import SIGNATURES, chunks, oldest_new_id
from services.feed.watching.pulled_authors import PulledAuthors
from services.feed.watching.watched import WatchedFeed, Watcher

_log = logs.logger(__name__)

_POLL_SECONDS = 0.25
_MIN_PAUSE_SECONDS = 0.05
"""Minimum pause between polls, so that other tasks can run even if polls are slow."""

_AUTHORS_SECONDS = 1.0
"""How often pulled authors' timelines are polled."""

_READ_SECONDS = (5.0, 15.0)
"""Minimum and maximum time until an unchanged timeline is read again, because the authors to hide
may have changed."""

_HYDRATED = 200
"""Maximum number of posts hydrated in one batch."""

_REBUILDS = 8
"""Maximum number of concurrent rebuilds, so that they do not delay rebuilds for pages."""

_REBUILD_PAUSE_SECONDS = 1.0
"""Minimum time between two rebuilds of one timeline."""


@dataclass(frozen=True, slots=True)
class _NewPosts:
    """Posts that a watcher has not received yet."""

    feed: WatchedFeed
    watcher: Watcher
    post_ids: Sequence[int]
    """Oldest first."""
    hidden: frozenset[int]
    """Authors whose posts must not be shown."""


class Hub:
    """All watched feeds of this process."""

    def __init__(
        self,
        timelines: HomeTimelines,
        authors: PulledAuthors,
        skeletons: Skeletons,
        hydration: Hydration,
    ) -> None:
        self._timelines = timelines
        self._authors = authors
        self._skeletons = skeletons
        self._hydration = hydration
        self._feeds: dict[int, WatchedFeed] = {}
        self._poll_authors_at = 0.0
        self._has_feeds = asyncio.Event()
        self._draining = False
        self._rebuilds = SharedTasks[int, None]()
        self._may_rebuild = asyncio.Semaphore(_REBUILDS)

    @contextmanager
    def registered(self, reader_id: int, watcher: Watcher) -> Iterator[None]:
        """Sends new posts in a reader's feed to a watcher while the block runs."""
        feed = self._feeds.setdefault(reader_id, WatchedFeed())
        feed.watchers.append(watcher)
        # Read the timeline again, to find posts that arrived after the watcher read it.
        feed.signature = None
        self._has_feeds.set()
        if self._draining:
            watcher.end(WatchFeedEnd.WATCH_FEED_END_DRAINING)
        try:
            yield
        finally:
            feed.watchers.remove(watcher)
            if not feed.watchers:
                self._authors.assign(feed, frozenset())
                del self._feeds[reader_id]
            if not self._feeds:
                self._has_feeds.clear()

    def drain(self) -> None:
        """Ends every watch with its last message, because the process is about to stop."""
        self._draining = True
        for feed in self._feeds.values():
            for watcher in feed.watchers:
                watcher.end(WatchFeedEnd.WATCH_FEED_END_DRAINING)

    async def run(self, ready: Callable[[], None]) -> None:
        """Polls watched feeds and sends new posts to watchers, until canceled."""
        ready()
        clock = asyncio.get_running_loop().time
        is_blocked = False
        try:
            while True:
                await self._has_feeds.wait()
                context.enter_new_trace()
                began = clock()
                try:
                    await self._poll(began)
                    is_blocked = False
                except Unavailable as error:
                    if not is_blocked:
                        _log.warning("watch.blocked", error=str(error))
                    is_blocked = True
                await asyncio.sleep(max(began + _POLL_SECONDS - clock(), _MIN_PAUSE_SECONDS))
        finally:
            await self._rebuilds.close()

    async def _poll(self, now: float) -> None:
        if now >= self._poll_authors_at:
            self._poll_authors_at = now + _AUTHORS_SECONDS
            await self._authors.poll()
        changed: dict[int, Signature | None] = {}
        for chunk in chunks(list(self._feeds), SIGNATURES):
            for reader_id, signature in (await self._timelines.signatures(chunk)).items():
                feed = self._feeds.get(reader_id)
                if feed and (
                    signature is None or signature != feed.signature or now >= feed.read_at
                ):
                    changed[reader_id] = signature
        for chunk in chunks(list(changed), SIGNATURES):
            await self._read({reader_id: changed[reader_id] for reader_id in chunk}, now)

    async def _read(self, changed: Mapping[int, Signature | None], now: float) -> None:
        """Reads changed timelines and sends watchers the posts that they have not received."""
        feeds = {each: feed for each in changed if (feed := self._feeds.get(each))}
        if not feeds:
            return
        next_floor = oldest_new_id()
        floor = min(watcher.floor for feed in feeds.values() for watcher in feed.watchers)
        slices = await self._timelines.newer(list(feeds), floor)
        found: list[_NewPosts] = []
        for reader_id, home in slices.items():
            feed = feeds[reader_id]
            if feed is not self._feeds.get(reader_id):
                continue
            feed.signature = changed[reader_id]
            feed.read_at = now + random.uniform(*_READ_SECONDS)
            if home.extent in (Extent.ABSENT, Extent.REBUILDING):
                feed.signature = None
                if home.extent is Extent.ABSENT:
                    self._rebuild(reader_id, feed, now)
                continue
            self._authors.assign(feed, frozenset(home.pulled))
            post_ids = self._authors.recent(feed.pulled).union(home.post_ids)
            for watcher in feed.watchers:
                new = sorted(
                    post_id for post_id in post_ids - watcher.known if post_id > watcher.floor
                )
                if new:
                    found.append(_NewPosts(feed, watcher, new, home.hidden))
                else:
                    watcher.raise_floor(next_floor)
        await self._send(found, next_floor)

    async def _send(self, found: Sequence[_NewPosts], next_floor: int) -> None:
        post_ids = {post_id for new in found for post_id in new.post_ids}
        posts, unread = await self._hydrate(sorted(post_ids))
        for new in found:
            read = [post_id for post_id in new.post_ids if post_id not in unread]
            new.watcher.known.update(read)
            new.watcher.send(
                [
                    (post_id, post.post)
                    for post_id in read
                    if (post := posts.get(post_id)) and post.author_id not in new.hidden
                ]
            )
            if len(read) == len(new.post_ids):
                new.watcher.raise_floor(next_floor)
            else:
                # Try again at the next poll.
                new.feed.signature = None

    async def _hydrate(self, post_ids: Sequence[int]) -> tuple[dict[int, CachedPost], set[int]]:
        """Returns the posts that may be shown, and the ids for which that is unknown."""
        posts: dict[int, CachedPost] = {}
        unread: set[int] = set()
        for chunk in chunks(post_ids, _HYDRATED):
            try:
                hydrated = await self._hydration.hydrate(chunk)
            except Unavailable:
                unread.update(chunk)
                continue
            posts.update(hydrated.posts)
            if not hydrated.all_known:
                unread.update(each for each in chunk if each not in posts)
        return posts, unread

    def _rebuild(self, reader_id: int, feed: WatchedFeed, now: float) -> None:
        """Rebuilds a timeline that no longer exists, in the background."""
        if not self._rebuilds.get(reader_id) and now >= feed.rebuild_at:
            feed.rebuild_at = now + _REBUILD_PAUSE_SECONDS
            self._rebuilds.start(reader_id, lambda: self._rebuild_in_turn(reader_id))

    async def _rebuild_in_turn(self, reader_id: int) -> None:
        async with self._may_rebuild:
            try:
                await self._skeletons.rebuild(reader_id)
            except Unavailable as error:
                _log.warning("rebuild.failed", error=str(error))
