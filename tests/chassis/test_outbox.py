"""The outbox in PostgreSQL: buckets, their locks, and relays that share them."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from kafka import KafkaConsumer
from psycopg import sql

from deploy.database import SERVICES, provision_database
from deploy.database import Database as DatabaseToProvision
from services.chassis.config import DatabaseSettings
from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database
from services.chassis.events import outbox as outbox_module
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.events.topics import topic_of
from tests.chassis.test_events import event_type, publish, quick_kafka, running
from tests.eventually import eventually

__all__ = ["event_type", "quick_kafka"]

BUCKETS = 16


@pytest.fixture
def settings(database_of: Callable) -> DatabaseSettings:
    return database_of("graph")


@asynccontextmanager
async def relayed(settings, kafka, *, relays: int = 1) -> AsyncIterator[Outbox]:
    """An outbox, while relays run. The first is woken by each commit, the others poll."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(settings))
        first, *others = [Relay(settings, kafka) for _ in range(relays)]
        for relay in (first, *others):
            await stack.enter_async_context(running(relay.run))
        yield Outbox(database, first)


def key_in(bucket: int, number: int = 0) -> int:
    """Returns a key whose events lie in a bucket; another one for each number."""
    key = (number + 1) << 23 | (bucket + BUCKETS * number) << 10
    assert shard_of(key) % BUCKETS == bucket
    return key


class Log:
    """What a topic holds."""

    def __init__(self, kafka, event_type) -> None:
        self._event_type = event_type
        self._consumer = KafkaConsumer(
            topic_of(event_type).name,
            bootstrap_servers=kafka.kafka_bootstrap,
            auto_offset_reset="earliest",
        )
        self.events = []

    async def read(self) -> list:
        """Returns all events so far."""
        found = await asyncio.to_thread(self._consumer.poll, 100)
        for records in found.values():
            self.events += [self._event_type.FromString(record.value) for record in records]
        return self.events

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
async def log(quick_kafka, event_type):
    log = Log(quick_kafka, event_type)
    yield log
    await asyncio.to_thread(log.close)


async def test_a_locked_bucket_waits_and_the_others_do_not(settings, quick_kafka, event_type, log):
    url = settings.database_url.get_secret_value()
    mine, other = event_type(owner_id=key_in(3)), event_type(owner_id=key_in(4))
    # As a relay whose process hangs while it publishes.
    with contextlib.closing(psycopg.connect(url)) as holder:
        holder.execute("SELECT pg_advisory_xact_lock('outbox'::regclass::oid::integer, 3)")
        async with relayed(settings, quick_kafka, relays=2) as outbox:
            await publish(outbox, mine, other)
            await eventually(log.read, lambda events: events == [other])
            later = event_type(owner_id=key_in(5))
            await publish(outbox, later)
            await eventually(log.read, lambda events: events == [other, later])

            # The process dies, and its lock ends with the session.
            async with outbox.transaction() as tx:
                await tx.connection.execute(
                    "SELECT pg_terminate_backend(%s)", [holder.info.backend_pid]
                )
            await eventually(log.read, lambda events: events == [other, later, mine])


async def test_a_relay_of_the_previous_release_and_new_ones_exclude_each_other(
    settings, quick_kafka, event_type, log
):
    url = settings.database_url.get_secret_value()
    async with relayed(settings, quick_kafka) as outbox:
        with psycopg.connect(url) as previous:
            previous.execute("SELECT pg_advisory_xact_lock('outbox'::regclass::oid::bigint)")
            await publish(outbox, event_type(owner_id=key_in(1)))
            # Woken and polled, the relay publishes nothing.
            for _ in range(15):
                assert await log.read() == []
        await eventually(log.read)


async def test_several_relays_keep_the_order_of_each_key_and_lose_nothing(
    settings, quick_kafka, event_type, log, monkeypatch
):
    # Small batches, so that each relay gets many.
    monkeypatch.setattr(outbox_module, "_BATCH", 20)
    keys = [key_in(bucket, number) for bucket in range(BUCKETS) for number in range(2)]
    async with relayed(settings, quick_kafka, relays=4) as outbox:
        for start in range(0, 100, 10):
            await publish(
                outbox,
                *(
                    event_type(owner_id=key, number=number)
                    for number in range(start, start + 10)
                    for key in keys
                ),
            )
        await eventually(log.read, lambda events: len(events) >= 100 * len(keys), within=60)

    by_key = defaultdict(list)
    for event in log.events:
        by_key[event.owner_id].append(event.number)
    assert by_key == {key: list(range(100)) for key in keys}


async def test_the_oldest_events_of_a_bucket_are_found_by_the_index(settings):
    values = {"buckets": [3, 9], "limit": 1000}
    async with Database(settings) as database, database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO outbox (topic, key, payload, traceparent)
            SELECT 'none', (number % 8192) << 10, 'x', '' FROM generate_series(1, 50000) AS number
            """
        )
        for query, its in ((outbox_module._OLDEST, values), (outbox_module._WAITING, None)):
            cursor = await connection.execute(f"EXPLAIN {query}", its)
            plan = "\n".join(line for (line,) in await cursor.fetchall())
            assert "outbox_oldest" in plan, plan
            assert "Seq Scan on outbox" not in plan, plan
        raise psycopg.Rollback


async def test_stored_events_survive_the_migration_to_buckets(
    infrastructure, settings, tmp_path: Path
):
    name = "outbox_before_buckets"
    migrations = tmp_path / "chassis" / "database" / "migrations"
    migrations.mkdir(parents=True)
    current = sorted((SERVICES / "chassis/database/migrations").glob("*.sql"))

    def provision(files: list[Path]) -> None:
        for file in files:
            (migrations / file.name).write_bytes(file.read_bytes())
        provision_database(
            DatabaseToProvision(
                admin_database_url=infrastructure.superuser_url,
                database=name,
                database_passwords=infrastructure.credentials.database,
            ),
            services=tmp_path,
        )

    url = infrastructure.database_url("graph").rpartition("/")[0] + f"/{name}"
    add = """
        INSERT INTO outbox (topic, key, payload, traceparent)
        SELECT 'none', key, 'x', '' FROM unnest(%s::bigint[]) AS key
    """
    keys = [key_in(bucket, number) for bucket in range(BUCKETS) for number in range(20)]
    try:
        await asyncio.to_thread(provision, [file for file in current if file.name < "0005"])
        with psycopg.connect(url) as database:
            database.execute(add, [keys])
        await asyncio.to_thread(provision, current)
        with psycopg.connect(url) as database:
            # As a process of the previous release does.
            database.execute(add, [keys])
            rows = database.execute("SELECT key, shard FROM outbox ORDER BY id").fetchall()
    finally:
        with psycopg.connect(infrastructure.superuser_url, autocommit=True) as server:
            server.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    assert rows == [(key, shard_of(key)) for key in keys + keys]
