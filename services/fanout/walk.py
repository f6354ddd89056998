"""Going through an account's followers: streamed from graph, written to the cache in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.fanout.peers import Peers

_BATCH = 500
"""For how many feeds one script is run, when it changes little in each: some 5 ms, for which the
cache answers nobody else."""

_ENTRIES = 1000
"""How many entries one script may add, when it adds many to each feed."""

_AT_A_TIME = 4
"""How many scripts of one process are under way at a time: one runs, the others lie ready."""

_AHEAD = 2
"""How many of these may be of one walk."""

_KEEP_EVERY = 5
"""After how many batches a walk tells how far it is."""

Step = Callable[[Sequence[int]], Awaitable[Any]]
"""What is done for a batch of followers."""

Keep = Callable[[int, int], Awaitable[None]]
"""Is told the last follower for whom it was done, and for how many it was."""


class Walks:
    """The walks of one process.

    Each has at most two batches waiting for one of the four places, and places are given in the
    order of asking. So whoever walks through few followers, or the first of many, is soon done:
    they wait for two batches of each walk that is under way, of which there are at most 8 through
    the other chunks of large audiences.
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
        """Does a step for all followers with ids above `after`, up to `until` (0: to the last).

        `entries` tells how many entries the step adds to each feed. Returns for how many followers
        it was done.
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
            # While batches are written the stream goes on, as far as gRPC's buffers reach.
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
