"""Which posts stand in a part of a feed: the reader's timeline, merged with those it pulls.

Each source is complete down to some id. Down to the highest of these ids the merged list has no
gap; behind it the feed goes on from the database.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import FeedState

from services.common import logs
from services.common.errors import Unavailable
from services.common.timelines import CAP, Extent, HomeSlice, HomeTimelines, Slice
from services.feed.authors import HotAuthors
from services.feed.peers import Peers

_log = logs.logger(__name__)

COMPLETE = FeedState.FEED_STATE_COMPLETE
REGENERATING = FeedState.FEED_STATE_REGENERATING
DEGRADED = FeedState.FEED_STATE_DEGRADED

_OTHERS_REBUILD_SECONDS = 0.25
"""How long a page waits for a rebuild by another process before it asks the database itself."""

_LOOK_SECONDS = 0.02
"""How often it looks meanwhile."""


@dataclass(frozen=True)
class Skeleton:
    """Which posts stand in a part of a feed."""

    post_ids: Sequence[int]
    """Newest first."""
    more: bool
    """Whether older posts follow."""
    state: FeedState.ValueType
    hidden: frozenset[int] = frozenset()
    """Authors whose posts must not be shown, though they may be among these."""


class Skeletons:
    """Reads which posts stand in feeds, from the cache and from the database behind it."""

    def __init__(self, timelines: HomeTimelines, authors: HotAuthors, peers: Peers) -> None:
        self._timelines = timelines
        self._authors = authors
        self._peers = peers
        self._rebuilding: dict[int, asyncio.Task[HomeSlice | None]] = {}

    async def read(self, reader_id: int, before: int, count: int) -> Skeleton:
        """Returns up to `count` posts with ids below `before` (0: from the newest).

        Raises:
            Unavailable: so much is away that there is nothing to show.
        """
        state = COMPLETE
        try:
            # One more than asked for says whether there is a next page.
            home = await self._timelines.read(reader_id, before, count + 1)
            if home.extent in (Extent.ABSENT, Extent.REBUILDING):
                state = REGENERATING
                rebuilt = await self._rebuilt(reader_id, home.extent)
                if rebuilt is None:
                    return await self._from_database(reader_id, before, count, state)
                home = _part(rebuilt, before, count + 1)
        except Unavailable:
            return await self._from_database(reader_id, before, count, DEGRADED)
        sources: list[Slice] = [home]
        if home.pulled:
            pulled, are_current = await self._authors.slices(home.pulled, before, count + 1)
            sources += pulled.values()
            state = state if are_current else DEGRADED
        floor = max(_complete_from(source, before, count + 1) for source in sources)
        merged = sorted({each for source in sources for each in source.post_ids}, reverse=True)
        sure = [post_id for post_id in merged if post_id >= floor]
        if floor == 0 or len(sure) > count:
            return Skeleton(sure[:count], len(sure) > count, state, home.hidden)
        return await self._go_on(reader_id, sure, floor, count, state, home.hidden)

    async def _go_on(
        self,
        reader_id: int,
        newest: Sequence[int],
        floor: int,
        count: int,
        state: FeedState.ValueType,
        hidden: frozenset[int],
    ) -> Skeleton:
        """Goes on from the database where the cache ends."""
        try:
            older = await self._from_database(reader_id, floor, count - len(newest), state)
        except Unavailable:
            if not newest:
                raise
            return Skeleton(newest, more=True, state=DEGRADED, hidden=hidden)
        return Skeleton(
            [*newest, *older.post_ids], older.more, max(state, older.state), hidden | older.hidden
        )

    async def _rebuilt(self, reader_id: int, extent: Extent) -> HomeSlice | None:
        """Returns a reader's timeline once it is rebuilt; None: ask the database.

        Readers in this process share one rebuild; those in others wait for it a little.
        """
        if extent is Extent.ABSENT and reader_id not in self._rebuilding:
            task = asyncio.create_task(self._rebuild(reader_id))
            self._rebuilding[reader_id] = task
            task.add_done_callback(lambda _: self._rebuilding.pop(reader_id, None))
        if reader_id in self._rebuilding:
            # The end of one reader must not be the end of the others' rebuild.
            rebuilt = await asyncio.shield(self._rebuilding[reader_id])
            if rebuilt is not None:
                return rebuilt
        deadline = asyncio.get_running_loop().time() + _OTHERS_REBUILD_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            home = await self._timelines.read(reader_id, 0, CAP)
            if home.extent in (Extent.PARTIAL, Extent.WHOLE):
                return home
        return None

    async def _rebuild(self, reader_id: int) -> HomeSlice | None:
        """Fills a reader's timeline from the database; None: another process is at it."""
        marker = await self._timelines.begin_rebuild(reader_id)
        if marker is None:
            return None
        wanted = await self._peers.subscriptions(reader_id)
        pulled = frozenset(wanted.pulled_ids)
        pushed = [each for each in wanted.followee_ids if each not in pulled]
        newest = await self._peers.recent([reader_id, *pushed], before=0, limit=CAP)
        whole = len(newest) < CAP
        try:
            await self._timelines.finish_rebuild(
                reader_id,
                marker,
                newest,
                whole=whole,
                version=wanted.version,
                pulled=wanted.pulled_ids,
                hidden=wanted.hidden_ids,
            )
        except Unavailable as error:
            _log.warning("a rebuilt feed was not stored", error=str(error))
        return HomeSlice(
            newest,
            Extent.WHOLE if whole else Extent.PARTIAL,
            pulled=wanted.pulled_ids,
            hidden=frozenset(wanted.hidden_ids),
        )

    async def _from_database(
        self, reader_id: int, before: int, count: int, state: FeedState.ValueType
    ) -> Skeleton:
        hidden: frozenset[int] = frozenset()
        author_ids = [reader_id]
        try:
            wanted = await self._peers.subscriptions(reader_id)
        except Unavailable:
            # What is known for certain: the reader's own posts. Behind those of others, they
            # would pass for all there is.
            if before:
                raise
            state = DEGRADED
        else:
            author_ids += wanted.followee_ids
            hidden = frozenset(wanted.hidden_ids)
        recent = await self._peers.recent(author_ids, before, count + 1)
        return Skeleton(recent[:count], len(recent) > count, state, hidden)


def _part(home: HomeSlice, before: int, count: int) -> HomeSlice:
    """Returns what reading a whole timeline in part would have."""
    below = [each for each in home.post_ids if not before or each < before]
    return HomeSlice(below[:count], home.extent, pulled=home.pulled, hidden=home.hidden)


def _complete_from(source: Slice, before: int, count: int) -> int:
    """Returns the id from which on a part of a timeline, cut at `count`, has no gap."""
    if len(source.post_ids) < count and source.extent is Extent.WHOLE:
        return 0
    return source.post_ids[-1] if source.post_ids else before
