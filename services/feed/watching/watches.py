"""Watches from their first message to their last. Used by WatchFeed."""

import asyncio
import random
from collections.abc import AsyncGenerator

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd

from services.chassis.errors import Unavailable
from services.chassis.rpc.open_streams import OpenStreams
from services.feed.hydration import Hydration
from services.feed.skeleton import Skeletons
from services.feed.watching.hub import Hub
from services.feed.watching.ids import oldest_new_id
from services.feed.watching.messages import WatchLimits, WatchMessage
from services.feed.watching.watched import Watcher

_WINDOW = 200
"""How many posts a watch reads when it begins."""

_MAX_MISSED = 100
"""Maximum number of missed posts that a resumed watch sends first."""


class Watches:
    """The open watches of this process."""

    def __init__(
        self, hub: Hub, skeletons: Skeletons, hydration: Hydration, limits: WatchLimits
    ) -> None:
        self._hub = hub
        self._skeletons = skeletons
        self._hydration = hydration
        self._limits = limits
        self._open = OpenStreams(
            "watches of feeds", max_open=limits.max_open, max_per_user=limits.max_per_reader
        )

    async def watch(self, reader_id: int, after: int) -> AsyncGenerator[WatchMessage, None]:
        """Yields the posts in a reader's feed that are newer than `after`, or arrive from now on.

        The first message only holds the position to resume after; the last one has `end` set.

        Raises:
            TooManyStreams: the reader, or this process, has too many open watches.
            Unavailable: dependencies are unavailable, so new posts cannot be found.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + self._limits.seconds * random.uniform(0.9, 1.1)
        with self._open.opened_by(reader_id):
            floor = oldest_new_id()
            # Also rebuilds the timeline if there is none.
            newest = await self._skeletons.read(reader_id, 0, _WINDOW)
            if newest.more:
                floor = max(floor, newest.post_ids[-1])
            known = newest.post_ids
            # Not 0, even for an empty feed: a watch that resumes after 0 starts at the newest post
            # and would skip posts made in between.
            resume_after = after or max([*known[:1], 1])
            message = WatchMessage(resume_after)
            yield message
            missed = sorted(post_id for post_id in known if post_id > resume_after)
            if len(missed) > _MAX_MISSED:
                yield WatchMessage(resume_after, end=WatchFeedEnd.WATCH_FEED_END_TOO_FAR_BEHIND)
                return
            if newest.more and missed and missed[0] == known[-1]:
                # There may be missed posts between `after` and the oldest known one.
                raise Unavailable("A part of the feed")
            hydrated = await self._hydration.hydrate(missed)
            if not hydrated.all_known:
                raise Unavailable("Post")
            for post_id, post in hydrated.posts:
                if post.author_id not in newest.hidden:
                    resume_after = max(resume_after, post_id)
                    yield WatchMessage(resume_after, post.post, post_id)
            watcher = Watcher(known, floor=floor, resume_after=resume_after, limits=self._limits)
            with (
                self._hub.registered(reader_id, watcher),
                watcher.within_call(until=end + self._limits.patience_seconds),
            ):
                while not message.end:
                    message = await self._next(watcher, end)
                    yield message

    async def _next(self, watcher: Watcher, end: float) -> WatchMessage:
        """Returns the next message, or a heartbeat or the end when it is due."""
        clock = asyncio.get_running_loop().time
        heartbeat_at = clock() + self._limits.heartbeat_seconds
        try:
            async with asyncio.timeout_at(min(heartbeat_at, end)):
                return await watcher.next()
        except TimeoutError:
            if clock() < end:
                return WatchMessage(watcher.resume_after)
        watcher.end(WatchFeedEnd.WATCH_FEED_END_TIME_LIMIT)
        return await watcher.next()
