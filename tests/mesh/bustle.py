"""People who do things at random, on a graph that is made, or read from a file."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.mesh.crowd import Crowd

# How often each is done, in relation to the others.
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

# To whom each is done, if there is somebody.
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

_WIDTH = 8
"""How many operations are under way at a time."""


class Bustle:
    """People who do things at random, several at once, each person's own in order."""

    def __init__(self, crowd: Crowd, rng: random.Random, renown: Sequence[float]) -> None:
        """Takes how many know each of the people, in relation to the others."""
        self._crowd = crowd
        self._rng = rng
        self._renown = list(itertools.accumulate(renown))
        # A person writes with one device and reads with another.
        self._devices: dict[tuple[int, bool], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._kinds, self._weights = list(WEIGHTS), list(WEIGHTS.values())

    async def go_on(self, operations: int) -> None:
        """Does so many operations."""
        places = asyncio.Semaphore(_WIDTH)

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
                # Whom many know posts more.
                is_known = kind == "post" and self._rng.random() < 0.7
                actor = self._renowned() if is_known else self._rng.choice(self._crowd.people)
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
            await crowd.do(kind, actor, self._somebody(kind, actor))

    def _somebody(self, kind: str, actor: int) -> int:
        tied = self._crowd.ties[_TIES[kind], actor] if kind in _TIES else ()
        if tied:
            return self._rng.choice(sorted(tied))
        while (somebody := self._renowned()) == actor:
            pass
        return somebody

    def _renowned(self) -> int:
        [somebody] = self._rng.choices(self._crowd.people, cum_weights=self._renown)
        return somebody


def power_law(count: int) -> list[float]:
    """Returns how many know each of so many people: the first are known to most."""
    return [1 / (rank + 1) for rank in range(count)]


def made_graph(rng: random.Random) -> list[tuple[int, int]]:
    """Returns who follows whom, as numbers below 1,000."""
    people = range(1_000)
    renown = power_law(len(people))
    return sorted(
        {
            (fan, star)
            for fan in people
            for star in rng.choices(people, renown, k=min(5 + int(rng.paretovariate(0.8)), 200))
            if fan != star
        }
    )


def read_graph(path: Path) -> list[tuple[int, int]]:
    """Returns who follows whom according to a file of pairs of names, as numbers from 0."""
    numbers: dict[str, int] = {}
    return [
        (numbers.setdefault(one, len(numbers)), numbers.setdefault(other, len(numbers)))
        for one, other, *_ in (line.split() for line in path.read_text().splitlines())
        if one != other
    ]
