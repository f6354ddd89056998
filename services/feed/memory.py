"""Memory of this process, which protects the database while the cache is unavailable.

Used by skeleton.py (parts of feeds) and hydration.py (posts).
"""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from services.chassis.errors import Unavailable
from services.chassis.shared_tasks import SharedTasks

LIFE_SECONDS = 3.0
"""How long a value that decides who may see what is valid. For this long, readers may see a post
that has been deleted, or whose author has just blocked them."""

PATIENCE_SECONDS = 0.25
"""How long a page waits in total, including the cache's timeout, before it omits what is neither in
the cache nor in this memory."""

_LEAST_FRESH_SHARE = 0.3
_MOST_FRESH_SHARE = 0.7
"""The share of its life after which a value is renewed is drawn at random between these."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Entry(NamedTuple, Generic[Value]):
    """A remembered value."""

    value: Value
    requested_at: float
    fresh_share: float
    """The share of the entry's life in which it is not renewed."""


class Memory(Generic[Key, Value]):
    """The latest values. Concurrent callers share one request for each.

    A value older than about half its life is renewed in the background while callers still
    receive it. The share is random because all readers arrive together when the cache fails, and
    must not stay synchronized.

    Args:
        fetch: requests the values of some keys; may omit some, or raise Unavailable.
        most: the maximum number of values; the oldest are evicted.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        most: int,
    ) -> None:
        self._fetch = fetch
        self._most = most
        # Oldest first. OrderedDict, because a plain dict slows down when its first items are
        # removed.
        self._values: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._requests = SharedTasks[Key, None]()

    async def get(
        self,
        keys: Sequence[Key],
        *,
        until: float,
        life: float = LIFE_SECONDS,
        renew: bool = True,
    ) -> dict[Key, Value]:
        """Returns the values that are available by `until`, a time.monotonic time.

        No value was requested more than `life` seconds ago. A value that arrives after `until` is
        still remembered, for later callers. With `renew`, values are renewed before their life
        ends.
        """
        now = time.monotonic()
        entries = self._entries(keys, life)
        missing = [key for key in keys if key not in entries]
        wanted = list(missing)
        if renew and any(
            now - entry.requested_at >= life * entry.fresh_share for entry in entries.values()
        ):
            # Renew all that are due soon in the same request, instead of one request each.
            wanted += [
                key
                for key, entry in entries.items()
                if now - entry.requested_at >= life * _LEAST_FRESH_SHARE
            ]
        if wanted:
            self._requests.start_batch(wanted, self._request)
        if missing:
            requests = {task for key in missing if (task := self._requests.get(key))}
            done, _ = await asyncio.wait(requests, timeout=max(0.0, until - now))
            for request in done:
                request.result()
            entries |= self._entries(missing, life)
        return {key: entry.value for key, entry in entries.items()}

    def _entries(self, keys: Sequence[Key], life: float) -> dict[Key, _Entry[Value]]:
        oldest = time.monotonic() - life
        return {
            key: entry
            for key in keys
            if (entry := self._values.get(key)) and entry.requested_at > oldest
        }

    async def _request(self, keys: Sequence[Key]) -> None:
        requested_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            self.put(await self._fetch(keys), requested_at)

    def put(self, values: Mapping[Key, Value], requested_at: float) -> None:
        """Stores values; `requested_at`: when they were requested, by time.monotonic."""
        fresh_share = random.uniform(_LEAST_FRESH_SHARE, _MOST_FRESH_SHARE)
        for key, value in values.items():
            self._values[key] = _Entry(value, requested_at, fresh_share)
            self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
