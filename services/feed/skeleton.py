"""Lists the post ids of a part of a feed: the reader's timeline, merged with pulled timelines.

Each source is complete down to some id. The merged list has no gaps down to the highest of these
ids; below it, the feed continues from the database. Used by home.py for pages, by watching/ for
watches, and by admin.py for rebuilds.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from photomesh.feed.v1.feed_service_pb2 import FeedState

from services.chassis.errors import Unavailable
from services.chassis.shared_tasks import SharedTasks
from services.domain.timelines import CAP, Extent, HomeSlice, HomeTimelines, Slice
from services.feed.authors import HotAuthors
from services.feed.memory import PATIENCE_SECONDS, Memory
from services.feed.peers import GraphUnavailable, Peers, PeerUnavailable

COMPLETE = FeedState.FEED_STATE_COMPLETE
REGENERATING = FeedState.FEED_STATE_REGENERATING
DEGRADED = FeedState.FEED_STATE_DEGRADED

_REBUILD_PATIENCE_SECONDS = 0.1
"""How long a page waits for a rebuild before it reads the database itself."""

_POLL_SECONDS = 0.02
"""How often a waiting page checks whether another process has finished the rebuild."""

_MAX_CONCURRENT_REBUILDS = 4
"""Maximum number of concurrent rebuilds. If the cache loses all timelines, this leaves connections
to the database for serving pages before all timelines are rebuilt."""

_MAX_REBUILDS = 1_000
"""Maximum number of rebuilds, running or queued."""

_MAX_REMEMBERED = 5_000
"""Maximum number of parts of feeds in memory, at about 2 KB each."""


class _Part(NamedTuple):
    """Identifies a part of a feed."""

    reader_id: int
    before: int
    size: int


@dataclass(frozen=True)
class Skeleton:
    """The ids of the posts in a part of a feed."""

    post_ids: Sequence[int]
    """Newest first."""
    more: bool
    """Whether older posts follow."""
    state: FeedState.ValueType
    hidden: frozenset[int] = frozenset()
    """Authors whose posts must not be shown, although `post_ids` may contain them."""
    are_published: bool = False
    """Whether the ids come from post, so that all are published. The cache may lag behind post."""


class Skeletons:
    """Reads the skeletons of feeds, from the cache and, beyond it, from the database."""

    def __init__(self, timelines: HomeTimelines, authors: HotAuthors, peers: Peers) -> None:
        self._timelines = timelines
        self._authors = authors
        self._peers = peers
        self._rebuilds = SharedTasks[int, None]()
        self._may_rebuild = asyncio.Semaphore(_MAX_CONCURRENT_REBUILDS)
        self._memory = Memory(self._parts_from_database, max_values=_MAX_REMEMBERED)

    async def read(
        self, reader_id: int, before: int, count: int, *, began: float | None = None
    ) -> Skeleton:
        """Returns up to `count` posts with ids below `before` (0: from the newest).

        `began`: when the reader began to wait, by time.monotonic; None: now.

        Raises:
            Unavailable: dependencies are unavailable, and no posts can be found without them.
        """
        part = _Part(reader_id, before, count)
        began = began or time.monotonic()
        try:
            skeleton = await self._from_cache(part)
        except GraphUnavailable:
            return await self._own(part)
        except PeerUnavailable:
            raise
        except Unavailable:
            return await self._without_cache(part, until=began + PATIENCE_SECONDS)
        # Used when the cache fails: otherwise all readers would query the database at once.
        self._memory.put({part: skeleton}, began)
        return skeleton

    async def rebuild(self, reader_id: int) -> None:
        """Rebuilds a missing timeline, unless another process is rebuilding it.

        Raises:
            Unavailable: the cache, graph or post is unavailable.
        """
        await self._rebuilds.run(reader_id, lambda: self._rebuild_in_turn(reader_id))

    async def _from_cache(self, part: _Part) -> Skeleton:
        state = COMPLETE
        # One extra post shows whether there is a next page.
        home = await self._home(part)
        if home.extent in (Extent.ABSENT, Extent.REBUILDING):
            state = REGENERATING
            home = await self._rebuilt(part, home)
            if home.extent in (Extent.ABSENT, Extent.REBUILDING):
                return replace(await self._from_database(part), state=state)
        sources: list[Slice] = [home]
        if home.pulled:
            pulled, are_current = await self._authors.slices(
                home.pulled, part.before, part.size + 1
            )
            sources += pulled.values()
            state = state if are_current else DEGRADED
        floor = max(_complete_from(source, part.before, part.size + 1) for source in sources)
        merged = sorted({each for source in sources for each in source.post_ids}, reverse=True)
        sure = [post_id for post_id in merged if post_id >= floor]
        if floor == 0 or len(sure) > part.size:
            return Skeleton(sure[: part.size], len(sure) > part.size, state, home.hidden)
        # The cached part ends here; continue in the database.
        try:
            older = await self._from_database(_Part(part.reader_id, floor, part.size - len(sure)))
        except PeerUnavailable:
            if not sure:
                raise
            return Skeleton(sure, more=True, state=DEGRADED, hidden=home.hidden)
        return Skeleton([*sure, *older.post_ids], older.more, state, home.hidden | older.hidden)

    async def _home(self, part: _Part) -> HomeSlice:
        return await self._timelines.read(part.reader_id, part.before, part.size + 1)

    # -- Feeds that are not in the cache ---------------------------------------------------------

    async def _rebuilt(self, part: _Part, home: HomeSlice) -> HomeSlice:
        """Returns a part of a timeline after its rebuild, or `home` if the rebuild takes too long.

        Readers in this process share one rebuild; readers in other processes wait for it, too. All
        then read the cache, which includes authors that were hidden during the rebuild.
        """
        deadline = time.monotonic() + _REBUILD_PATIENCE_SECONDS
        rebuild = self._rebuilds.get(part.reader_id)
        if home.extent is Extent.ABSENT and len(self._rebuilds) < _MAX_REBUILDS:
            rebuild = self._rebuilds.start(
                part.reader_id, lambda: self._rebuild_in_turn(part.reader_id)
            )
        if rebuild:
            # On a timeout the rebuild continues, for other readers and later pages.
            done, _ = await asyncio.wait({rebuild}, timeout=_REBUILD_PATIENCE_SECONDS)
            if not done:
                return home
            rebuild.result()
            home = await self._home(part)
        while home.extent is Extent.REBUILDING and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            home = await self._home(part)
        return home

    async def _rebuild_in_turn(self, reader_id: int) -> None:
        async with self._may_rebuild:
            await self._rebuild(reader_id)

    async def _rebuild(self, reader_id: int) -> None:
        """Fills a reader's timeline from the database, unless another process is doing so."""
        marker = await self._timelines.begin_rebuild(reader_id)
        if marker is None:
            return
        try:
            followees = await self._peers.followees(reader_id)
            pulled = frozenset(followees.pulled_ids)
            pushed = [each for each in followees.followee_ids if each not in pulled]
            newest = await self._peers.recent([reader_id, *pushed], before=0, limit=CAP)
        except Exception:
            # Otherwise no other rebuild could begin until this one times out.
            await self._timelines.abandon_rebuild(reader_id, marker)
            raise
        await self._timelines.finish_rebuild(
            reader_id,
            marker,
            newest,
            whole=len(newest) < CAP,
            version=followees.version,
            pulled=followees.pulled_ids,
            hidden=followees.hidden_ids,
        )

    async def _from_database(self, part: _Part) -> Skeleton:
        followees = await self._peers.followees(part.reader_id)
        recent = await self._peers.recent(
            [part.reader_id, *followees.followee_ids], part.before, part.size + 1
        )
        return Skeleton(
            recent[: part.size],
            len(recent) > part.size,
            COMPLETE,
            frozenset(followees.hidden_ids),
            are_published=True,
        )

    # -- While dependencies are unavailable ------------------------------------------------------

    async def _without_cache(self, part: _Part, until: float) -> Skeleton:
        remembered = await self._memory.get([part], until=until)
        if part not in remembered:
            raise Unavailable("The cache")
        return replace(remembered[part], state=DEGRADED)

    async def _parts_from_database(self, parts: Sequence[_Part]) -> Mapping[_Part, Skeleton]:
        [part] = parts
        try:
            return {part: await self._from_database(part)}
        except GraphUnavailable:
            return {part: await self._own(part)}

    async def _own(self, part: _Part) -> Skeleton:
        """Returns the reader's own posts, while graph cannot return the reader's followees.

        Raises:
            Unavailable: this is not the first page. A later page with only the reader's own posts
                would look like the end of the feed.
        """
        if part.before:
            raise GraphUnavailable("Graph")
        recent = await self._peers.recent([part.reader_id], 0, part.size + 1)
        return Skeleton(recent[: part.size], len(recent) > part.size, DEGRADED, are_published=True)


def _complete_from(source: Slice, before: int, count: int) -> int:
    """Returns the id down to which a slice, limited to `count` posts, has no gaps."""
    if len(source.post_ids) < count and source.extent is Extent.WHOLE:
        return 0
    return source.post_ids[-1] if source.post_ids else before
