"""Turning post ids into posts: from the cache, else from post."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common import logs
from services.common.cache import Cache
from services.common.errors import Unavailable
from services.common.post_cache import CachedPost, Form, PostCache
from services.feed.memory import LIFE_SECONDS, PATIENCE_SECONDS, Memory
from services.feed.peers import Peers

_log = logs.logger(__name__)

_PUBLISHED_LIFE_SECONDS = 30.0
"""How long what a post shows is remembered, while it is known that it may be shown: of one whose
media was deleted, the edge serves these for as long."""

_REMEMBER_SECONDS = 0.005
"""How long from one page whose posts are remembered while the cache is well to the next. Else all
would have to be asked for when it goes away; to remember every page would cost 2 % of it."""

_MOST_REMEMBERED = 5_000
"""How many posts are remembered, at some 3 KB each, as JSON 5."""


@dataclass(frozen=True)
class Hydrated:
    """Posts, as far as they can be told."""

    posts: Sequence[tuple[int, CachedPost]]
    """Those that may be shown, in the order asked for."""
    all_known: bool
    """Whether it is known of the others that they may not."""


class Hydration:
    """Reads posts in one form."""

    def __init__(self, cache: Cache, peers: Peers, form: Form) -> None:
        self._cache = PostCache(cache, form)
        self._peers = peers
        self._form = form
        self._memory = Memory(self._ask, most=_MOST_REMEMBERED)
        self._remember_at = time.monotonic()

    async def hydrate(
        self, post_ids: Sequence[int], *, are_published: bool = False, began: float | None = None
    ) -> Hydrated:
        """Returns the posts; `are_published` if post has just told that they may be shown.

        The reader has waited since `began`, as time.monotonic tells; None: since now.

        Raises:
            Unavailable: nothing is known of any of them.
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
                life=_PUBLISHED_LIFE_SECONDS if are_published else LIFE_SECONDS,
                # Before that is over, post will have told whether the others are.
                renew=are_published,
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
            _log.warning("posts were not cached", error=str(error))
        return fetched.posts

    async def _ask(self, post_ids: Sequence[int]) -> Mapping[int, CachedPost | None]:
        return (await self._peers.posts(post_ids, self._form)).posts
