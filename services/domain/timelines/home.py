"""Home timelines: the posts in an account's feed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.domain.timelines.layout import (
    FEED,
    HIDE,
    PULL,
    Slice,
    cursor_of,
    extent_of,
    member_of,
    post_ids_of,
    script,
)
from services.domain.timelines.shared import REBUILD_SECONDS, Timelines

_TTL_SECONDS = 30 * 24 * 3600
"""The TTL of a timeline. Each read renews it."""

_READ = script("read_home")
_READ_NEWER = script("read_newer")
_HIDE_AUTHOR = script("hide_author")
_SHOW_AUTHOR = script("show_author")
_PULL_AUTHOR = script("pull_author")


@dataclass(frozen=True)
class HomeSlice(Slice):
    """Part of a home timeline, with the rules of the whole timeline."""

    pulled: Sequence[int] = ()
    """Authors whose posts are read from their own timelines."""
    hidden: frozenset[int] = frozenset()
    """Authors whose posts must not be shown, although they can be in the slice."""


class HomeTimelines(Timelines):
    """The home timelines, by reader. Every method may raise Unavailable."""

    _space = FEED
    _ttl_seconds = _TTL_SECONDS

    async def read(self, reader_id: int, before: int, count: int) -> HomeSlice:
        """Returns up to `count` posts with ids below `before` (0: the newest posts)."""
        last, members, rules = await self._cache.run(
            _READ, reader_id, cursor=cursor_of(before), count=count, seconds=self._ttl_seconds
        )
        return _home_slice(last, members, rules)

    async def newer(self, reader_ids: Sequence[int], after: int) -> Mapping[int, HomeSlice]:
        """Returns each reader's posts with ids above `after`, without extending TTLs."""
        replies = await self._cache.run_on_owners(_READ_NEWER, reader_ids, bound=member_of(after))
        return {
            int(reader_id): _home_slice(last, members, rules)
            for slices in replies
            for reader_id, last, members, rules in slices
        }

    async def finish_rebuild(
        self,
        reader_id: int,
        marker: bytes,
        post_ids: Sequence[int],
        *,
        whole: bool,
        version: int,
        pulled: Sequence[int] = (),
        hidden: Sequence[int] = (),
    ) -> bool:
        """Stores the result of a rebuild.

        Returns False if the result can be outdated, because meanwhile the timeline was dropped, or
        an author was hidden.

        Args:
            reader_id: the owner of the timeline.
            marker: the result of `begin_rebuild`.
            post_ids: the newest posts.
            whole: whether there are no older posts.
            version: the version of the reader's relations in graph.
            pulled: authors to pull, according to these relations.
            hidden: authors to hide, according to these relations.
        """
        return await self._finish_rebuild(
            reader_id,
            marker,
            post_ids,
            whole=whole,
            version=version,
            hidden=hidden,
            pulled=pulled,
        )

    async def hide(self, reader_id: int, author_id: int, version: int) -> bool:
        """Hides an author's posts from a reader, given relations of this version.

        Returns False if an author was shown at a later version: read graph again.
        """
        return bool(
            await self._cache.run(
                _HIDE_AUTHOR,
                reader_id,
                author=author_id,
                version=version,
                seconds=2 * REBUILD_SECONDS,
            )
        )

    async def show(self, reader_id: int, author_id: int, version: int) -> bool:
        """Removes an author's rule, given relations of this version.

        Returns False if an author was hidden at a later version: read graph again.
        """
        return await self._show(reader_id, author_id, version, b"")

    async def pull(self, reader_id: int, author_id: int, version: int) -> bool:
        """Adds an author's timeline to the feed, given relations of this version.

        Returns False if an author was hidden at a later version: read graph again.
        """
        return await self._show(reader_id, author_id, version, PULL)

    async def _show(self, reader_id: int, author_id: int, version: int, rule: bytes) -> bool:
        return bool(
            await self._cache.run(
                _SHOW_AUTHOR, reader_id, author=author_id, version=version, rule=rule
            )
        )

    async def pull_all(self, reader_ids: Sequence[int], author_id: int) -> None:
        """Adds an author's timeline to the feeds of all readers that do not hide the author."""
        await self._cache.run_on_owners(_PULL_AUTHOR, reader_ids, author=author_id, is_pulled=1)

    async def unpull_all(self, reader_ids: Sequence[int], author_id: int) -> None:
        """Removes an author's timeline from the readers' feeds."""
        await self._cache.run_on_owners(_PULL_AUTHOR, reader_ids, author=author_id, is_pulled=0)


def _home_slice(last: bytes, members: Sequence[bytes], rules: Sequence[bytes]) -> HomeSlice:
    by_author = dict(zip(rules[::2], rules[1::2], strict=True))
    return HomeSlice(
        post_ids_of(members),
        extent_of(last),
        pulled=_authors_with(PULL, by_author),
        hidden=frozenset(_authors_with(HIDE, by_author)),
    )


def _authors_with(rule: bytes, by_author: Mapping[bytes, bytes]) -> list[int]:
    return [int(author) for author, each in by_author.items() if each == rule]
