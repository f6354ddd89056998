"""Consuming events: at least once, in order for each key, never blocked by one event.

A thread polls records (polling.py) and hands them to the event loop. There they wait in lanes:
those of one lane are handled one after the other, lanes side by side. A lane is a key, or, for a
batch handler, a partition. Records may be handled again after a crash, so handlers are idempotent.

How long one key can delay another is bounded. `at_a_time` calls of a handler run at a time, one for
each lane, and lanes get a place in the order in which they asked: a burst of one key takes one
place, however long it is. Behind that, a window of records of each partition waits in memory. Only
a burst that is longer fills the window of its partition, which is then paused alone; other
partitions, as a rule 7 of 8 keys, are not affected.

A call that raises `Unavailable` is repeated for as long as it takes: the event is not the cause.
After any other error a batch is halved, until the event that fails is alone. One event is tried
`_TRIES` times with exponential backoff and jitter; then it is buried: it goes to the topic's dead
letters, with the reason in its headers.
"""

import asyncio
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from confluent_kafka import KafkaException
from google.protobuf.message import DecodeError, Message

from services.chassis import context
from services.chassis.config import KafkaSettings
from services.chassis.errors import Unavailable
from services.chassis.events.burials import ONLY_GROUP, Burials
from services.chassis.events.polling import Partition, Poller, Record
from services.chassis.events.topics import Topic, topic_of
from services.chassis.telemetry import logs
from services.chassis.threads import run_in_thread

_log = logs.logger(__name__)

_TRIES = 5
_FIRST_BACKOFF_SECONDS = 0.1
_MOST_BACKOFF_SECONDS = 3.0

_FETCH_WAIT_MS = 200
"""Some brokers, the local one among them, look for new records only a few times in the time that
a fetch may wait. With 500 ms a record came 120 ms later than with 200; with 100 none came sooner,
and all processes used twice as much CPU when idle."""


class Rejected(Exception):
    """Raised by a handler for an event that can never be handled: it is not retried."""


@dataclass(frozen=True)
class Subscription:
    """A type of events, and the handler that is called with each."""

    message: type[Message]
    handle: Callable[[Any], Awaitable[None]]
    in_order: bool = True
    """Whether an event waits for the previous one with the same key."""
    at_a_time: int = 256
    """How many events are handled at a time."""

    batch: ClassVar[int] = 1
    buries: ClassVar[bool] = True

    @property
    def topic(self) -> Topic:
        """The topic that the contract names."""
        return topic_of(self.message)

    def lane_of(self, record: Record) -> bytes:
        return record.key if self.in_order and record.key else _alone(record)

    async def call(self, records: Sequence[Record]) -> None:
        await self.handle(self.message.FromString(records[0].value))


@dataclass(frozen=True)
class BatchSubscription:
    """A type of events, and the handler that is called with several at once.

    A batch holds events of one partition in their order, and is handled in the trace of its first
    event. If the handler raises an error, all of its events are handled again, in smaller batches.
    """

    message: type[Message]
    handle: Callable[[list[Any]], Awaitable[None]]
    batch: int = 500
    """How many events a batch holds at most."""
    at_a_time: int = 8
    """How many batches are handled at a time."""

    buries: ClassVar[bool] = True

    @property
    def topic(self) -> Topic:
        """The topic that the contract names."""
        return topic_of(self.message)

    def lane_of(self, record: Record) -> bytes:
        return b"%d" % record.partition

    async def call(self, records: Sequence[Record]) -> None:
        await self.handle([self.message.FromString(record.value) for record in records])


@dataclass(frozen=True)
class RawSubscription:
    """A topic, and the handler that is called with each record until it succeeds."""

    topic: Topic
    handle: Callable[[Any], Awaitable[None]]
    at_a_time: int = 256
    """How many records are handled at a time."""

    batch: ClassVar[int] = 1
    buries: ClassVar[bool] = False

    def lane_of(self, record: Record) -> bytes:
        return _alone(record)

    async def call(self, records: Sequence[Record]) -> None:
        await self.handle(records[0])


AnySubscription = Subscription | BatchSubscription | RawSubscription


class Consumer:
    """One member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        group: str,
        subscriptions: Sequence[AnySubscription],
        fetch_wait_ms: int = _FETCH_WAIT_MS,
    ) -> None:
        """Takes how long a fetch may wait at the broker for new records."""
        self._group = group
        self._subscriptions: Mapping[str, AnySubscription] = {
            subscription.topic.name: subscription for subscription in subscriptions
        }
        self._poller = Poller(
            settings,
            group=group,
            topics=list(self._subscriptions),
            fetch_wait_ms=fetch_wait_ms,
            deliver=self._deliver,
        )
        self._burials = Burials(settings, group)
        self._places = {s.topic.name: asyncio.Semaphore(s.at_a_time) for s in subscriptions}
        self._open = {s.topic.name: asyncio.Event() for s in subscriptions}
        self.hold(())
        self._lanes: dict[tuple[str, bytes], deque[tuple[Record, Partition]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self, topics: Collection[str]) -> None:
        """Pauses these topics and resumes all others.

        Calls that are running are finished, and failures are not tried again until the topic is
        resumed. Must be called from the event loop, or before it runs.
        """
        for name, is_open in self._open.items():
            if name in topics:
                is_open.clear()
            else:
                is_open.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Consumes until cancelled; calls `ready` when the group has assigned partitions."""
        self._loop = asyncio.get_running_loop()
        stopping = threading.Event()
        try:
            await run_in_thread(
                "kafka-consumer", lambda: self._poller.run(ready, stopping), stopping
            )
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.to_thread(self._burials.close)

    def _deliver(self, records: Sequence[Record], partition: Partition) -> None:
        """Takes new records of a partition, in the polling thread."""
        self._loop.call_soon_threadsafe(self._queue, records, partition)

    def _queue(self, records: Sequence[Record], partition: Partition) -> None:
        """Puts records at the ends of their lanes."""
        topic = records[0].topic
        subscription = self._subscriptions[topic]
        for record in records:
            if not self._is_addressed(record):
                partition.finish([record])
                continue
            key = (topic, subscription.lane_of(record))
            lane = self._lanes.get(key)
            if lane is not None:
                lane.append((record, partition))
                continue
            self._lanes[key] = deque([(record, partition)])
            task = self._loop.create_task(self._work_off(key, subscription))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _is_addressed(self, record: Record) -> bool:
        """Returns False for a replayed dead letter of another group."""
        return all(
            value.decode("utf-8", "replace") == self._group
            for name, value in record.headers
            if name == ONLY_GROUP
        )

    async def _work_off(self, key: tuple[str, bytes], subscription: AnySubscription) -> None:
        """Handles the records of a lane until it is empty."""
        lane = self._lanes[key]
        while lane:
            records, partition = _take(lane, subscription.batch)
            _enter_context(records[0])
            await self._handle(subscription, records, partition)
            partition.finish(records)
        del self._lanes[key]

    async def _handle(
        self, subscription: AnySubscription, records: Sequence[Record], partition: Partition
    ) -> None:
        """Returns when all records are handled or buried, or the partition was revoked."""
        topic = subscription.topic.name
        failures = 0
        waits = 0
        while True:
            await self._open[topic].wait()
            async with self._places[topic]:
                if not partition.is_assigned:
                    return
                error = await _attempt(subscription, records)
            if error is None:
                return
            if isinstance(error, Unavailable):
                waits += 1
                delay = _backoff(waits)
                _log.warning("handler.blocked", topic=topic, seconds=delay, error=str(error))
            elif len(records) > 1:
                _log.warning("batch.failed", topic=topic, events=len(records), exc_info=error)
                middle = len(records) // 2
                for half in (records[:middle], records[middle:]):
                    _enter_context(half[0])
                    await self._handle(subscription, half, partition)
                return
            else:
                failures += 1
                is_hopeless = failures >= _TRIES and subscription.buries
                if is_hopeless or isinstance(error, Rejected | DecodeError):
                    await self._bury(subscription.topic, records[0], error)
                    return
                delay = _backoff(failures)
                _log.warning("handler.failed", topic=topic, tries=failures, exc_info=error)
            await asyncio.sleep(delay)

    async def _bury(self, topic: Topic, record: Record, error: Exception) -> None:
        """Writes a dead letter, however long the broker takes to accept it."""
        _log.error("event.buried", topic=topic.name, offset=record.offset, exc_info=error)
        attempt = 0
        while True:
            try:
                await asyncio.to_thread(self._burials.bury, topic, record, error)
                return
            except KafkaException as trouble:
                attempt += 1
                _log.warning("burial.blocked", topic=topic.name, error=repr(trouble))
                await asyncio.sleep(_backoff(attempt))


async def _attempt(subscription: AnySubscription, records: Sequence[Record]) -> Exception | None:
    try:
        await subscription.call(records)
    except Exception as error:
        return error
    return None


def _alone(record: Record) -> bytes:
    """Returns a lane that no other record shares."""
    return b"%d/%d" % (record.partition, record.offset)


def _take(lane: deque[tuple[Record, Partition]], most: int) -> tuple[list[Record], Partition]:
    """Takes records from the front of a lane, all from the same assignment of their partition."""
    record, partition = lane.popleft()
    records = [record]
    while lane and len(records) < most and lane[0][1] is partition:
        records.append(lane.popleft()[0])
    return records, partition


def _enter_context(record: Record) -> None:
    """Makes a record the event that the current task handles."""
    traceparent = dict(record.headers).get(context.TRACEPARENT, b"").decode("ascii", "replace")
    context.enter(
        context.CallContext(
            trace_id=context.trace_id_of(traceparent),
            # The time, because offsets start again in a broker that lost its log.
            event=f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}",
        )
    )


def _backoff(attempt: int) -> float:
    """Returns how many seconds to wait after the `attempt`th failure: exponential, jittered."""
    most = min(_MOST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**attempt)
    return random.uniform(most / 2, most)
