"""Which posts stand in a part of a feed: the reader's timeline, merged with those it pulls.

Each source is complete down to some id. Down to the highest of these ids the merged list has no
gap; behind it the feed goes on from the database.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from photomesh.feed.v1.feed_service_pb2 import FeedState

from services.common.context import detached
from services.common.errors import Unavailable
from services.common.timelines import CAP, Extent, HomeSlice, HomeTimelines, Slice
from services.feed.authors import HotAuthors
from services.feed.memory import PATIENCE_SECONDS, Memory
from services.feed.peers import GraphAway, PeerAway, Peers

COMPLETE = FeedState.FEED_STATE_COMPLETE
REGENERATING = FeedState.FEED_STATE_REGENERATING
DEGRADED = FeedState.FEED_STATE_DEGRADED

_REBUILD_PATIENCE_SECONDS = 0.1
"""How long a page waits for a rebuild before it asks the database itself."""

_LOOK_SECONDS = 0.02
"""How often it looks meanwhile whether another process is done."""

_REBUILDS_AT_ONCE = 4
"""How many rebuilds are under way. When all feeds are gone from the cache, pages have the rest of
the ways to the database, and are there long before all feeds are."""

_MOST_REBUILDS = 1_000
"""How many are under way or wait for their turn."""

_MOST_REMEMBERED = 5_000
"""How many parts of feeds are remembered, at some 2 KB each."""


class _Part(NamedTuple):
    """Which part of a feed."""

    reader_id: int
    before: int
    size: int


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
    are_published: bool = False
    """Whether post has just told that all of these are. The cache may lag behind it."""


class Skeletons:
    """Reads which posts stand in feeds, from the cache and from the database behind it."""

    def __init__(self, timelines: HomeTimelines, authors: HotAuthors, peers: Peers) -> None:
        self._timelines = timelines
        self._authors = authors
        self._peers = peers
        self._rebuilding: dict[int, asyncio.Task[None]] = {}
        self._may_rebuild = asyncio.Semaphore(_REBUILDS_AT_ONCE)
        self._memory = Memory(self._parts_from_database, most=_MOST_REMEMBERED)

    async def read(
        self, reader_id: int, before: int, count: int, *, began: float | None = None
    ) -> Skeleton:
        """Returns up to `count` posts with ids below `before` (0: from the newest).

        The reader has waited since `began`, as time.monotonic tells; None: since now.

        Raises:
            Unavailable: so much is away that there is nothing to show.
        """
        part = _Part(reader_id, before, count)
        began = began or time.monotonic()
        try:
            skeleton = await self._from_cache(part)
        except GraphAway:
            return await self._own(part)
        except PeerAway:
            raise
        except Unavailable:
            return await self._without_cache(part, until=began + PATIENCE_SECONDS)
        # For when the cache goes away: else all who read at that moment would ask the database.
        self._memory.put({part: skeleton}, began)
        return skeleton

    async def rebuild(self, reader_id: int) -> None:
        """Has a timeline made that is not there, unless another process is at it.

        Raises:
            Unavailable: the cache, graph or post is away.
        """
        # Others may wait for it, too.
        await asyncio.shield(self._begin_rebuild(reader_id))

    async def _from_cache(self, part: _Part) -> Skeleton:
        state = COMPLETE
        # One more than asked for says whether there is a next page.
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
        # The cache ends here, the database goes on.
        try:
            older = await self._from_database(_Part(part.reader_id, floor, part.size - len(sure)))
        except PeerAway:
            if not sure:
                raise
            return Skeleton(sure, more=True, state=DEGRADED, hidden=home.hidden)
        return Skeleton([*sure, *older.post_ids], older.more, state, home.hidden | older.hidden)

    async def _home(self, part: _Part) -> HomeSlice:
        return await self._timelines.read(part.reader_id, part.before, part.size + 1)

    # -- Feeds that are not in the cache ---------------------------------------------------------

    async def _rebuilt(self, part: _Part, home: HomeSlice) -> HomeSlice:
        """Returns a part of a timeline once that is rebuilt, or as it was if that takes too long.

        Readers in this process share one rebuild; those in others wait for it, too. All read the
        cache afterwards: who was hidden meanwhile is hidden there.
        """
        deadline = time.monotonic() + _REBUILD_PATIENCE_SECONDS
        if home.extent is Extent.ABSENT and len(self._rebuilding) < _MOST_REBUILDS:
            self._begin_rebuild(part.reader_id)
        if task := self._rebuilding.get(part.reader_id):
            # It goes on for the others, and for who comes next.
            done, _ = await asyncio.wait({task}, timeout=_REBUILD_PATIENCE_SECONDS)
            if not done:
                return home
            task.result()
            home = await self._home(part)
        while home.extent is Extent.REBUILDING and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            home = await self._home(part)
        return home

    def _begin_rebuild(self, reader_id: int) -> asyncio.Task[None]:
        """Begins a rebuild, unless one is under way; returns it."""

        def end(task: asyncio.Task[None]) -> None:
            self._rebuilding.pop(reader_id)
            # Whoever waits is told why it failed; perhaps nobody waits any more.
            _ = task.cancelled() or task.exception()

        task = self._rebuilding.get(reader_id)
        if task is None:
            task = self._rebuilding[reader_id] = detached(self._rebuild_in_turn(reader_id))
            task.add_done_callback(end)
        return task

    async def _rebuild_in_turn(self, reader_id: int) -> None:
        async with self._may_rebuild:
            await self._rebuild(reader_id)

    async def _rebuild(self, reader_id: int) -> None:
        """Fills a reader's timeline from the database, unless another process is at it."""
        marker = await self._timelines.begin_rebuild(reader_id)
        if marker is None:
            return
        try:
            wanted = await self._peers.subscriptions(reader_id)
            pulled = frozenset(wanted.pulled_ids)
            pushed = [each for each in wanted.followee_ids if each not in pulled]
            newest = await self._peers.recent([reader_id, *pushed], before=0, limit=CAP)
        except Exception:
            # Else nobody could begin another before this one is overdue.
            await self._timelines.abandon_rebuild(reader_id, marker)
            raise
        await self._timelines.finish_rebuild(
            reader_id,
            marker,
            newest,
            whole=len(newest) < CAP,
            version=wanted.version,
            pulled=wanted.pulled_ids,
            hidden=wanted.hidden_ids,
        )

    async def _from_database(self, part: _Part) -> Skeleton:
        wanted = await self._peers.subscriptions(part.reader_id)
        recent = await self._peers.recent(
            [part.reader_id, *wanted.followee_ids], part.before, part.size + 1
        )
        return Skeleton(
            recent[: part.size],
            len(recent) > part.size,
            COMPLETE,
            frozenset(wanted.hidden_ids),
            are_published=True,
        )

    # -- While something is away -----------------------------------------------------------------

    async def _without_cache(self, part: _Part, until: float) -> Skeleton:
        remembered = await self._memory.get([part], until=until)
        if part not in remembered:
            raise Unavailable("The cache")
        return replace(remembered[part], state=DEGRADED)

    async def _parts_from_database(self, parts: Sequence[_Part]) -> Mapping[_Part, Skeleton]:
        [part] = parts
        try:
            return {part: await self._from_database(part)}
        except GraphAway:
            return {part: await self._own(part)}

    async def _own(self, part: _Part) -> Skeleton:
        """Returns what is known for certain while nobody tells whom a reader follows.

        Raises:
            Unavailable: this is not the first page. Behind posts of others, the reader's own would
                pass for all there is.
        """
        if part.before:
            raise GraphAway("Graph")
        recent = await self._peers.recent([part.reader_id], 0, part.size + 1)
        return Skeleton(recent[: part.size], len(recent) > part.size, DEGRADED, are_published=True)


def _complete_from(source: Slice, before: int, count: int) -> int:
    """Returns the id from which on a part of a timeline, cut at `count`, has no gap."""
    if len(source.post_ids) < count and source.extent is Extent.WHOLE:
        return 0
    return source.post_ids[-1] if source.post_ids else before
