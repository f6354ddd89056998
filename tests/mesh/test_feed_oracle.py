"""Whatever happens at once, every feed comes to what the oracle says, and shows no more meanwhile.

`PHOTOMESH_SEED` begins elsewhere.
"""

import asyncio
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import psycopg
import pytest
from redis.asyncio import Redis

from tests.eventually import eventually
from tests.mesh import crowd as mishaps
from tests.mesh.crowd import Crowd, crowd_of, quiet, running_with

SEED = int(os.environ.get("PHOTOMESH_SEED", "1"))

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

    def __init__(self, crowd: Crowd, rng: random.Random) -> None:
        self._crowd = crowd
        self._rng = rng
        # Whom many know; later people less and less.
        self._renown = list(
            itertools.accumulate(1 / (rank + 1) for rank in range(len(crowd.people)))
        )
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
                group.create_task(one(kind, self._rng.choice(self._crowd.people)))

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
        return self.renowned(but=actor)

    def renowned(self, but: int) -> int:
        while True:
            [somebody] = self._rng.choices(self._crowd.people, cum_weights=self._renown)
            if somebody != but:
                return somebody


async def check_all(crowd: Crowd, rng: random.Random) -> None:
    """Every feed, warm and cold, once all is quiet."""
    await quiet(crowd.mesh)
    await crowd.settle()
    await crowd.check_feeds(crowd.people, rng)
    await asyncio.to_thread(mishaps.flush_cache, crowd.mesh)
    await crowd.check_feeds(crowd.people, rng)


async def befall(*happenings: Callable[[], object]) -> None:
    """Lets one thing happen after the other."""
    for happen in happenings:
        await asyncio.to_thread(happen)


@pytest.fixture(scope="module")
def fickle(mesh) -> Iterator[None]:
    """Whoever has five followers is a celebrity, until there are fewer than four."""
    with running_with(
        mesh,
        graph={"PHOTOMESH_CELEBRITY_PROMOTE_AT": "5", "PHOTOMESH_CELEBRITY_DEMOTE_BELOW": "4"},
        fanout={"PHOTOMESH_FANOUT_BACKFILL": "4"},
    ):
        yield


async def test_feeds_come_to_what_the_oracle_says(mesh, fickle):
    rng = random.Random(SEED)
    since = await asyncio.to_thread(mishaps.ends, mesh)
    async with crowd_of(mesh, 12, rng) as crowd:
        bustle = Bustle(crowd, rng)
        await bustle.go_on(100)
        await asyncio.gather(
            bustle.go_on(150),
            befall(
                lambda: mishaps.crash(mesh, "feed"),
                lambda: mishaps.flush_cache(mesh),
                lambda: mishaps.redeliver(mesh, since, rng),
                lambda: mishaps.crash(mesh, "fanout"),
            ),
        )
        await check_all(crowd, rng)


def mode_of(mesh, account_id: int) -> tuple[str, int]:
    """Returns an account's mode, and how many changes of it were begun."""
    with psycopg.connect(mesh.database_url("graph")) as database:
        row = database.execute(
            "SELECT mode, change_id FROM celebrities WHERE account_id = %s", [account_id]
        ).fetchone()
    return row or ("PUSHED", 0)


async def test_promotion_and_demotion_while_posting_leave_no_gap_and_no_repeat(mesh):
    rng = random.Random(SEED)
    thresholds = {
        "PHOTOMESH_CELEBRITY_PROMOTE_AT": "50",
        "PHOTOMESH_CELEBRITY_DEMOTE_BELOW": "45",
    }
    with running_with(mesh, graph=thresholds):
        async with crowd_of(mesh, 56, rng) as crowd:
            author, *fans = crowd.people
            readers, loyal, waverers = fans[:3], fans[:44], fans[44:]

            async def change(kind: str, mode: str) -> None:
                await asyncio.gather(*(crowd.do(kind, fan, author) for fan in waverers))
                await eventually(
                    lambda: asyncio.to_thread(mode_of, mesh, author),
                    lambda told: told[0] == mode,
                    within=60,
                )

            await asyncio.gather(*(crowd.do("follow", fan, author) for fan in loyal))
            over = asyncio.Event()

            async def write() -> None:
                while not over.is_set():
                    await crowd.make_post(author)

            async def page(reader: int) -> int:
                """Each time all that was seen before, and all of the author's below the newest."""
                pagings, newest = 0, 0
                while not over.is_set():
                    paging = await crowd.read_all(reader, lambda: rng.randint(1, 40))
                    if paging.degraded:
                        # Some post could not be told in time, and the page says so.
                        continue
                    newest = max([newest, *paging.seen])
                    due = {post for post in crowd.posts[author] if post <= newest}
                    lacking = sorted(due - set(paging.seen))
                    assert not lacking, f"{reader} lacks {lacking} of {paging.seen}"
                    pagings += 1
                return pagings

            async def promote_and_demote() -> None:
                await change("follow", "PULLED")
                await change("unfollow", "PUSHED")
                await change("follow", "PULLED")
                over.set()

            *pagings, _, _ = await asyncio.gather(
                *map(page, readers), write(), promote_and_demote()
            )
            assert min(pagings) > 4
            assert (await asyncio.to_thread(mode_of, mesh, author))[1] >= 3
            await check_all(crowd, rng)


class Rebuilds:
    """Sees from the cache's own commands who rebuilds what, and when."""

    def __init__(self) -> None:
        self.under_way: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    async def watch(self, mesh, ready: asyncio.Event) -> None:
        async with Redis.from_url(mesh.valkey_url) as valkey, valkey.monitor() as monitor:
            ready.set()
            async for event in monitor.listen():
                self._see(event["command"])

    def _see(self, command: str) -> None:
        match command.split():
            case ["ZADD", timeline, "0", marker] if marker.startswith("rebuild:"):
                assert timeline not in self.under_way, f"two rebuild {timeline} at a time"
                self.under_way[timeline] = marker
                self.counts[timeline] += 1
            # Whoever has finished takes the marker out; whoever gives up looks for it.
            case ["ZREM" | "ZSCORE", timeline, marker] if self.under_way.get(timeline) == marker:
                del self.under_way[timeline]


async def test_a_flushed_cache_costs_no_reader_an_error_and_each_one_rebuild(mesh, fickle):
    rng = random.Random(SEED)
    flushes = 5
    async with crowd_of(mesh, 12, rng) as crowd:
        celebrity, *others = crowd.people
        await asyncio.gather(*(crowd.do("follow", fan, celebrity) for fan in others))
        for fan in others:
            await crowd.do("follow", fan, rng.choice([each for each in others if each != fan]))
        await asyncio.gather(*(crowd.make_post(each) for each in crowd.people * 3))
        await quiet(mesh)
        assert (await asyncio.to_thread(mode_of, mesh, celebrity))[0] == "PULLED"

        rebuilds, watching, over = Rebuilds(), asyncio.Event(), asyncio.Event()
        # Nobody asks twice here: what fails, fails the test.
        crowd.patience = 0
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(rebuilds.watch(mesh, watching))
            await watching.wait()

            async def read(reader: int) -> None:
                while not over.is_set():
                    paging = await crowd.read_all(reader, lambda: rng.randint(1, 30))
                    lacking = set(before[reader]) - set(paging.seen)
                    assert paging.degraded or not lacking, f"{reader} lacks {lacking}"

            async def pages() -> int:
                return crowd.pages

            before = {reader: crowd.oracle.feed(reader) for reader in crowd.people}
            readers = [group.create_task(read(reader)) for reader in crowd.people for _ in range(2)]
            for _ in range(flushes):
                await asyncio.to_thread(mishaps.flush_cache, mesh)
                await crowd.make_post(rng.choice(crowd.people))
                enough = crowd.pages + 50
                await eventually(pages, lambda read, enough=enough: read >= enough)
            over.set()
            await asyncio.gather(*readers)
            watch.cancel()
        assert set(rebuilds.counts) >= {f"feed:{{{reader}}}" for reader in crowd.people}
        assert max(rebuilds.counts.values()) <= flushes + 1
        await check_all(crowd, rng)
