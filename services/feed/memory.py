"""An in-process cache that protects the database while Valkey is unavailable.

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

TTL_SECONDS = 3.0
"""The TTL of values that decide who may see what. For this long, readers may see a post that was
deleted, or whose author has blocked them."""

PATIENCE_SECONDS = 0.25
"""How long a page waits in total, including the timeout of Valkey, before it omits what is in
neither cache."""

_MIN_FRESH_SHARE = 0.3
_MAX_FRESH_SHARE = 0.7
"""A value is refreshed after a random share of its TTL between these two."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Entry(NamedTuple, Generic[Value]):
    """A remembered value."""

    value: Value
    requested_at: float
    fresh_share: float
    """The share of the TTL after which the entry is due for a refresh."""


class Memory(Generic[Key, Value]):
    """The latest values. Concurrent callers share one request per value.

    After about half its TTL, a value is refreshed in the background while callers still receive
    the old one. The share is random because all readers arrive together when Valkey fails, and must
    not stay synchronized.

    Args:
        fetch: requests values by key; may omit some, or raise Unavailable.
        max_values: the maximum number of values; the oldest are evicted.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        max_values: int,
    ) -> None:
        self._fetch = fetch
        self._max_values = max_values
        # Oldest first. OrderedDict, because a plain dict slows down when its first items are
        # removed.
        self._values: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._requests = SharedTasks[Key, None]()

    async def get(
        self,
        keys: Sequence[Key],
        *,
        until: float,
        ttl: float = TTL_SECONDS,
        refresh: bool = True,
    ) -> dict[Key, Value]:
        """Returns the values that are available by `until`, a time.monotonic time.

        No value was requested more than `ttl` seconds ago. A value that arrives after `until` is
        stored for later callers. With `refresh`, values are refreshed before they expire.
        """
        now = time.monotonic()
        entries = self._entries(keys, ttl)
        missing = [key for key in keys if key not in entries]
        wanted = list(missing)
        if refresh and any(
            now - entry.requested_at >= ttl * entry.fresh_share for entry in entries.values()
        ):
            # Refresh all that are due soon in the same request, instead of one request each.
            wanted += [
                key
                for key, entry in entries.items()
                if now - entry.requested_at >= ttl * _MIN_FRESH_SHARE
            ]
        if wanted:
            self._requests.start_batch(wanted, self._request)
        if missing:
            requests = {task for key in missing if (task := self._requests.get(key))}
            done, _ = await asyncio.wait(requests, timeout=max(0.0, until - now))
            for request in done:
                request.result()
            entries |= self._entries(missing, ttl)
        return {key: entry.value for key, entry in entries.items()}

    def _entries(self, keys: Sequence[Key], ttl: float) -> dict[Key, _Entry[Value]]:
        oldest = time.monotonic() - ttl
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
        fresh_share = random.uniform(_MIN_FRESH_SHARE, _MAX_FRESH_SHARE)
        for key, value in values.items():
            self._values[key] = _Entry(value, requested_at, fresh_share)
            self._values.move_to_end(key)
        while len(self._values) > self._max_values:
            self._values.popitem(last=False)
