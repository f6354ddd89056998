"""Under concurrent operations, feeds converge to the oracle's and never show hidden posts.

Hypothesis runs one step at a time, so its operations never overlap, but most bugs here came from
overlapping operations. So the first test runs random concurrent operations. Their seed reproduces
the operations, not their interleaving. Therefore the oracle accepts every order that the responses
allow, and a failure prints the history of the accounts and posts involved. A second test has
Hypothesis draw single steps against the same oracle: it finds less, but shrinks its examples.

`PHOTOMESH_SEED` sets the seed. With `PHOTOMESH_PROVE` (`make prove`) there are 20,000 operations
(`PHOTOMESH_OPERATIONS`) on a graph of about 1,000 users, which follows a power law or is read from
the file `PHOTOMESH_EDGES`, in which each line is a pair of names.
"""

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from deploy.local.stack import Stack
from services.domain.timelines.layout import FEED
from services.feed.authors import FRESH_SECONDS
from tests.eventually import eventually
from tests.mesh import mishaps
from tests.mesh.bustle import RandomActivity, power_law, random_graph, read_graph
from tests.mesh.crowd import DEEDS, Crowd, crowd_of
from tests.mesh.mishaps import quiet, running_with

pytestmark = pytest.mark.prove

SEED = int(os.environ.get("PHOTOMESH_SEED", "1"))
PROVING = bool(os.environ.get("PHOTOMESH_PROVE"))
EDGES = os.environ.get("PHOTOMESH_EDGES", "")
OPERATIONS = int(os.environ.get("PHOTOMESH_OPERATIONS", "20000"))

Value = TypeVar("Value")

_PEOPLE = 6
"""How many users take single steps: enough for one of them to be a celebrity."""

PERSON = st.integers(0, _PEOPLE - 1)


async def check_all(crowd: Crowd, rng: random.Random) -> None:
    """Waits until the mesh is idle, then checks every feed, warm and cold."""
    await quiet(crowd.mesh, within=300)
    await crowd.resolve()
    # The newest posts of celebrities may appear with this delay.
    await asyncio.sleep(FRESH_SECONDS)
    await crowd.check_feeds(crowd.people, rng)
    await asyncio.to_thread(mishaps.flush_cache, crowd.mesh)
    await crowd.check_feeds(crowd.people, rng)


def faults(crowd: Crowd, rng: random.Random) -> list[Callable[[], Awaitable[None]]]:
    """Returns faults that can occur at any time."""
    return [
        lambda: asyncio.to_thread(mishaps.crash, crowd.mesh, "feed"),
        lambda: asyncio.to_thread(mishaps.flush_cache, crowd.mesh),
        lambda: crowd.repeat_events(rng, 100),
        lambda: asyncio.to_thread(mishaps.crash, crowd.mesh, "fanout"),
    ]


@pytest.fixture(scope="module")
def low_thresholds(mesh) -> Iterator[None]:
    """An account with five followers is a celebrity until it has fewer than four."""
    with running_with(
        mesh,
        graph={"PHOTOMESH_CELEBRITY_PROMOTE_AT": "5", "PHOTOMESH_CELEBRITY_DEMOTE_BELOW": "4"},
        fanout={"PHOTOMESH_FANOUT_BACKFILL": "4"},
    ):
        yield


async def test_feeds_converge_to_the_oracle(mesh, low_thresholds):
    rng = random.Random(SEED)
    async with crowd_of(mesh, 12, rng) as crowd:
        activity = RandomActivity(crowd, rng, power_law(12))
        await activity.run(100)
        for fault in faults(crowd, rng):
            await asyncio.gather(activity.run(60), fault())
        await check_all(crowd, rng)


class Steps(RuleBasedStateMachine):
    """The same operations one at a time, so that Hypothesis can shrink failures."""

    posts: Bundle[tuple[int, int]] = Bundle("posts")

    def __init__(self, mesh: Stack, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` runs in another thread and executes all steps."""
        super().__init__()
        self._mesh = mesh
        self._loop = loop
        self._rng = random.Random(SEED)
        self._exit = AsyncExitStack()
        self._crowd = self._wait(self._exit.enter_async_context(crowd_of(mesh, _PEOPLE, self._rng)))

    def _wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @rule(kind=st.sampled_from(sorted(DEEDS)), actor=PERSON, other=PERSON)
    def act(self, kind: str, actor: int, other: int) -> None:
        if actor != other:
            people = self._crowd.people
            self._wait(self._crowd.do(kind, people[actor], people[other]))

    @rule(star=PERSON)
    def become_celebrity(self, star: int) -> None:
        for fan in range(_PEOPLE):
            self.act("follow", fan, star)

    @rule(actor=PERSON, private=st.booleans())
    def set_private(self, actor: int, private: bool) -> None:
        self._wait(self._crowd.set_private(self._crowd.people[actor], private))

    @rule(target=posts, author=PERSON)
    def post(self, author: int) -> tuple[int, int]:
        return author, self._wait(self._crowd.make_post(self._crowd.people[author]))

    @rule(kind=st.sampled_from(["delete", "archive", "unarchive"]), post=posts)
    def change(self, kind: str, post: tuple[int, int]) -> None:
        author, post_id = post
        self._wait(self._crowd.do(kind, self._crowd.people[author], post_id))

    @rule(reader=PERSON, size=st.integers(1, 5))
    def read(self, reader: int, size: int) -> None:
        self._wait(self._crowd.read(self._crowd.people[reader], size))

    @rule(seed=st.integers(0, 9))
    def disturb(self, seed: int) -> None:
        # Both also repair feeds, so they must be rare.
        if seed == 0:
            mishaps.flush_cache(self._mesh)
        if seed == 1:
            self._wait(self._crowd.repeat_events(random.Random(seed), 10))

    @invariant()
    def no_hidden_post_is_shown(self) -> None:
        self._wait(self._read_feeds())

    async def _read_feeds(self) -> None:
        for reader in self._crowd.people:
            await self._crowd.read_all(reader, lambda: 10)

    def teardown(self) -> None:
        try:
            self._wait(check_all(self._crowd, self._rng))
        finally:
            self._wait(self._exit.aclose())


async def test_feeds_converge_to_the_oracle_step_by_step(mesh, low_thresholds):
    loop = asyncio.get_running_loop()
    steps = settings(
        max_examples=100 if PROVING else 3,
        stateful_step_count=25,
        derandomize=not PROVING,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, lambda: Steps(mesh, loop), settings=steps)


@pytest.mark.skipif(not PROVING, reason="takes minutes; the first test is a short version of it")
async def test_a_thousand_feeds_converge_to_the_oracle(mesh):
    rng = random.Random(SEED)
    edges = read_graph(Path(EDGES)) if EDGES else random_graph(rng)
    count = 1 + max(itertools.chain.from_iterable(edges))
    followers = Counter(star for _, star in edges)
    # The top 8 are celebrities, the next ones at times; large audiences are cut into chunks.
    *_, (_, threshold) = followers.most_common(8)
    settings = {
        "PHOTOMESH_CELEBRITY_PROMOTE_AT": str(threshold),
        "PHOTOMESH_CELEBRITY_DEMOTE_BELOW": str(threshold),
    }
    with running_with(mesh, graph=settings, fanout={"PHOTOMESH_FANOUT_CHUNK_SIZE": "100"}):
        async with crowd_of(mesh, count, rng) as crowd:
            activity = RandomActivity(crowd, rng, [1.0 + followers[each] for each in range(count)])
            await crowd.begin_with(edges)
            for _ in range(4):
                for _ in range(OPERATIONS // 4 // 400):
                    fault = rng.choice(faults(crowd, rng))
                    await asyncio.gather(activity.run(400), fault())
                await quiet(mesh, within=300)
                await crowd.resolve()
                await asyncio.sleep(FRESH_SECONDS)
                await crowd.check_feeds(rng.sample(crowd.people, 100), rng)
            await check_all(crowd, rng)


def mode_of(mesh, account_id: int) -> tuple[str, int]:
    """Returns an account's mode, and how many changes of it have begun."""
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
                    lambda found: found[0] == mode,
                )

            await asyncio.gather(*(crowd.do("follow", fan, author) for fan in loyal))
            over = asyncio.Event()

            async def pages() -> int:
                return crowd.pages

            async def write() -> None:
                # No faster than the readers, so that other events do not queue behind posts.
                while not over.is_set():
                    enough = crowd.pages + 5
                    await crowd.make_post(author)
                    await eventually(
                        pages,
                        lambda read, enough=enough: read >= enough or over.is_set(),
                    )

            pagings = dict.fromkeys(readers, 0)

            async def page(reader: int) -> None:
                """Every read has the posts seen before and all of the author's up to the newest."""
                newest = 0
                while not over.is_set():
                    paging = await crowd.read_all(reader, lambda: rng.randint(1, 40))
                    if paging.degraded:
                        # A service answered too late, and the page is marked as incomplete.
                        continue
                    newest = max([newest, *paging.seen])
                    due = {post for post in crowd.posts[author] if post <= newest}
                    lacking = sorted(due - set(paging.seen))
                    assert not lacking, f"{reader} lacks {lacking} of {paging.seen}"
                    pagings[reader] += 1

            async def least_pagings() -> int:
                return min(pagings.values())

            async def promote_and_demote() -> None:
                await change("follow", "PULLED")
                await change("unfollow", "PUSHED")
                await change("follow", "PULLED")
                await eventually(least_pagings, lambda least: least > 4)
                over.set()

            await asyncio.gather(*map(page, readers), write(), promote_and_demote())
            assert (await asyncio.to_thread(mode_of, mesh, author))[1] >= 3
            await check_all(crowd, rng)


class Rebuilds:
    """Follows rebuilds by monitoring the commands that the cache receives."""

    def __init__(self) -> None:
        self.in_progress: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    async def watch(self, mesh, ready: asyncio.Event) -> None:
        async with Redis.from_url(mesh.valkey_url) as valkey, valkey.monitor() as monitor:
            ready.set()
            async for event in monitor.listen():
                self._see(event["command"])

    def _see(self, command: str) -> None:
        match command.split():
            case ["RPUSH", timeline, marker] if marker.startswith("rebuild:"):
                assert timeline not in self.in_progress, f"two rebuild {timeline} at a time"
                self.in_progress[timeline] = marker
                self.counts[timeline] += 1
            # A rebuild that finishes or is abandoned removes its marker.
            case ["LREM", timeline, "-1", marker] if self.in_progress.get(timeline) == marker:
                del self.in_progress[timeline]


async def test_flushing_the_cache_causes_no_errors_and_one_rebuild_per_reader(mesh, low_thresholds):
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
        # No retries: a call that fails, fails the test.
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
        assert set(rebuilds.counts) >= {f"{FEED}:{{{reader}}}" for reader in crowd.people}
        assert max(rebuilds.counts.values()) <= flushes + 1
        await check_all(crowd, rng)
