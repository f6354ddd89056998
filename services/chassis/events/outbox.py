"""The transactional outbox: an event is stored in the transaction that makes it true, then relayed.

    async with outbox.transaction() as tx:
        await tx.connection.execute(...)
        tx.publish(BookmarkCreated(...))

Either both are committed or neither is. Relays publish every stored event to Kafka at least once,
those with the same key in the order of their ids, and delete an event only after the broker
acknowledged it.

Events lie in 16 buckets by the shard of their key, and a relay locks the buckets that it works on.
So the relays of all replicas work side by side, while one at a time publishes the events of a key.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import KafkaException
from google.protobuf.message import Message
from psycopg import AsyncConnection
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_random,
)

from services.chassis import context
from services.chassis.config import DatabaseSettings, KafkaSettings
from services.chassis.database.pool import Database, int_array
from services.chassis.events.burials import ONLY_GROUP
from services.chassis.events.kafka import Publisher
from services.chassis.events.topics import key_of, topic_of
from services.chassis.telemetry import logs
from services.chassis.threads import run_in_thread

_log = logs.logger(__name__)

# Ids are in the order in which the transaction added its events.
_ADD = """
    INSERT INTO outbox (topic, key, payload, traceparent, consumer_group)
    SELECT topic, key, payload, traceparent, consumer_group
      FROM unnest(%(topics)s::text[], %(keys)s::bigint[], %(payloads)s::bytea[],
                  %(traceparents)s::text[], %(groups)s::text[])
           WITH ORDINALITY AS events (topic, key, payload, traceparent, consumer_group, number)
     ORDER BY number
"""

# Answered by outbox_oldest. Events are estimated, because counting a backlog takes longer than
# reading a batch of it. Ids are spread over the buckets, so a bucket has about a 16th of those from
# its oldest to its newest.
_WAITING = """
    SELECT bucket, (newest.id - oldest.id) / 16 + 1 AS events
      FROM generate_series(0, 15) AS bucket
           CROSS JOIN LATERAL (
               SELECT id FROM outbox WHERE shard % 16 = bucket ORDER BY id LIMIT 1
           ) AS oldest
           CROSS JOIN LATERAL (
               SELECT id FROM outbox WHERE shard % 16 = bucket ORDER BY id DESC LIMIT 1
           ) AS newest
"""

# Relays of releases before migration 0005 lock the whole outbox; the first lock excludes them.
# Both end with the transaction, also when the process or its connection dies.
_LOCK = """
    SELECT pg_try_advisory_xact_lock_shared('outbox'::regclass::oid::bigint)
       AND pg_try_advisory_xact_lock('outbox'::regclass::oid::integer, %(bucket)s)
"""

# Answered by outbox_oldest. It comes after the locks, in a statement of its own: it must see what
# the previous holder of a bucket deleted.
_OLDEST = """
    SELECT id, topic, key, payload, traceparent, consumer_group
      FROM unnest(%(buckets)s::integer[]) AS bucket
           CROSS JOIN LATERAL (
               SELECT id, topic, key, payload, traceparent, consumer_group
                 FROM outbox
                WHERE shard %% 16 = bucket
                ORDER BY id
                LIMIT %(limit)s
           ) AS oldest
     ORDER BY id
"""

# By id, never "all up to": a smaller id may have been committed after the batch was read.
_DELETE = "DELETE FROM outbox WHERE id = ANY(%(ids)s::bigint[])"

_BATCH = 5000
"""About how many events are relayed at a time. With 2000 the local broker, which writes a file for
each partition, used half as much CPU again for each event."""

_SHARE = _BATCH // 8
"""Up to how many events of each bucket are relayed, however many buckets are locked."""

_IDLE_SECONDS = 1.0
"""How long an event waits at most if its process dies before it relays the event."""


class _Event(NamedTuple):
    topic: str
    key: int
    payload: bytes
    traceparent: str
    consumer_group: str | None = None


class Transaction:
    """A database transaction that can also publish."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._events: list[_Event] = []

    def publish(self, event: Message) -> None:
        """Adds an event, which is stored right before this transaction commits.

        Its contract names the topic and the key. Events with the same key are published in order.
        """
        self._events.append(
            _Event(
                topic_of(event).name,
                key_of(event),
                event.SerializeToString(),
                context.current().traceparent(),
            )
        )

    def replay(
        self, topic: str, *, key: int, payload: bytes, traceparent: str, consumer_group: str
    ) -> None:
        """Adds an event that was published before, for one consumer group, with its old trace."""
        self._events.append(_Event(topic, key, payload, traceparent, consumer_group))

    async def store_events(self) -> None:
        """Stores the events that were added, with one statement."""
        if self._events:
            await self.connection.execute(
                _ADD,
                {
                    "topics": [event.topic for event in self._events],
                    "keys": int_array(event.key for event in self._events),
                    "payloads": [event.payload for event in self._events],
                    "traceparents": [event.traceparent for event in self._events],
                    "groups": [event.consumer_group for event in self._events],
                },
            )


class Relay:
    """Publishes stored events, in a thread of its own because the Kafka client blocks."""

    def __init__(self, database: DatabaseSettings, kafka: KafkaSettings) -> None:
        self._database_url = database.database_url.get_secret_value()
        self._kafka = kafka
        self._wake = threading.Event()
        self._backlog = threading.Event()
        self._stopping = threading.Event()

    def wake(self) -> None:
        """Tells the relay that events were committed."""
        self._wake.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Relays until cancelled; retries while the database or the broker is unavailable."""
        async with asyncio.TaskGroup() as threads:
            for name, work in (
                ("outbox-relay", lambda: self._relay_until_stopped(ready)),
                ("outbox-backlog", self._help_until_stopped),
            ):
                threads.create_task(
                    run_in_thread(name, partial(self._retrying(), work), self._stopping)
                )

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type((psycopg.Error, KafkaException)),
            wait=wait_random(0.2, 2.0),
            sleep=sleep_using_event(self._stopping),
            stop=stop_when_event_set(self._stopping),
            before_sleep=_log_blocked,
            reraise=True,
        )

    def _relay_until_stopped(self, ready: Callable[[], None]) -> None:
        with self._connected() as (database, publisher):
            ready()
            while not self._stopping.is_set():
                self._wake.clear()
                if not self._relay_batch(database, publisher):
                    self._wake.wait(_IDLE_SECONDS)

    def _help_until_stopped(self) -> None:
        """Relays, too, while there is a backlog: one thread reads while the other waits for acks.

        Between backlogs it has no connections.
        """
        while not self._stopping.is_set():
            if self._backlog.wait(_IDLE_SECONDS):
                with self._connected() as (database, publisher):
                    while not self._stopping.is_set() and self._relay_batch(database, publisher):
                        pass
                self._backlog.clear()

    @contextmanager
    def _connected(self) -> Iterator[tuple[psycopg.Connection, Publisher]]:
        with (
            psycopg.connect(self._database_url, autocommit=True, connect_timeout=3) as database,
            closing(Publisher(self._kafka)) as publisher,
        ):
            yield database, publisher

    def _relay_batch(self, database: psycopg.Connection, publisher: Publisher) -> bool:
        """Publishes the oldest events of some buckets and deletes them.

        Returns False if every bucket is empty or locked by another relay. After True the caller
        calls again: another relay may have failed to lock a bucket meanwhile, and relies on this
        one to find the events that were committed after it read.
        """
        waiting = database.execute(_WAITING).fetchall()
        if not waiting:
            return False
        # Random order shares the buckets fairly. A relay takes no more than fill a batch and leaves
        # the rest to others.
        random.shuffle(waiting)
        with database.transaction(), database.cursor(binary=True) as cursor:
            buckets: list[int] = []
            found = 0
            for bucket, events in waiting:
                if found >= _BATCH:
                    self._backlog.set()
                    break
                if cursor.execute(_LOCK, {"bucket": bucket}).fetchone() == (True,):
                    buckets.append(bucket)
                    found += events
            if not buckets:
                return False
            limit = max(_SHARE, _BATCH // len(buckets))
            rows = cursor.execute(_OLDEST, {"buckets": buckets, "limit": limit}).fetchall()
            _publish(publisher, rows)
            cursor.execute(_DELETE, {"ids": int_array(row[0] for row in rows)})
        return True


def _log_blocked(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.warning("outbox.blocked", error=repr(error))


def _publish(publisher: Publisher, rows: Sequence[tuple[Any, ...]]) -> None:
    """Publishes events; returns when the broker has acknowledged all of them.

    Raises:
        KafkaException: it has not; some may have been published.
    """
    for _, topic, key, payload, traceparent, consumer_group in rows:
        publisher.add(
            topic,
            key=str(key).encode(),
            value=payload,
            headers=_headers(traceparent, consumer_group),
        )
    publisher.flush()


def _headers(traceparent: str, consumer_group: str | None) -> list[tuple[str, bytes]]:
    headers = [(context.TRACEPARENT, traceparent.encode())]
    if consumer_group is not None:
        headers.append((ONLY_GROUP, consumer_group.encode()))
    return headers


class Outbox:
    """Opens transactions that can publish."""

    def __init__(self, database: Database, relay: Relay) -> None:
        self._database = database
        self._relay = relay

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Opens a transaction; its events are relayed as soon as it is committed.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        async with self._database.transaction() as connection:
            transaction = Transaction(connection)
            yield transaction
            await transaction.store_events()
        self._relay.wake()
