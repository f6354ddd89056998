"""Random operations by many users, on a generated graph or one read from a file."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.mesh.crowd import Crowd

# The relative frequency of each operation.
WEIGHTS = {
    "follow": 14,
    "unfollow": 6,
    "accept": 6,
    "decline": 1,
    "remove": 3,
    "block": 3,
    "unblock": 3,
    "mute": 3,
    "unmute": 3,
    "private": 2,
    "public": 2,
    "post": 18,
    "delete": 5,
    "archive": 4,
    "unarchive": 4,
    "read": 30,
}

# The accounts from which the target of each operation is chosen, if there are any.
_TIES = {
    "unfollow": "followees",
    "mute": "followees",
    "accept": "requesters",
    "decline": "requesters",
    "remove": "followers",
    "block": "followers",
    "unblock": "blocked",
    "unmute": "muted",
}

_CONCURRENCY = 8
"""How many operations run at a time."""


class RandomActivity:
    """Random operations, several at a time. Those of one user run in order."""

    def __init__(self, crowd: Crowd, rng: random.Random, popularity: Sequence[float]) -> None:
        """`popularity`: the relative popularity of each user."""
        self._crowd = crowd
        self._rng = rng
        self._popularity = list(itertools.accumulate(popularity))
        # Each user writes with one device and reads with another.
        self._devices: dict[tuple[int, bool], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._kinds, self._weights = list(WEIGHTS), list(WEIGHTS.values())

    async def run(self, operations: int) -> None:
        """Runs the given number of operations."""
        places = asyncio.Semaphore(_CONCURRENCY)

        async def one(kind: str, actor: int) -> None:
            try:
                async with self._devices[actor, kind == "read"]:
                    await self._do(kind, actor)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            for _ in range(operations):
                await places.acquire()
                [kind] = self._rng.choices(self._kinds, self._weights)
                # Popular users post more.
                popular = kind == "post" and self._rng.random() < 0.7
                actor = self._popular_user() if popular else self._rng.choice(self._crowd.people)
                group.create_task(one(kind, actor))

    async def _do(self, kind: str, actor: int) -> None:
        crowd, rng = self._crowd, self._rng
        if kind == "read":
            if rng.random() < 0.2:
                crowd.pagings.pop(actor, None)
            await crowd.read(actor, rng.randint(1, 30))
        elif kind in ("private", "public"):
            await crowd.set_private(actor, kind == "private")
        elif kind == "post" or kind in ("delete", "archive", "unarchive"):
            own = crowd.posts[actor]
            if kind == "post" or not own:
                await crowd.make_post(actor)
            else:
                await crowd.do(kind, actor, rng.choice(own[-10:]))
        else:
            await crowd.do(kind, actor, self._target(kind, actor))

    def _target(self, kind: str, actor: int) -> int:
        tied = self._crowd.ties[_TIES[kind], actor] if kind in _TIES else ()
        if tied:
            return self._rng.choice(sorted(tied))
        while (target := self._popular_user()) == actor:
            pass
        return target

    def _popular_user(self) -> int:
        [user] = self._rng.choices(self._crowd.people, cum_weights=self._popularity)
        return user


def power_law(count: int) -> list[float]:
    """Returns the relative popularity of each user, highest first."""
    return [1 / (rank + 1) for rank in range(count)]


def random_graph(rng: random.Random) -> list[tuple[int, int]]:
    """Returns (follower, followee) pairs of about 1,000 users, as numbers from 0."""
    people = range(1_000)
    popularity = power_law(len(people))
    return sorted(
        {
            (fan, star)
            for fan in people
            for star in rng.choices(people, popularity, k=min(5 + int(rng.paretovariate(0.8)), 200))
            if fan != star
        }
    )


def read_graph(path: Path) -> list[tuple[int, int]]:
    """Returns the pairs of names in a file as (follower, followee) numbers from 0."""
    numbers: dict[str, int] = {}
    return [
        (numbers.setdefault(one, len(numbers)), numbers.setdefault(other, len(numbers)))
        for one, other, *_ in (line.split() for line in path.read_text().splitlines())
        if one != other
    ]
