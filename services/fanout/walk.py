"""Walks through an account's followers: streamed from graph, written to the cache in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.fanout.peers import Peers

_BATCH = 500
"""Maximum number of feeds per script, if it changes little in each: about 5 ms, during which the
cache serves no other request."""

_ENTRIES = 1000
"""Maximum number of entries that one script adds, if it adds many to each feed."""

_AT_A_TIME = 4
"""Maximum number of concurrent scripts per process: one runs, the others are queued at the
cache."""

_AHEAD = 2
"""Maximum number of batches that one walk has running or queued."""

_KEEP_EVERY = 5
"""A walk reports its progress after this many batches."""

Step = Callable[[Sequence[int]], Awaitable[Any]]
"""Processes a batch of followers."""

Keep = Callable[[int, int], Awaitable[None]]
"""Receives the id of the last follower processed, and the number of followers processed."""


class Walks:
    """The walks of one process.

    Each walk has at most two batches running or queued for the four slots, which are granted in
    order of request. So a walk through few followers, or through the first chunk of many, ends
    soon: it waits for two batches of each other walk, and at most 8 of these are of chunks of large
    audiences.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def walk(
        self,
        account_id: int,
        step: Step,
        *,
        after: int = 0,
        until: int = 0,
        entries: int = 1,
        keep: Keep | None = None,
    ) -> int:
        """Runs a step for all followers with ids above `after`, up to `until` (0: to the last).

        `entries`: how many entries the step adds to each feed. Returns the number of followers
        processed.
        """
        size = min(_BATCH, _ENTRIES // max(1, entries))
        under_way: deque[tuple[Sequence[int], asyncio.Task[None]]] = deque()
        reached = batches = 0

        async def finish_oldest() -> None:
            nonlocal reached, batches
            batch, task = under_way[0]
            await task
            under_way.popleft()
            reached += len(batch)
            batches += 1
            if keep and batches % _KEEP_EVERY == 0:
                await keep(batch[-1], reached)

        try:
            # While batches are written, the stream continues into gRPC's buffers.
            async for ids in self._peers.followers(account_id, after=after, until=until):
                for start in range(0, len(ids), size):
                    if len(under_way) == _AHEAD:
                        await finish_oldest()
                    batch = ids[start : start + size]
                    under_way.append((batch, asyncio.create_task(self._do(step, batch))))
            while under_way:
                await finish_oldest()
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        return reached

    async def _do(self, step: Step, batch: Sequence[int]) -> None:
        async with self._places:
            await step(batch)
