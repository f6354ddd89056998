"""Walks over an account's followers: streams them from graph, writes to the cache in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.fanout.peers import Peers

_MAX_FEEDS = 500
"""Maximum number of feeds per script, if it adds one entry to each. Such a script takes about 5 ms,
during which the cache serves no other request."""

_MAX_ENTRIES = 1000
"""Maximum number of entries per script, if it adds several to each feed."""

_MAX_CONCURRENT = 4
"""Maximum number of concurrent scripts per process: one runs, the others are queued at the
cache."""

_MAX_IN_FLIGHT = 2
"""Maximum number of batches that one walk has running or queued."""

_SAVE_EVERY = 5
"""A walk saves its progress after this many batches."""

Step = Callable[[Sequence[int]], Awaitable[Any]]
"""Processes a batch of followers."""

SaveProgress = Callable[[int, int], Awaitable[None]]
"""Receives the id of the last follower processed, and the number of followers processed."""


class Walks:
    """The walks of one process.

    Each walk has at most two batches running or queued for the four slots, which are granted in
    order of request. So a walk over a small audience, or over the first chunk of a large one, ends
    soon: each time, it waits for at most two batches of each other walk, and at most 8 other walks
    are over chunks of large audiences.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def walk(
        self,
        account_id: int,
        step: Step,
        *,
        after: int = 0,
        until: int = 0,
        entries: int = 1,
        save_progress: SaveProgress | None = None,
    ) -> int:
        """Runs a step for all followers with ids above `after`, up to `until` (0: to the last).

        `entries`: how many entries the step adds to each feed. Returns the number of followers
        processed.
        """
        size = min(_MAX_FEEDS, _MAX_ENTRIES // max(1, entries))
        in_flight: deque[tuple[Sequence[int], asyncio.Task[None]]] = deque()
        reached = batches = 0

        async def finish_oldest() -> None:
            nonlocal reached, batches
            batch, task = in_flight[0]
            await task
            in_flight.popleft()
            reached += len(batch)
            batches += 1
            if save_progress and batches % _SAVE_EVERY == 0:
                await save_progress(batch[-1], reached)

        try:
            # While batches are written, gRPC buffers the stream.
            async for ids in self._peers.followers(account_id, after=after, until=until):
                for start in range(0, len(ids), size):
                    if len(in_flight) == _MAX_IN_FLIGHT:
                        await finish_oldest()
                    batch = ids[start : start + size]
                    in_flight.append((batch, asyncio.create_task(self._run(step, batch))))
            while in_flight:
                await finish_oldest()
        finally:
            for _, task in in_flight:
                task.cancel()
            await asyncio.gather(*(task for _, task in in_flight), return_exceptions=True)
        return reached

    async def _run(self, step: Step, batch: Sequence[int]) -> None:
        async with self._slots:
            await step(batch)
