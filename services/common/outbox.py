"""The transactional outbox: an event is stored with what makes it true, then relayed to Kafka.

    async with outbox.transaction() as tx:
        await tx.connection.execute(...)
        tx.publish(PostCreated(...))

Either both hold or neither does. The relay publishes every stored event at least once, in the
order of their ids, and deletes it only when the broker has acknowledged it.
"""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg
from google.protobuf.message import Message
from kafka import KafkaProducer
from kafka.errors import KafkaError
from psycopg import AsyncConnection
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_random,
)

from services.common import context, kafka_classes, logs
from services.common.config import DatabaseSettings, KafkaSettings
from services.common.database import Database, int_array
from services.common.threads import run_in_thread
from services.common.topics import key_of, topic_of

_log = logs.logger(__name__)

# Ids follow the order in which the transaction added its events.
_ADD = """
    INSERT INTO outbox (topic, key, payload, traceparent)
    SELECT topic, key, payload, traceparent
      FROM unnest(%(topics)s::text[], %(keys)s::bigint[], %(payloads)s::bytea[],
                  %(traceparents)s::text[])
           WITH ORDINALITY AS events (topic, key, payload, traceparent, number)
     ORDER BY number
"""

# One relay at a time for each schema, whichever process it runs in, so that events go out in the
# order of their ids. The lock ends with the transaction, also when the process dies.
_LOCK = "SELECT pg_advisory_xact_lock('outbox'::regclass::oid::bigint)"

_OLDEST = """
    SELECT id, topic, key, payload, traceparent
      FROM outbox
     ORDER BY id
     LIMIT 500
"""

# By id, never "all up to": a smaller id may have been committed after the batch was read.
_DELETE = "DELETE FROM outbox WHERE id = ANY(%(ids)s)"

_IDLE_SECONDS = 1.0
"""How long an event waits at most whose own process died before relaying it."""

_ACK_SECONDS = 10.0


@dataclass(frozen=True)
class _Event:
    topic: str
    key: int
    payload: bytes
    traceparent: str


class Transaction:
    """A database transaction that can also publish."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._events: list[_Event] = []

    def publish(self, event: Message) -> None:
        """Adds an event, which is stored right before this transaction commits.

        Its contract names the topic and the key. Events with the same key are published in order.
        """
        self.publish_again(
            topic_of(event).name,
            key=key_of(event),
            payload=event.SerializeToString(),
            traceparent=context.current().traceparent(),
        )

    def publish_again(self, topic: str, *, key: int, payload: bytes, traceparent: str) -> None:
        """Adds an event that was published before, with the trace that it had."""
        self._events.append(_Event(topic, key, payload, traceparent))

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
                },
            )


class Relay:
    """Publishes stored events from a thread of its own: the Kafka client blocks."""

    def __init__(self, database: DatabaseSettings, kafka: KafkaSettings) -> None:
        kafka_classes.make_all()
        self._database_url = database.database_url.get_secret_value()
        self._bootstrap = kafka.kafka_bootstrap
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def wake(self) -> None:
        """Tells that an event was stored."""
        self._wake.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Relays until it is cancelled; a database or broker that is away is waited for."""
        again = Retrying(
            retry=retry_if_exception_type((psycopg.Error, KafkaError)),
            wait=wait_random(0.2, 2.0),
            sleep=sleep_using_event(self._stopping),
            stop=stop_when_event_set(self._stopping),
            before_sleep=_tell,
            reraise=True,
        )
        await run_in_thread(
            "outbox-relay", lambda: again(self._relay_until_stopped, ready), self._stopping
        )

    def _relay_until_stopped(self, ready: Callable[[], None]) -> None:
        # A producer that failed once may have lost its place in the sequence of its messages,
        # so each attempt begins with a new one.
        producer = KafkaProducer(
            bootstrap_servers=self._bootstrap.split(","),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_block_ms=int(_ACK_SECONDS * 1000),
        )
        try:
            with psycopg.connect(
                self._database_url, autocommit=True, connect_timeout=3
            ) as database:
                ready()
                while not self._stopping.is_set():
                    self._wake.clear()
                    if not _relay_batch(database, producer):
                        self._wake.wait(_IDLE_SECONDS)
        finally:
            producer.close(timeout=1)


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.warning("the outbox waits for the database or the broker", error=repr(error))


def _relay_batch(database: psycopg.Connection, producer: KafkaProducer) -> int:
    """Publishes the oldest events and deletes them; returns how many."""
    with database.transaction():
        database.execute(_LOCK)
        rows = database.execute(_OLDEST).fetchall()
        sent = [
            producer.send(
                topic,
                key=str(key).encode(),
                value=payload,
                headers=[(context.TRACEPARENT, traceparent.encode())],
            )
            for _, topic, key, payload, traceparent in rows
        ]
        for future in sent:
            future.get(timeout=_ACK_SECONDS)
        if rows:
            database.execute(_DELETE, {"ids": [row[0] for row in rows]})
    return len(rows)


class Outbox:
    """Gives transactions that can publish."""

    def __init__(self, database: Database, relay: Relay) -> None:
        self._database = database
        self._relay = relay

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Gives a transaction; what it publishes is relayed as soon as it is committed.

        Raises:
            Unavailable: the database is away or overloaded.
        """
        async with self._database.transaction() as connection:
            transaction = Transaction(connection)
            yield transaction
            await transaction.store_events()
        self._relay.wake()
