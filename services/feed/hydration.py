"""Turning post ids into posts: from the cache, else from post."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.common import logs
from services.common.cache import Cache
from services.common.errors import Unavailable
from services.common.post_cache import CachedPost, Form, PostCache
from services.feed.peers import Peers

_log = logs.logger(__name__)

_MEMORY_SECONDS = 2.0
"""How long a post is remembered in this process, to be shown while the cache is away."""

_MOST_REMEMBERED = 2_000
"""At some 3 KB each."""


@dataclass(frozen=True)
class Hydrated:
    """Posts, as far as they can be told."""

    posts: Sequence[tuple[int, CachedPost]]
    """Those that may be shown, in the order asked for."""
    all_known: bool
    """Whether it is known of the others that they may not."""


class Hydration:
    """Reads posts in one form."""

    def __init__(
        self,
        cache: Cache,
        peers: Peers,
        form: Form,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = PostCache(cache, form)
        self._peers = peers
        self._form = form
        self._clock = clock
        self._memory: dict[int, tuple[float, CachedPost | None]] = {}

    async def hydrate(self, post_ids: Sequence[int]) -> Hydrated:
        """Returns the posts.

        Raises:
            Unavailable: nothing is known of any of them.
        """
        if not post_ids:
            return Hydrated([], all_known=True)
        try:
            known = await self._cache.get(post_ids)
            cache_is_away = False
        except Unavailable:
            known = self._remembered(post_ids)
            cache_is_away = True
        missing = [post_id for post_id in post_ids if post_id not in known]
        if missing:
            try:
                known |= await self._fetch(missing, remember=cache_is_away)
            except Unavailable:
                if not known:
                    raise
        shown = [(post_id, post) for post_id in post_ids if (post := known.get(post_id))]
        return Hydrated(shown, all_known=all(post_id in known for post_id in post_ids))

    async def _fetch(
        self, post_ids: Sequence[int], *, remember: bool
    ) -> dict[int, CachedPost | None]:
        fetched = await self._peers.posts(post_ids, self._form)
        lasting = {post_id: fetched.posts[post_id] for post_id in fetched.lasting}
        if remember:
            self._remember(lasting)
        else:
            try:
                await self._cache.put(lasting)
            except Unavailable as error:
                _log.warning("posts were not cached", error=str(error))
        return dict(fetched.posts)

    # -- While the cache is away -----------------------------------------------------------

    def _remembered(self, post_ids: Sequence[int]) -> dict[int, CachedPost | None]:
        """Returns what was fetched a moment ago: post alone could not answer every reader.

        So a post that is deleted while the cache is away is shown for so long at most.
        """
        oldest = self._clock() - _MEMORY_SECONDS
        return {
            post_id: entry[1]
            for post_id in post_ids
            if (entry := self._memory.get(post_id)) and entry[0] >= oldest
        }

    def _remember(self, posts: dict[int, CachedPost | None]) -> None:
        now = self._clock()
        for post_id, post in posts.items():
            self._memory.pop(post_id, None)
            self._memory[post_id] = (now, post)
        while len(self._memory) > _MOST_REMEMBERED:
            del self._memory[next(iter(self._memory))]
