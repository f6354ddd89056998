"""Author timelines: the posts of one author."""

from collections.abc import Mapping, Sequence

from services.domain.timelines.layout import (
    AUTHOR,
    Slice,
    cursor_of,
    extent_of,
    post_ids_of,
    script,
)
from services.domain.timelines.shared import Timelines

_TTL_SECONDS = 24 * 3600
"""The TTL of a timeline. Each read renews it."""

_READ = script("read_authors")


class AuthorTimelines(Timelines):
    """The author timelines, by author. Every method may raise Unavailable."""

    _space = AUTHOR
    _ttl_seconds = _TTL_SECONDS

    async def read(self, author_ids: Sequence[int], before: int, count: int) -> Mapping[int, Slice]:
        """Returns up to `count` posts of each author with ids below `before` (0: the newest)."""
        replies = await self._cache.run_on_owners(
            _READ, author_ids, cursor=cursor_of(before), count=count, seconds=self._ttl_seconds
        )
        return {
            int(author_id): Slice(post_ids_of(members), extent_of(last))
            for slices in replies
            for author_id, last, members in slices
        }

    async def finish_rebuild(
        self, author_id: int, marker: bytes, post_ids: Sequence[int], *, whole: bool
    ) -> bool:
        """Stores the result of a rebuild; `whole`: there are no older posts.

        Returns False if the result can be outdated, because the timeline was dropped meanwhile.
        """
        return await self._finish_rebuild(author_id, marker, post_ids, whole=whole)
