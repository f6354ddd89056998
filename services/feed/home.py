"""A page of a home feed: skeleton (which posts), hydration (the posts), rules (who may see it)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import FeedState

from services.common.errors import Unavailable
from services.common.post_cache import Form
from services.feed.hydration import Hydration
from services.feed.skeleton import COMPLETE, DEGRADED, Skeletons

_MOST_IDS = 200
"""How many posts one step looks at; more is for readers whose feed is full of hidden ones."""


@dataclass(frozen=True)
class Page:
    """A part of a feed, ready to be sent."""

    posts: Sequence[bytes]
    """Each in the form that was asked for, newest first."""
    last_id: int
    """Behind which id the next page begins; 0: there is none."""
    state: FeedState.ValueType


class HomeFeed:
    """Home feeds."""

    def __init__(self, skeletons: Skeletons, hydration: Mapping[Form, Hydration]) -> None:
        self._skeletons = skeletons
        self._hydration = hydration

    async def page(self, reader_id: int, before: int, size: int, form: Form) -> Page:
        """Returns up to `size` posts with ids below `before` (0: from the newest).

        Posts that may not be shown are made up for by older ones, so that a page is short only
        at the end of the feed, or when a part of the mesh is away. A first page always comes: at
        worst it is empty, and DEGRADED.

        Raises:
            Unavailable: so much is away that there is nothing to show on a later page. It can be
                asked for again.
        """
        shown: list[tuple[int, bytes]] = []
        state = COMPLETE
        more = True
        last_id = before
        count = size
        began = time.monotonic()
        while more and len(shown) < size:
            try:
                skeleton = await self._skeletons.read(reader_id, last_id, count, began=began)
                hydrated = await self._hydration[form].hydrate(
                    skeleton.post_ids, are_published=skeleton.are_published, began=began
                )
            except Unavailable:
                if before and not shown:
                    raise
                # What is known goes out; the next page begins where this is known no longer.
                state, more = DEGRADED, last_id != before
                break
            state = max(state, skeleton.state if hydrated.all_known else DEGRADED)
            shown += [
                (post_id, post.post)
                for post_id, post in hydrated.posts
                if post.author_id not in skeleton.hidden
            ]
            more = skeleton.more
            if not skeleton.post_ids:
                break
            last_id = skeleton.post_ids[-1]
            count = min(2 * count, _MOST_IDS)
        if len(shown) > size:
            shown = shown[:size]
            last_id, more = shown[-1][0], True
        return Page([post for _, post in shown], last_id if more else 0, state)
