"""A page of a home feed: skeleton (which posts), hydration (the posts), rules (which to hide).

Used by service.py.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import FeedState

from services.chassis.errors import Unavailable
from services.domain.post_cache import Form
from services.feed.hydration import Hydration
from services.feed.skeleton import COMPLETE, DEGRADED, Skeletons

_MAX_STEP = 200
"""Maximum number of posts per step. Steps grow up to it while many posts of a feed are hidden."""


@dataclass(frozen=True)
class Page:
    """A part of a feed, ready to be sent."""

    posts: Sequence[bytes]
    """Each in the requested form, newest first."""
    last_id: int
    """The next page begins below this id; 0: there is no next page."""
    state: FeedState.ValueType


class HomeFeed:
    """Home feeds."""

    def __init__(self, skeletons: Skeletons, hydration: Mapping[Form, Hydration]) -> None:
        self._skeletons = skeletons
        self._hydration = hydration

    async def page(self, reader_id: int, before: int, size: int, form: Form) -> Page:
        """Returns up to `size` posts with ids below `before` (0: from the newest).

        Older posts replace those that must not be shown, so a page is short only at the end of the
        feed, or when dependencies are unavailable. A first page never fails: at worst it is empty
        and DEGRADED.

        Raises:
            Unavailable: this is a later page, and dependencies are unavailable, so that it would
                be empty. Clients can request it again.
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
                # Return what is known; the next page begins after it.
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
            count = min(2 * count, _MAX_STEP)
        if len(shown) > size:
            shown = shown[:size]
            last_id, more = shown[-1][0], True
        return Page([post for _, post in shown], last_id if more else 0, state)
