"""Waiting for what happens asynchronously, without a sleep that is ever too short or too long."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

PATIENCE_SECONDS = 120.0
"""How long a test waits for an event that must come: so long that no busy machine exceeds it."""

Value = TypeVar("Value")


async def eventually(
    ask: Callable[[], Awaitable[Value]],
    holds: Callable[[Value], bool] = bool,
    *,
    within: float = PATIENCE_SECONDS,
) -> Value:
    """Asks until the answer holds and returns it; an AssertionError shows the last one.

    Takes seconds. An error of `ask` counts as an answer that does not hold.
    """
    deadline = time.monotonic() + within
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = await ask()
        except Exception as error:
            last = error
        else:
            if holds(answer):
                return answer
            last = answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {within} s; last: {last!r}")
