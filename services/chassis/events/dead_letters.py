"""Dead letters: events that a consumer group could not handle. They wait to be replayed or dropped.

Consumers write them to the topic `<topic>.dlq`, see burials.py. Single records of a topic cannot be
removed, so each service copies the dead letters of its own consumer group into a table, which
records whether each one is open, replayed or dropped. A replay stores the event in the outbox in
the same transaction, and reaches no other consumer group. Dead letters that are closed, which
means replayed or dropped, are purged after `KEEP_CLOSED`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError, Message
from photomesh.common.v1.dead_letter_pb2 import DeadLetter as DeadLetterPb
from psycopg.rows import class_row, scalar_row

from services.chassis import context
from services.chassis.database.pool import Database, fetch
from services.chassis.errors import DeadLetterUnknown
from services.chassis.events.burials import DLQ_GROUP, DLQ_OFFSET, DLQ_PARTITION, DLQ_REASON
from services.chassis.events.consumer import RawSubscription
from services.chassis.events.outbox import Outbox
from services.chassis.events.polling import Record
from services.chassis.events.topics import Topic, dead_letters, topic_of
from services.chassis.telemetry import logs
from services.chassis.timestamps import to_timestamp

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
     WHERE state = 'OPEN' AND dead_letter_id > %(after_id)s AND consumer_group = %(group)s
       AND (%(topic)s = '' OR topic = %(topic)s)
     ORDER BY dead_letter_id
     LIMIT %(limit)s
"""  # noqa: S608 -- Only constants are put in, here and below.

_ONE = f"""
    SELECT {_COLUMNS}
      FROM dead_letters
     WHERE dead_letter_id = %(dead_letter_id)s AND consumer_group = %(group)s
"""  # noqa: S608

# If several transactions close one dead letter, only the first changes the row.
_REPLAY = f"""
    UPDATE dead_letters
       SET state = 'REPLAYED', settle_time = now()
     WHERE dead_letter_id = ANY(%(ids)s) AND state = 'OPEN' AND consumer_group = %(group)s
    RETURNING {_COLUMNS}
"""  # noqa: S608

_DROP = """
    UPDATE dead_letters
       SET state = 'DROPPED', settle_time = now()
     WHERE dead_letter_id = ANY(%(ids)s) AND state = 'OPEN' AND consumer_group = %(group)s
    RETURNING dead_letter_id
"""

# Answered by dead_letters_settled. Concurrent purges delete different rows.
_PURGE = """
    DELETE FROM dead_letters
     WHERE dead_letter_id IN (
               SELECT dead_letter_id
                 FROM dead_letters
                WHERE state <> 'OPEN' AND settle_time < %(before)s
                ORDER BY settle_time
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           )
"""

KEEP_CLOSED = timedelta(days=30)
"""How long a closed dead letter is kept. It must be longer than the retention of the topics: a
purged dead letter that is still in `<topic>.dlq` would be open again if that topic were read again
from the beginning."""

_PURGE_BATCH = 1000
"""The maximum number of dead letters that one transaction purges."""

_log = logs.logger(__name__)


@dataclass(frozen=True)
class DeadLetter:
    """An event that a consumer group could not handle."""

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
    """The dead letters of one consumer group. Every method may raise Unavailable."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        *,
        group: str,
        messages: Sequence[type[Message]],
    ) -> None:
        """Takes the consumer group, and the types of the events that it handles."""
        self._database = database
        self._outbox = outbox
        self._group = group
        self._messages = {topic_of(message).name: message for message in messages}

    def subscriptions(self) -> list[RawSubscription]:
        """Returns the subscriptions with which a consumer fills the table."""
        return [
            RawSubscription(dead_letters(topic), self._adder(topic))
            for topic in map(topic_of, self._messages.values())
        ]

    async def open(self, *, topic: str, after_id: int, limit: int) -> list[DeadLetterPb]:
        """Returns open dead letters with ids above `after_id`, oldest first, without their events.

        `topic`: "" means all topics.
        """
        values = {"topic": topic, "after_id": after_id, "limit": limit, "group": self._group}
        found = await self._database.fetch(_LIST, values, class_row(DeadLetter))
        return [_to_pb(letter) for letter in found]

    async def get(self, dead_letter_id: int) -> DeadLetterPb:
        """Returns a dead letter with its event.

        Raises:
            DeadLetterUnknown: this group has no such dead letter.
        """
        values = {"dead_letter_id": dead_letter_id, "group": self._group}
        found = await self._database.fetch(_ONE, values, class_row(DeadLetter))
        if not found:
            raise DeadLetterUnknown(dead_letter_id)
        [letter] = found
        message = _to_pb(letter)
        message.payload = letter.payload
        message.payload_json = self._json(letter)
        return message

    async def replay(self, ids: Sequence[int]) -> list[int]:
        """Publishes events again, for this group only; returns the ids that were still open."""
        async with self._outbox.transaction() as tx:
            values = {"ids": list(ids), "group": self._group}
            replayed = await fetch(tx.connection, _REPLAY, values, class_row(DeadLetter))
            letters = sorted(replayed, key=lambda letter: letter.dead_letter_id)
            for letter in letters:
                tx.replay(
                    letter.topic,
                    key=_id_in(letter.key),
                    payload=letter.payload,
                    traceparent=letter.traceparent,
                    consumer_group=self._group,
                )
        replayed_ids = [letter.dead_letter_id for letter in letters]
        _log.warning("dead_letters.replayed", dead_letter_ids=replayed_ids)
        return replayed_ids

    async def drop(self, ids: Sequence[int]) -> list[int]:
        """Drops dead letters; returns the ids that were still open."""
        values = {"ids": list(ids), "group": self._group}
        dropped = sorted(await self._database.fetch(_DROP, values, scalar_row))
        _log.warning("dead_letters.dropped", dead_letter_ids=dropped)
        return dropped

    async def purge(self, now: datetime) -> int:
        """Deletes dead letters closed more than KEEP_CLOSED before `now`; returns how many."""
        purged = await self._database.purge(
            _PURGE, {"before": now - KEEP_CLOSED}, batch=_PURGE_BATCH
        )
        if purged:
            _log.info("dead_letters.purged", dead_letters=purged)
        return purged

    def _adder(self, topic: Topic) -> Callable[[Record], Awaitable[None]]:
        async def add(record: Record) -> None:
            headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
            if headers.get(DLQ_GROUP) != self._group:
                return
            values = {
                "topic": topic.name,
                "dlq_offset": record.offset,
                "bury_time": datetime.fromtimestamp(record.timestamp / 1000, UTC),
                "partition": _number(headers.get(DLQ_PARTITION)),
                "offset": _number(headers.get(DLQ_OFFSET)),
                "group": self._group,
                # PostgreSQL cannot store NUL characters.
                "reason": headers.get(DLQ_REASON, "").replace("\0", "\N{SYMBOL FOR NULL}"),
                "key": record.key,
                "payload": record.value,
                "traceparent": headers.get(context.TRACEPARENT, "").replace("\0", ""),
            }
            await self._database.execute(_ADD, values)

        return add

    def _json(self, letter: DeadLetter) -> str:
        try:
            event = self._messages[letter.topic].FromString(letter.payload)
        except (KeyError, DecodeError):
            return ""
        return MessageToJson(event, indent=None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _id_in(key: bytes | None) -> int:
    """Returns the id in the key of a record; 0 if the outbox did not write the key."""
    return _number((key or b"").decode("ascii", "replace")) or 0


def _to_pb(letter: DeadLetter) -> DeadLetterPb:
    return DeadLetterPb(
        dead_letter_id=letter.dead_letter_id,
        topic=letter.topic,
        partition=-1 if letter.source_partition is None else letter.source_partition,
        offset=-1 if letter.source_offset is None else letter.source_offset,
        consumer_group=letter.consumer_group,
        reason=letter.reason,
        bury_time=to_timestamp(letter.bury_time),
        trace_id=context.trace_id_of(letter.traceparent) if letter.traceparent else "",
        key=letter.key or b"",
    )
