"""Watched feeds, and their watchers with the messages that are queued for them."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd

from services.domain.timelines import Signature
from services.feed.watching.messages import WatchLimits, WatchMessage

_MAX_KNOWN = 1_000
"""Maximum number of ids in `Watcher.known`."""


class Watcher:
    """One watch: the posts that it need not send, and the queue of messages to send."""

    def __init__(
        self, known: Iterable[int], *, floor: int, resume_after: int, limits: WatchLimits
    ) -> None:
        self.floor = floor
        """Posts with ids up to this one are not sent."""
        self.known = {post_id for post_id in known if post_id > floor}
        """Ids above the floor that were sent, or need not be sent."""
        self.resume_after = resume_after
        """The position in the last message taken from the queue."""
        self._limits = limits
        self._ended = False
        self._newest = resume_after
        self._queue: asyncio.Queue[WatchMessage] = asyncio.Queue()
        self._call: asyncio.Task[Any] | None = None
        self._cancellation: asyncio.TimerHandle | None = None

    async def next(self) -> WatchMessage:
        """Waits for the next message."""
        message = await self._queue.get()
        self.resume_after = message.resume_after
        return message

    @contextmanager
    def within_call(self, *, until: float) -> Iterator[None]:
        """Cancels the current call at `until`, or sooner if the watch ends as too slow."""
        self._call = asyncio.current_task()
        self._cancel_at(until)
        try:
            yield
        finally:
            if self._cancellation:
                self._cancellation.cancel()

    def send(self, posts: Sequence[tuple[int, bytes]]) -> None:
        """Queues posts.

        If too many are queued, ends the watch with a position from which it can resume without
        loss.
        """
        if self._ended:
            return
        for post_id, post in posts:
            self._newest = max(self._newest, post_id)
            self._queue.put_nowait(WatchMessage(self._newest, post, post_id))
        if self._queue.qsize() > self._limits.max_queued:
            unread = [self._queue.get_nowait().post_id for _ in range(self._queue.qsize())]
            self._newest = min(self.resume_after, min(unread) - 1)
            self.end(WatchFeedEnd.WATCH_FEED_END_TOO_SLOW)
            self._cancel_at(asyncio.get_running_loop().time() + self._limits.patience_seconds)

    def end(self, why: WatchFeedEnd.ValueType) -> None:
        """Queues the last message."""
        if not self._ended:
            self._ended = True
            self._queue.put_nowait(WatchMessage(self._newest, end=why))

    def raise_floor(self, floor: int) -> None:
        """Forgets posts that are too old to appear again."""
        self.floor = max(self.floor, floor)
        if len(self.known) > _MAX_KNOWN:
            self.floor = max(self.floor, sorted(self.known)[-_MAX_KNOWN])
        self.known = {post_id for post_id in self.known if post_id > self.floor}

    def _cancel_at(self, when: float) -> None:
        if self._cancellation:
            self._cancellation.cancel()
        if self._call:
            self._cancellation = asyncio.get_running_loop().call_at(when, self._call.cancel)


@dataclass(eq=False)
class WatchedFeed:
    """A home feed that has watchers."""

    watchers: list[Watcher] = field(default_factory=list)
    signature: Signature | None = None
    """The timeline's signature at the last read, if all posts found then were sent; otherwise
    None."""
    pulled: frozenset[int] = frozenset()
    """Authors whose timelines belong to the feed."""
    read_at: float = 0.0
    """When the timeline is read even if its signature is unchanged."""
    rebuild_at: float = 0.0
    """The earliest time of the next rebuild."""
