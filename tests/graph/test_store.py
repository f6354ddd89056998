"""Follows in a real database: both directions, the counts and the events always agree."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from photomesh.graph.v1.events_pb2 import FollowChanged

from services.common.config import KafkaSettings
from services.common.database import Database
from services.common.outbox import Outbox, Relay
from services.graph.errors import FollowLimit
from services.graph.store import GraphStore

LIMIT = 10

_serials = itertools.count(1)


class Graph:
    """Two replicas' stores, and what the database holds. No relay runs, so events stay."""

    def __init__(self, databases: list[Database], kafka: KafkaSettings, relay: Relay) -> None:
        self._database = databases[0]
        self.stores = [
            GraphStore(database, Outbox(database, relay), follow_limit=LIMIT)
            for database in databases
        ]

    async def rows(self, query: str) -> list[tuple]:
        async with self._database.connection() as connection:
            return await (await connection.execute(query)).fetchall()

    async def edges(self) -> set[tuple[int, int]]:
        """Returns who follows whom; both tables and all counts must say the same."""
        follows = await self.rows("SELECT follower_id, followee_id FROM follows")
        followers = await self.rows("SELECT follower_id, followee_id FROM followers")
        followees_of = await self.rows("SELECT follower_id, followees FROM followee_counts")
        followers_of = await self.rows(
            "SELECT followee_id, sum(followers) FROM follower_counts GROUP BY followee_id"
        )
        assert sorted(follows) == sorted(followers)
        assert +Counter(dict(followees_of)) == Counter(follower for follower, _ in follows)
        assert +Counter(dict(followers_of)) == Counter(followee for _, followee in follows)
        return set(follows)

    async def events(self) -> Counter[tuple[int, int]]:
        """Returns how many events each pair has had."""
        rows = await self.rows("SELECT topic, key, payload FROM outbox")
        events = Counter()
        for topic, key, payload in rows:
            event = FollowChanged.FromString(payload)
            assert (topic, key) == ("follow_changed", event.follower_id)
            events[event.follower_id, event.followee_id] += 1
        return events


@pytest.fixture
async def graph(database_of: Callable, kafka: KafkaSettings) -> AsyncIterator[Graph]:
    settings = database_of("graph")
    async with Database(settings) as one, Database(settings) as other:
        yield Graph([one, other], kafka, Relay(settings, kafka))


def account() -> int:
    """Returns the id of an account on some shard."""
    return next(_serials) << 23 | random.randrange(8192) << 10


async def test_whatever_happens_at_once_all_that_is_kept_of_follows_agrees(graph):
    accounts = [account() for _ in range(8)]
    rng = random.Random(7)

    async def click(store: GraphStore) -> None:
        for _ in range(40):
            follower_id, followee_id = rng.sample(accounts, 2)
            verb = rng.choice([store.follow, store.unfollow])
            await verb(follower_id, followee_id)

    await asyncio.gather(*(click(store) for store in graph.stores * 6))

    edges, events = await graph.edges(), await graph.events()
    assert edges
    # Each event tells one change, so an edge that is there has had an odd number of them.
    assert {pair for pair, count in events.items() if count % 2} == edges


async def test_one_follow_wanted_twenty_times_at_once_is_one_change(graph):
    fan, star = account(), account()

    await asyncio.gather(*(store.follow(fan, star) for store in graph.stores * 10))
    assert await graph.edges() == {(fan, star)}
    assert await graph.events() == {(fan, star): 1}

    await asyncio.gather(*(store.unfollow(fan, star) for store in graph.stores * 10))
    assert await graph.edges() == set()
    assert await graph.events() == {(fan, star): 2}


async def test_the_limit_is_exact_also_for_twenty_follows_at_once(graph):
    store, fan = graph.stores[0], account()
    before = [account() for _ in range(LIMIT - 3)]
    for star in before:
        await store.follow(fan, star)

    wanted = [account() for _ in range(20)]
    outcomes = await asyncio.gather(
        *(
            replica.follow(fan, star)
            for replica, star in zip(itertools.cycle(graph.stores), wanted)
        ),
        return_exceptions=True,
    )

    done = {star for star, outcome in zip(wanted, outcomes, strict=True) if outcome is None}
    assert len(done) == 3
    assert all(isinstance(outcome, FollowLimit) for outcome in outcomes if outcome is not None)
    assert await graph.edges() == {(fan, star) for star in [*before, *done]}
    assert set(await graph.events()) == await graph.edges()

    # Whom one follows already one may follow again; who makes room may follow another.
    await store.follow(fan, before[0])
    with pytest.raises(FollowLimit):
        await store.follow(fan, account())
    await store.unfollow(fan, before[0])
    await store.follow(fan, account())


async def test_batches_of_followers_meet_without_gap_or_repeat(graph):
    store, star, other = graph.stores[0], account(), account()
    fans = [account() for _ in range(11)]
    for fan in random.sample(fans, len(fans)):
        await store.follow(fan, star)
    await store.follow(fans[0], other)

    seen: list[int] = []
    while batch := await store.followers(
        star, after=seen[-1] if seen else 0, until=max(fans), limit=4
    ):
        seen += batch

    assert seen == sorted(fans)
    assert await store.followees(fans[0]) == sorted([star, other])
    assert await store.followees(star) == []


async def test_follows_are_checked_in_the_order_asked_for(graph):
    store = graph.stores[0]
    accounts = [account() for _ in range(6)]
    rng = random.Random(3)
    pairs = [(one, other) for one in accounts for other in accounts if one != other]
    edges = set(rng.sample(pairs, 12))
    for follower_id, followee_id in edges:
        await store.follow(follower_id, followee_id)

    asked = rng.choices(pairs, k=100)

    assert await store.check(asked) == [pair in edges for pair in asked]
