"""What this process remembers, so that the database bears all readers while the cache is away."""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from services.common.context import detached
from services.common.errors import Unavailable

LIFE_SECONDS = 3.0
"""How long an answer is good that says who may see what: for so long somebody may be shown a post
that was deleted meanwhile, or is of somebody who has just blocked them."""

PATIENCE_SECONDS = 0.25
"""How long a page waits in all, the cache's timeout included, before it goes without what neither
the cache has nor this process remembers."""

_LEAST_FRESH_SHARE = 0.3
_MOST_FRESH_SHARE = 0.7
"""For which part of its life an answer is not asked for anew."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Entry(NamedTuple, Generic[Value]):
    """An answer."""

    value: Value
    asked_at: float
    fresh_share: float
    """Of its life."""


class Memory(Generic[Key, Value]):
    """The last answers, each asked for once, however many want it.

    One that is past about half of its life is asked for anew while it is still given. About: all
    readers come in the moment when the cache goes away, and should not come together ever after.

    Args:
        ask: asks for the values of some keys; may leave some out, or raise Unavailable.
        most: how many values are kept; the oldest make room.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        most: int,
    ) -> None:
        self._ask = ask
        self._most = most
        # The oldest come first, and a plain dict slows down when its first are taken.
        self._values: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[None]] = {}

    async def get(
        self,
        keys: Sequence[Key],
        *,
        until: float,
        life: float = LIFE_SECONDS,
        renew: bool = True,
    ) -> dict[Key, Value]:
        """Returns the values that can be had until then, as time.monotonic tells.

        None was asked for longer than `life` seconds ago. What takes longer to come is still
        remembered once it is there, for whoever asks next. With `renew`, values are asked for
        anew before their life ends.
        """
        now = time.monotonic()
        entries = self._entries(keys, life)
        missing = [key for key in keys if key not in entries]
        wanted = list(missing)
        if renew and any(
            now - entry.asked_at >= life * entry.fresh_share for entry in entries.values()
        ):
            # And with it all that are due soon: one question instead of one for each.
            wanted += [
                key
                for key, entry in entries.items()
                if now - entry.asked_at >= life * _LEAST_FRESH_SHARE
            ]
        self._ask_for([key for key in wanted if key not in self._asking])
        if missing:
            tasks = {self._asking[key] for key in missing}
            done, _ = await asyncio.wait(tasks, timeout=max(0.0, until - now))
            for task in done:
                task.result()
            entries |= self._entries(missing, life)
        return {key: entry.value for key, entry in entries.items()}

    def _entries(self, keys: Sequence[Key], life: float) -> dict[Key, _Entry[Value]]:
        oldest = time.monotonic() - life
        return {
            key: entry
            for key in keys
            if (entry := self._values.get(key)) and entry.asked_at > oldest
        }

    def _ask_for(self, keys: Sequence[Key]) -> None:
        if keys:
            task = detached(self._fetch(keys))
            self._asking |= dict.fromkeys(keys, task)
            task.add_done_callback(lambda _: [self._asking.pop(key) for key in keys])

    async def _fetch(self, keys: Sequence[Key]) -> None:
        asked_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            self.put(await self._ask(keys), asked_at)

    def put(self, values: Mapping[Key, Value], asked_at: float) -> None:
        """Remembers answers; `asked_at` is when they were asked for, as time.monotonic tells."""
        fresh_share = random.uniform(_LEAST_FRESH_SHARE, _MOST_FRESH_SHARE)
        for key, value in values.items():
            self._values[key] = _Entry(value, asked_at, fresh_share)
            self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
