"""Ends streams that are too slow."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from services.media.errors import StreamTooSlow

Message = TypeVar("Message")


async def paced(
    messages: AsyncIterator[Message],
    size_of: Callable[[Message], int],
    *,
    bytes_per_second: int,
    patience: float,
) -> AsyncIterator[Message]:
    """Yields a client's messages while their average speed is above a minimum.

    The client has a time budget of `patience` seconds. Waiting for its messages consumes the
    budget; each received byte adds 1 / `bytes_per_second` seconds, up to `patience` in total. The
    time that the consumer spends between messages, for example waiting for S3, does not count.

    Raises:
        StreamTooSlow: the client used up its budget.
    """
    clock = asyncio.get_running_loop().time
    left = patience
    while True:
        began = clock()
        try:
            async with asyncio.timeout(left):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise StreamTooSlow(bytes_per_second) from None
        earned = size_of(message) / bytes_per_second
        left = min(left - (clock() - began) + earned, patience)
        yield message
