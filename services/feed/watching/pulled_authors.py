"""Authors whose timelines are pulled into watched feeds. Used by the hub."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.chassis.errors import Unavailable
from services.domain.timelines import AuthorTimelines, Signature
from services.feed.authors import HotAuthors
from services.feed.watching.ids import SIGNATURES, chunks, oldest_new_id
from services.feed.watching.watched import WatchedFeed

_READ_BATCH = 20
"""How many timelines are read, and rebuilt if necessary, in one batch."""

_MAX_READ = 500
"""Maximum number of timelines read per poll; later polls read the others."""

_POSTS = 100
"""How many posts of each author are read: as many as HotAuthors copies."""


@dataclass
class _Author:
    feeds: set[WatchedFeed] = field(default_factory=set)
    signature: Signature | None = None
    """The timeline's signature at the last read; None: not read yet."""
    recent: frozenset[int] = frozenset()
    """The author's latest posts."""


class PulledAuthors:
    """The latest posts of the authors that watched feeds pull."""

    def __init__(self, timelines: AuthorTimelines, hot_authors: HotAuthors) -> None:
        self._timelines = timelines
        self._hot_authors = hot_authors
        self._authors: dict[int, _Author] = {}
        self._floor = oldest_new_id()

    def assign(self, feed: WatchedFeed, pulled: frozenset[int]) -> None:
        """Sets which authors' timelines belong to a feed."""
        for author_id in feed.pulled - pulled:
            feeds = self._authors[author_id].feeds
            feeds.remove(feed)
            if not feeds:
                del self._authors[author_id]
        for author_id in pulled - feed.pulled:
            self._authors.setdefault(author_id, _Author()).feeds.add(feed)
        feed.pulled = pulled

    def recent(self, author_ids: Iterable[int]) -> set[int]:
        """Returns the latest posts of authors."""
        return set().union(*(self._authors[author_id].recent for author_id in author_ids))

    async def poll(self) -> None:
        """Reads changed timelines, and marks the feeds that pull new posts from them.

        Raises:
            Unavailable: the cache, or post while timelines are rebuilt, is unavailable.
        """
        floor = oldest_new_id()
        changed: dict[int, Signature | None] = {}
        for chunk in chunks(list(self._authors), SIGNATURES):
            signatures = await self._timelines.signatures(chunk)
            changed |= {
                author_id: signature
                for author_id, signature in signatures.items()
                if (author := self._authors.get(author_id))
                and (signature is None or signature != author.signature)
            }
        for chunk in chunks(list(changed)[:_MAX_READ], _READ_BATCH):
            self._hot_authors.expire(chunk)
            slices, are_current = await self._hot_authors.slices(chunk, 0, _POSTS)
            if not are_current:
                raise Unavailable("The timelines of celebrities")
            for author_id, part in slices.items():
                if author := self._authors.get(author_id):
                    author.signature = changed[author_id]
                    recent = frozenset(
                        post_id for post_id in part.post_ids if post_id > self._floor
                    )
                    if recent - author.recent:
                        for feed in author.feeds:
                            feed.signature = None
                    author.recent = recent
        if len(changed) <= _MAX_READ:
            self._floor = floor
