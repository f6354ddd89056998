"""What this process remembers, so that the database bears all readers while the cache is away."""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from services.common.context import detached
from services.common.errors import Unavailable

LIFE_SECONDS = 2.0
"""How long an answer is good that says who may see what: for so long somebody may be shown a post
that was deleted meanwhile, or is of somebody who has just blocked them."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memory(Generic[Key, Value]):
    """The last answers, each asked for once, however many want it.

    One that is past about half of its life is asked for anew while it is still given; about, so
    that what was learnt together is not asked for together.

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
        self._values: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[None]] = {}

    async def get(
        self, keys: Sequence[Key], *, within: float, life: float = LIFE_SECONDS
    ) -> dict[Key, Value]:
        """Returns the values that can be had within so many seconds.

        None was asked for longer than `life` seconds ago. What takes longer to come is still
        remembered once it is there, for whoever asks next.
        """
        now = time.monotonic()
        found: dict[Key, Value] = {}
        missing: list[Key] = []
        wanted: list[Key] = []
        for key in keys:
            entry = self._values.get(key)
            age = now - entry[0] if entry else life
            if entry and age < life:
                found[key] = entry[1]
            else:
                missing.append(key)
            if age >= life * random.uniform(0.4, 0.6) and key not in self._asking:
                wanted.append(key)
        if wanted:
            task = detached(self._fetch(wanted))
            self._asking |= dict.fromkeys(wanted, task)
            task.add_done_callback(lambda _: [self._asking.pop(key) for key in wanted])
        if missing:
            tasks = {self._asking[key] for key in missing}
            done, _ = await asyncio.wait(tasks, timeout=within)
            for task in done:
                task.result()
            oldest = time.monotonic() - life
            found |= {
                key: entry[1]
                for key in missing
                if (entry := self._values.get(key)) and entry[0] > oldest
            }
        return found

    async def _fetch(self, keys: Sequence[Key]) -> None:
        asked_at = time.monotonic()
        with contextlib.suppress(Unavailable):
            self.put(await self._ask(keys), asked_at)

    def put(self, values: Mapping[Key, Value], asked_at: float) -> None:
        """Remembers answers; `asked_at` is when they were asked for, as time.monotonic tells."""
        for key, value in values.items():
            self._values[key] = (asked_at, value)
            self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
