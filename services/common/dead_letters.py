"""Dead letters: what consumers could not handle, to be looked at, replayed or dropped.

Consumers write them to `<topic>.dlq`; see consumer.py. A log cannot give up single records, so the
service that owns a topic reads that log into a table of its schema, which remembers what became
of each. A replay goes through the outbox: the dead letter is settled in the transaction that
stores its event. What was settled is kept for a while, then purged.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from photomesh.common.v1.dead_letter_pb2 import DeadLetter as DeadLetterPb
from psycopg.rows import class_row, scalar_row

from services.common import context, logs
from services.common.consumer import (
    DLQ_GROUP,
    DLQ_OFFSET,
    DLQ_PARTITION,
    DLQ_REASON,
    RawSubscription,
)
from services.common.database import Database
from services.common.errors import DeadLetterUnknown, Unavailable
from services.common.outbox import Outbox
from services.common.topics import Topic, dead_letters, topic_of

_ADD = """
    INSERT INTO dead_letters (topic, dlq_offset, bury_time, source_partition, source_offset,
                              consumer_group, reason, key, payload, traceparent)
    VALUES (%(topic)s, %(dlq_offset)s, %(bury_time)s, %(partition)s, %(offset)s, %(group)s,
            %(reason)s, %(key)s, %(payload)s, %(traceparent)s)
    ON CONFLICT (topic, dlq_offset, bury_time) DO NOTHING
"""

_COLUMNS = """
    dead_letter_id, topic, source_partition, source_offset, consumer_group, reason, bury_time,
    key, payload, traceparent
"""

# Answered by dead_letters_open.
_LIST = f"""
    SELECT {_COLUMNS}
      FROM dead_letters
     WHERE state = 'OPEN' AND dead_letter_id > %(after_id)s
       AND (%(topic)s = '' OR topic = %(topic)s)
     ORDER BY dead_letter_id
     LIMIT %(limit)s
"""  # noqa: S608 -- Only constants are put in, here and below.

_ONE = f"SELECT {_COLUMNS} FROM dead_letters WHERE dead_letter_id = %(dead_letter_id)s"  # noqa: S608

# Of several that settle one at once, the first changes the row and the others find it changed.
_REPLAY = f"""
    UPDATE dead_letters
       SET state = 'REPLAYED', settle_time = now()
     WHERE dead_letter_id = ANY(%(ids)s) AND state = 'OPEN'
    RETURNING {_COLUMNS}
"""  # noqa: S608

_DROP = """
    UPDATE dead_letters
       SET state = 'DROPPED', settle_time = now()
     WHERE dead_letter_id = ANY(%(ids)s) AND state = 'OPEN'
    RETURNING dead_letter_id
"""

# Answered by dead_letters_settled. Several that purge at once take other rows.
_PURGE = """
    DELETE FROM dead_letters
     WHERE dead_letter_id IN (
               SELECT dead_letter_id
                 FROM dead_letters
                WHERE state <> 'OPEN' AND settle_time < %(before)s
                ORDER BY settle_time
                LIMIT %(most)s
                  FOR UPDATE SKIP LOCKED
           )
"""

KEPT_SETTLED = timedelta(days=30)
"""How long one that was replayed or dropped can still be looked at. It must be longer than brokers
keep `<topic>.dlq`, a week by default: what is purged here and still lies there would be OPEN anew
if that log were ever read from its beginning."""

_PURGE_BATCH = 1000
"""How many are purged in one transaction."""

_PURGE_PAUSE_SECONDS = (1800.0, 5400.0)
"""Drawn anew each time, so that the processes of a service spread out."""

_log = logs.logger(__name__)


@dataclass(frozen=True)
class DeadLetter:
    """An event that could not be handled."""

    dead_letter_id: int
    topic: str
    source_partition: int | None
    source_offset: int | None
    consumer_group: str
    reason: str
    bury_time: datetime
    key: bytes | None
    payload: bytes
    traceparent: str


class DeadLetters:
    """The dead letters of a service's topics. Every method may raise Unavailable."""

    def __init__(
        self, database: Database, outbox: Outbox, messages: Sequence[type[Message]]
    ) -> None:
        """Takes the types of the events."""
        self._database = database
        self._outbox = outbox
        self._messages = {topic_of(message).name: message for message in messages}

    def subscriptions(self) -> list[RawSubscription]:
        """Returns what a consumer needs to fill the table."""
        return [
            RawSubscription(dead_letters(topic), _adder(self._database, topic))
            for topic in map(topic_of, self._messages.values())
        ]

    async def open(self, *, topic: str, after_id: int, limit: int) -> list[DeadLetterPb]:
        """Returns dead letters that wait for a decision, oldest first, without their events."""
        values = {"topic": topic, "after_id": after_id, "limit": limit}
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(DeadLetter))
            await cursor.execute(_LIST, values)
            return [_to_pb(letter) for letter in await cursor.fetchall()]

    async def get(self, dead_letter_id: int) -> DeadLetterPb:
        """Returns a dead letter with its event.

        Raises:
            DeadLetterUnknown: there is none.
        """
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(DeadLetter))
            await cursor.execute(_ONE, {"dead_letter_id": dead_letter_id})
            letter = await cursor.fetchone()
        if letter is None:
            raise DeadLetterUnknown(dead_letter_id)
        message = _to_pb(letter)
        message.payload = letter.payload
        message.payload_json = self._json(letter)
        return message

    async def replay(self, ids: Sequence[int]) -> list[int]:
        """Publishes the events of those that are open once more; returns which they were."""
        async with self._outbox.transaction() as tx:
            cursor = tx.connection.cursor(row_factory=class_row(DeadLetter))
            await cursor.execute(_REPLAY, {"ids": list(ids)})
            letters = sorted(await cursor.fetchall(), key=lambda letter: letter.dead_letter_id)
            for letter in letters:
                tx.publish_again(
                    letter.topic,
                    key=_owner(letter.key),
                    payload=letter.payload,
                    traceparent=letter.traceparent,
                )
        replayed = [letter.dead_letter_id for letter in letters]
        _log.warning("dead letters are replayed", dead_letter_ids=replayed)
        return replayed

    async def drop(self, ids: Sequence[int]) -> list[int]:
        """Gives up those that are open; returns which they were."""
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(_DROP, {"ids": list(ids)})
            dropped = sorted(await cursor.fetchall())
        _log.warning("dead letters are dropped", dead_letter_ids=dropped)
        return dropped

    async def purge(self, now: datetime) -> int:
        """Removes those that were settled long before `now`; returns how many."""
        values = {"before": now - KEPT_SETTLED, "most": _PURGE_BATCH}
        purged = 0
        while True:
            async with self._database.connection() as connection:
                batch = (await connection.execute(_PURGE, values)).rowcount
            purged += batch
            if batch < _PURGE_BATCH:
                return purged

    async def run_purge(self, ready: Callable[[], None]) -> None:
        """Purges about once an hour until it is cancelled; any number may do so at a time."""
        ready()
        while True:
            context.enter(context.CallContext(trace_id=context.trace_id_of(None)))
            try:
                if purged := await self.purge(datetime.now(UTC)):
                    _log.info("settled dead letters are purged", dead_letters=purged)
            except Unavailable:
                _log.warning("the purge of dead letters waits", exc_info=True)
            await asyncio.sleep(random.uniform(*_PURGE_PAUSE_SECONDS))

    def _json(self, letter: DeadLetter) -> str:
        try:
            event = self._messages[letter.topic].FromString(letter.payload)
        except (KeyError, DecodeError):
            return ""
        return MessageToJson(event, indent=None)


def _adder(database: Database, topic: Topic) -> Any:
    async def add(record: Any) -> None:
        headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
        values = {
            "topic": topic.name,
            "dlq_offset": record.offset,
            "bury_time": datetime.fromtimestamp(record.timestamp / 1000, UTC),
            "partition": _number(headers.get(DLQ_PARTITION)),
            "offset": _number(headers.get(DLQ_OFFSET)),
            "group": headers.get(DLQ_GROUP, ""),
            # PostgreSQL has no character for NUL.
            "reason": headers.get(DLQ_REASON, "").replace("\0", "\N{SYMBOL FOR NULL}"),
            "key": record.key,
            "payload": record.value or b"",
            "traceparent": headers.get(context.TRACEPARENT, "").replace("\0", ""),
        }
        async with database.connection() as connection:
            await connection.execute(_ADD, values)

    return add


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _owner(key: bytes | None) -> int:
    """Returns the id in a key; 0 for one that the outbox did not make."""
    return _number((key or b"").decode("ascii", "replace")) or 0


def _to_pb(letter: DeadLetter) -> DeadLetterPb:
    bury_time = Timestamp()
    bury_time.FromDatetime(letter.bury_time)
    return DeadLetterPb(
        dead_letter_id=letter.dead_letter_id,
        topic=letter.topic,
        partition=-1 if letter.source_partition is None else letter.source_partition,
        offset=-1 if letter.source_offset is None else letter.source_offset,
        consumer_group=letter.consumer_group,
        reason=letter.reason,
        bury_time=bury_time,
        trace_id=context.trace_id_of(letter.traceparent) if letter.traceparent else "",
        key=letter.key or b"",
    )
