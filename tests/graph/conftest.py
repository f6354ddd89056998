"""An empty graph database for each test, and queries of its contents."""

import itertools
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged

from deploy.local.stack import Stack
from services.chassis.config import KafkaSettings
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.graph.store.audiences import Audiences, Thresholds
from services.graph.store.lists import Lists
from services.graph.store.relations import Relations

LIMIT = 10

_serials = itertools.count(1)


class Graph:
    """Stores of two replicas, and queries. No relay runs, so events stay in the outbox."""

    def __init__(self, databases: list[Database], kafka: KafkaSettings, relay: Relay) -> None:
        self._database = databases[0]
        self._outboxes = outboxes = [Outbox(database, relay) for database in databases]
        self.stores = [
            Relations(database, outbox, follow_limit=LIMIT, mute_limit=LIMIT)
            for database, outbox in zip(databases, outboxes, strict=True)
        ]
        self.audiences = [
            Audiences(database, outbox, Thresholds(promote_at=4, demote_below=3))
            for database, outbox in zip(databases, outboxes, strict=True)
        ]
        self.lists = Lists(self._database)

    def limited(self, follow_limit: int) -> Relations:
        """Returns a store with another limit of follows."""
        return Relations(
            self._database, self._outboxes[0], follow_limit=follow_limit, mute_limit=LIMIT
        )

    async def rows(self, query: str) -> list[tuple]:
        async with self._database.connection() as connection:
            return await (await connection.execute(query)).fetchall()

    async def empty(self) -> None:
        """Deletes all rows of earlier tests."""
        tables = await self.rows(
            """
            SELECT relname FROM pg_class
             WHERE relnamespace = 'graph'::regnamespace AND relkind IN ('r', 'p')
               AND NOT relispartition AND relname NOT LIKE 'schema%'
            """
        )
        async with self._database.connection() as connection:
            # For nearly empty tables, this is faster than TRUNCATE.
            await connection.execute(";".join(f"DELETE FROM {table}" for (table,) in tables))

    async def edges(self) -> set[tuple[int, int]]:
        """Returns (follower, followee) pairs. Checks that both tables and all counts agree."""
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

    async def requests(self) -> set[tuple[int, int]]:
        """Returns (requester, target) pairs. Checks that both tables and the counts agree."""
        sent = await self.rows("SELECT requester_id, target_id FROM sent_requests")
        received = await self.rows("SELECT requester_id, target_id FROM received_requests")
        requested_of = await self.rows("SELECT follower_id, requested FROM followee_counts")
        assert sorted(sent) == sorted(received)
        assert +Counter(dict(requested_of)) == Counter(requester for requester, _ in sent)
        return set(sent)

    async def blocks(self) -> set[tuple[int, int]]:
        return set(await self.rows("SELECT blocker_id, blocked_id FROM blocks"))

    async def mutes(self) -> set[tuple[int, int]]:
        return set(await self.rows("SELECT muter_id, muted_id FROM mutes"))

    async def departures(self) -> set[tuple[int, int]]:
        return set(await self.rows("SELECT follower_id, followee_id FROM departures"))

    async def events(self) -> Counter[tuple[int, int]]:
        """Returns the number of events of each pair."""
        rows = await self.rows(
            "SELECT key, payload FROM outbox WHERE topic = 'follow_changed' ORDER BY id"
        )
        events = Counter()
        for key, payload in rows:
            event = FollowChanged.FromString(payload)
            assert key == event.follower_id
            events[event.follower_id, event.followee_id] += 1
        return events

    async def mode_events(self) -> list[int]:
        """Returns the accounts of all events about changes of mode."""
        rows = await self.rows(
            "SELECT key, payload FROM outbox WHERE topic = 'celebrity_changed' ORDER BY id"
        )
        assert all(key == CelebrityChanged.FromString(payload).account_id for key, payload in rows)
        return [key for key, _ in rows]

    async def version(self, reader_id: int) -> int:
        [check] = await self.stores[0].check([(reader_id, reader_id)])
        return check.version

    async def reading(self, reader_id: int) -> tuple[list[int], list[int], list[int]]:
        """Returns a reader's followees, pulled and hidden authors."""
        reading = await self.stores[0].reading(reader_id)
        return ids(reading.followees), ids(reading.pulled), ids(reading.hidden)


def ids(packed: bytes) -> list[int]:
    return [value for (value,) in struct.iter_unpack(">q", packed)]


@pytest.fixture(scope="package")
async def graph_of_all(shared_database_of: Callable, infrastructure: Stack) -> AsyncIterator[Graph]:
    settings = shared_database_of("graph")
    kafka = KafkaSettings(kafka_bootstrap=infrastructure.kafka_bootstrap)
    async with Database(settings) as one, Database(settings) as other:
        yield Graph([one, other], kafka, Relay(settings, kafka))


@pytest.fixture
async def graph(graph_of_all: Graph) -> Graph:
    """An empty graph."""
    await graph_of_all.empty()
    return graph_of_all


@pytest.fixture
def account() -> Callable[[], int]:
    """Returns a function that makes account ids on random shards."""
    return lambda: next(_serials) << 23 | random.randrange(8192) << 10
