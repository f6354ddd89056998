"""Waits for asynchronous effects by polling, instead of sleeping for a fixed time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

PATIENCE_SECONDS = 120.0
"""How long a test waits for an effect that must occur: enough for a busy machine."""

Value = TypeVar("Value")


async def eventually(
    ask: Callable[[], Awaitable[Value]],
    holds: Callable[[Value], bool] = bool,
    *,
    within: float = PATIENCE_SECONDS,
) -> Value:
    """Calls `ask` until its result satisfies the condition, and returns that result.

    `within` is in seconds. An error of `ask` counts as a result that does not satisfy it. Raises
    AssertionError with the last result.
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
