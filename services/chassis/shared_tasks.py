"""Single flight: concurrent callers that want the same result share one task."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from services.chassis.context import detached

Key = TypeVar("Key")
Result = TypeVar("Result")


class SharedTasks(Generic[Key, Result]):
    """Tasks by key, at most one per key at a time.

    A task does not depend on its callers: it has no deadline, and continues when they are cancelled
    or stop waiting. To wait for one, use `run` or asyncio.wait, or await it in asyncio.shield. A
    task that has ended is removed, so the next caller starts a new one.
    """

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[Result]] = {}

    def __len__(self) -> int:
        """Returns the number of keys that have a running task."""
        return len(self._tasks)

    def get(self, key: Key) -> "asyncio.Task[Result] | None":
        """Returns the running task of a key, if any."""
        return self._tasks.get(key)

    async def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Returns the result of a key's task. Starts one with `work` if none is running."""
        return await asyncio.shield(self.start(key, work))

    def start(
        self, key: Key, work: Callable[[], Coroutine[Any, Any, Result]]
    ) -> "asyncio.Task[Result]":
        """Returns the task of a key. Starts one with `work` if none is running."""
        [task] = self.start_batch([key], lambda _: work())
        return task

    def start_batch(
        self, keys: Sequence[Key], work: Callable[[Sequence[Key]], Coroutine[Any, Any, Result]]
    ) -> "set[asyncio.Task[Result]]":
        """Returns the tasks of several keys. Starts one task for all keys that have none."""
        missing = [key for key in keys if key not in self._tasks]
        if missing:
            task = detached(work(missing))
            self._tasks |= dict.fromkeys(missing, task)
            task.add_done_callback(lambda ended: self._forget(missing, ended))
        return {self._tasks[key] for key in keys}

    async def close(self) -> None:
        """Cancels all tasks and waits until they have ended."""
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, keys: Sequence[Key], task: "asyncio.Task[Result]") -> None:
        for key in keys:
            del self._tasks[key]
        # Waiting callers receive the error. If there are none, asyncio would log it; this prevents
        # that.
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()
