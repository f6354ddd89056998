"""Timelines of followed celebrities, cached in this process for a second.

Millions of readers pull the same few timelines, so one read from Valkey serves all of them for that
second. Used by skeleton.py for pages and by watching/ for watches.
"""

import asyncio
import bisect
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.chassis.errors import Unavailable
from services.chassis.shared_tasks import SharedTasks
from services.chassis.telemetry import logs
from services.domain.timelines import CAP, AuthorTimelines, Extent, Slice
from services.feed.peers import Peers, PeerUnavailable

_log = logs.logger(__name__)

FRESH_SECONDS = 1.0
"""Maximum age of a copy. A celebrity's post is delayed by at most this time."""

_STALE_SECONDS = 60.0
"""Maximum age of a copy while no newer one is available."""

_KEPT = 100
"""How many posts of each author are copied: enough for the first pages."""

_MAX_AUTHORS = 10_000
"""Maximum number of copies, at 4 KB each. The oldest copy is evicted."""


@dataclass(frozen=True)
class _Copy:
    newest: Slice
    """PARTIAL if the author has, or may have, posts that are not copied."""
    at: float

    def slice(self, before: int, count: int) -> Slice | None:
        """Returns the requested slice, or None if the copy does not reach that far."""
        ids = self.newest.post_ids
        # The ids descend, so search their negatives.
        start = bisect.bisect_right(ids, -before, key=lambda post_id: -post_id) if before else 0
        found = ids[start : start + count]
        if len(found) == count or self.newest.extent is Extent.WHOLE:
            return Slice(found, self.newest.extent)
        # The cached timeline may continue after a full copy, but not after a shorter one.
        return None if len(ids) == _KEPT else Slice(found, Extent.PARTIAL)


class HotAuthors:
    """Author timelines, from this process's copies, the cache or the database."""

    def __init__(
        self,
        timelines: AuthorTimelines,
        peers: Peers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timelines = timelines
        self._peers = peers
        self._clock = clock
        # Oldest copy first.
        self._copies: OrderedDict[int, _Copy] = OrderedDict()
        self._fetches = SharedTasks[int, bool]()

    async def slices(
        self, author_ids: Sequence[int], before: int, count: int
    ) -> tuple[dict[int, Slice], bool]:
        """Returns up to `count` posts of each author with ids below `before` (0: from the newest).

        Also returns whether the result is current. If not, the cache or post is unavailable, and
        copies are outdated or missing.
        """
        is_current = await self._refresh(author_ids)
        found: dict[int, Slice] = {}
        deeper: list[int] = []
        for author_id in author_ids:
            copy = self._copies.get(author_id)
            if copy is None:
                continue
            part = copy.slice(before, count)
            if part is None:
                deeper.append(author_id)
            else:
                found[author_id] = part
        if deeper:
            try:
                found |= await self._timelines.read(deeper, before, count)
            except Unavailable:
                is_current = False
        return found, is_current and len(found) == len(author_ids)

    def expire(self, author_ids: Sequence[int]) -> None:
        """Expires the copies of authors who are known to have changed."""
        outdated = self._clock() - 2 * FRESH_SECONDS
        for author_id in author_ids:
            if copy := self._copies.get(author_id):
                self._copies[author_id] = _Copy(copy.newest, min(copy.at, outdated))

    async def _refresh(self, author_ids: Sequence[int]) -> bool:
        """Updates copies; returns whether all are current."""
        now = self._clock()
        outdated = [
            author_id
            for author_id in author_ids
            if (copy := self._copies.get(author_id)) is None or now - copy.at > FRESH_SECONDS
        ]
        if not outdated:
            return True
        fetches = self._fetches.start_batch(outdated, self._fetch)
        try:
            are_current = all(await asyncio.gather(*map(asyncio.shield, fetches)))
        except Unavailable as error:
            _log.warning("author_timelines.outdated", error=str(error))
            are_current = False
        if not are_current:
            self._forget_stale(outdated)
        return are_current

    def _forget_stale(self, author_ids: Sequence[int]) -> None:
        oldest = self._clock() - _STALE_SECONDS
        for author_id in author_ids:
            copy = self._copies.get(author_id)
            if copy and copy.at < oldest:
                del self._copies[author_id]

    async def _fetch(self, author_ids: Sequence[int]) -> bool:
        """Copies timelines; returns whether all were available."""
        # The age counts from the request, because on a busy machine the response may take a second.
        requested_at = self._clock()
        found = dict(await self._timelines.read(author_ids, 0, _KEPT))
        missing = [
            author_id
            for author_id, part in found.items()
            if part.extent in (Extent.ABSENT, Extent.REBUILDING)
        ]
        rebuilt = await asyncio.gather(*(self._rebuilt(each) for each in missing))
        for author_id, part in (found | dict(zip(missing, rebuilt, strict=True))).items():
            if part is None:
                continue
            extent = Extent.PARTIAL if len(part.post_ids) == _KEPT else part.extent
            self._copies[author_id] = _Copy(Slice(part.post_ids, extent), requested_at)
            self._copies.move_to_end(author_id)
        while len(self._copies) > _MAX_AUTHORS:
            self._copies.popitem(last=False)
        return all(rebuilt)

    async def _rebuilt(self, author_id: int) -> Slice | None:
        """Returns an author's timeline from the database, and fills the cached one.

        None: post is unavailable.
        """
        marker = await self._timelines.begin_rebuild(author_id)
        try:
            newest = await self._peers.recent([author_id], before=0, limit=CAP)
        except PeerUnavailable:
            if marker is not None:
                # Otherwise no other rebuild could begin until this one times out.
                await self._timelines.abandon_rebuild(author_id, marker)
            return None
        whole = len(newest) < CAP
        # Without a marker, another process is rebuilding the timeline, and stores it.
        if marker is not None:
            await self._timelines.finish_rebuild(author_id, marker, newest, whole=whole)
        return Slice(newest[:_KEPT], Extent.WHOLE if whole else Extent.PARTIAL)
