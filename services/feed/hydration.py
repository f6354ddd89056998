"""Hydration: reads the posts for a list of ids, from the cache or, on a miss, from post.

Used by home.py for pages and by watching/ for watches.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.chassis.cache.client import Cache
from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs
from services.domain.post_cache import CachedPost, Form, PostCache
from services.feed.memory import PATIENCE_SECONDS, TTL_SECONDS, Memory
from services.feed.peers import Peers

_log = logs.logger(__name__)

_PUBLISHED_TTL_SECONDS = 30.0
"""The TTL of posts that post has just confirmed as published. The edge also serves deleted media
for this long."""

_REMEMBER_SECONDS = 0.005
"""While the cache is available, how often the posts of a page are stored in memory. Otherwise all
would have to be fetched when the cache fails. Storing every page would cost 2 % of its time."""

_MAX_REMEMBERED = 5_000
"""Maximum number of posts in memory, at about 3 KB each, or 5 KB as JSON."""


@dataclass(frozen=True)
class Hydrated:
    """The posts that could be read."""

    posts: Sequence[tuple[int, CachedPost]]
    """Those that may be shown, in the requested order."""
    all_known: bool
    """Whether all missing posts are known to be hidden. False: some could not be read."""


class Hydration:
    """Reads posts in one form."""

    def __init__(self, cache: Cache, peers: Peers, form: Form) -> None:
        self._cache = PostCache(cache, form)
        self._peers = peers
        self._form = form
        self._memory = Memory(self._posts, max_values=_MAX_REMEMBERED)
        self._remember_at = time.monotonic()

    async def hydrate(
        self, post_ids: Sequence[int], *, are_published: bool = False, began: float | None = None
    ) -> Hydrated:
        """Returns posts. `are_published`: post has just confirmed that they may be shown.

        `began`: when the reader began to wait, by time.monotonic; None: now.

        Raises:
            Unavailable: none of them could be read.
        """
        if not post_ids:
            return Hydrated([], all_known=True)
        began = began or time.monotonic()
        try:
            known = await self._cache.get(post_ids)
        except Unavailable:
            known = await self._memory.get(
                post_ids,
                until=began + PATIENCE_SECONDS,
                ttl=_PUBLISHED_TTL_SECONDS if are_published else TTL_SECONDS,
                # Others need no refresh: before their TTL ends, post confirms which are published.
                refresh=are_published,
            )
        else:
            missing = [post_id for post_id in post_ids if post_id not in known]
            if missing:
                known |= await self._fetch(missing)
            if began >= self._remember_at:
                self._remember_at = began + _REMEMBER_SECONDS
                self._memory.put(known, began)
        if not known:
            raise Unavailable("Post")
        shown = [(post_id, post) for post_id in post_ids if (post := known.get(post_id))]
        return Hydrated(shown, all_known=all(post_id in known for post_id in post_ids))

    async def _fetch(self, post_ids: Sequence[int]) -> Mapping[int, CachedPost | None]:
        try:
            fetched = await self._peers.posts(post_ids, self._form)
        except Unavailable:
            return {}
        try:
            await self._cache.put({post_id: fetched.posts[post_id] for post_id in fetched.lasting})
        except Unavailable as error:
            _log.warning("post_cache.failed", error=str(error))
        return fetched.posts

    async def _posts(self, post_ids: Sequence[int]) -> Mapping[int, CachedPost | None]:
        return (await self._peers.posts(post_ids, self._form)).posts
