"""Ends streams that hardly send anything."""

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
    """Yields a client's messages for as long as they come at a least speed on average.

    The wait for the client may take `patience` seconds in all. Each byte that arrives allows
    another 1 / `bytes_per_second` of a second, up to `patience` again. Only the wait for messages
    counts: whatever the reader does between them, such as waiting for S3, does not.

    Raises:
        StreamTooSlow: the client used up its time.
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
        bought = size_of(message) / bytes_per_second
        left = min(left - (clock() - began) + bought, patience)
        yield message
