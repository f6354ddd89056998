"""What this process remembers while the cache is away, so that the database bears its readers."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from services.common.context import detached
from services.common.errors import Unavailable

_LIFE_SECONDS = 2.0
"""How long an answer is good, from when it was asked for."""

_REFRESH_SECONDS = 1.0
"""How old an answer is that is asked for anew while it is still given."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memory(Generic[Key, Value]):
    """The answers of the last two seconds, each asked for once, however many want it.

    So whoever is shown them sees what held two seconds ago at worst: for so long somebody may see
    a post that was deleted meanwhile, or is of somebody who has just blocked them.

    Args:
        ask: asks for the values of some keys; may leave some out, or raise Unavailable.
        most: how many values are kept; the oldest make room.
        clock: tells seconds.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._most = most
        self._clock = clock
        self._values: dict[Key, tuple[float, Value]] = {}
        self._asking: dict[Key, asyncio.Task[None]] = {}

    async def get(self, keys: Sequence[Key], *, within: float) -> dict[Key, Value]:
        """Returns the values that can be had within so many seconds.

        What takes longer is still remembered once it is there, for whoever asks next.
        """
        now = self._clock()
        found: dict[Key, Value] = {}
        missing: list[Key] = []
        wanted: list[Key] = []
        for key in keys:
            entry = self._values.get(key)
            age = now - entry[0] if entry else _LIFE_SECONDS
            if entry and age < _LIFE_SECONDS:
                found[key] = entry[1]
            else:
                missing.append(key)
            if age >= _REFRESH_SECONDS and key not in self._asking:
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
            oldest = self._clock() - _LIFE_SECONDS
            found |= {
                key: entry[1]
                for key in missing
                if (entry := self._values.get(key)) and entry[0] > oldest
            }
        return found

    async def _fetch(self, keys: Sequence[Key]) -> None:
        asked_at = self._clock()
        with contextlib.suppress(Unavailable):
            for key, value in (await self._ask(keys)).items():
                # The oldest come first.
                self._values.pop(key, None)
                self._values[key] = (asked_at, value)
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]
