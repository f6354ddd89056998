"""Consuming Kafka topics: at least once, in order for each key, never stuck on one message.

The Kafka client polls in a thread of its own and hands records to the event loop. Records with
the same key are handled one after the other, others side by side. An offset is committed when
everything before it is done, so a crash repeats records and loses none; handlers are idempotent.

How long one key can delay another is bounded. Of one topic `at_a_time` records are handled at a
time, of one key one, and who waits for a place gets it in the order of asking: a burst of one key
has one place, however long it is. Behind that, up to `_WINDOW` records of each partition wait in
memory. Only a burst that is longer fills its partition's window, and then that partition alone is
not read on; the others, as a rule 7 of 8 keys, never notice.

A handler that raises `Unavailable` is called again for as long as it takes: nothing is wrong
with the message. Any other error is retried `_TRIES` times with exponential backoff and jitter;
then the record goes to the topic's dead letters, with the reason in its headers.
"""

import asyncio
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError, Message
from kafka import (
    ConsumerRebalanceListener,
    KafkaConsumer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.errors import CommitFailedError, KafkaError

from services.common import context, kafka_classes, logs
from services.common.burials import ONLY_GROUP, Burials
from services.common.config import KafkaSettings
from services.common.errors import Unavailable
from services.common.threads import run_in_thread
from services.common.topics import Topic, topic_of

_log = logs.logger(__name__)

_TRIES = 5
_FIRST_BACKOFF_SECONDS = 0.1
_MOST_BACKOFF_SECONDS = 3.0

_AT_A_TIME = 256
"""How many records of one topic are handled at a time, unless it says otherwise."""

_WINDOW = 1000
"""How many records of one partition are handled or wait for it. One takes about a kilobyte."""

_POLL_RECORDS = 256
"""How many records one poll brings at most, and thus a window may be exceeded by."""

_FETCH_WAIT_MS = 200
"""How long the broker may keep a question that it has no records for, unless a consumer is in no
hurry. Some brokers, the local one among them, look for new records only a few times in that while:
with 500 ms one came 120 ms later than with 200, and with 100 none came sooner, while all processes
used twice as much when idle."""

_COMMIT_SECONDS = 1.0


class Rejected(Exception):
    """A handler's word that a message can never be handled: it is not retried."""


@dataclass(frozen=True)
class Subscription:
    """A type of events, and what to do with each."""

    message: type[Message]
    handle: Callable[[Any], Awaitable[None]]
    in_order: bool = True
    """Whether a message waits for the one before it with the same key."""
    at_a_time: int = _AT_A_TIME
    """How many messages are handled at a time."""

    @property
    def topic(self) -> Topic:
        """The topic that the contract names."""
        return topic_of(self.message)


@dataclass(frozen=True)
class RawSubscription:
    """A topic whose records are handled as they are: with any error, until it succeeds."""

    topic: Topic
    handle: Callable[[Any], Awaitable[None]]
    at_a_time: int = _AT_A_TIME
    """How many records are handled at a time."""


@dataclass
class _Partition:
    """How far one assigned partition is."""

    position: int = -1
    """The offset behind the last record handed to the loop."""
    in_flight: set[int] = field(default_factory=set)
    committed: int = -1

    def done_below(self) -> int:
        """Returns the offset to commit: everything before it is done."""
        return min(self.in_flight, default=self.position)


class Consumer:
    """One member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        group: str,
        subscriptions: Sequence[Subscription | RawSubscription],
        fetch_wait_ms: int = _FETCH_WAIT_MS,
    ) -> None:
        """Takes how long the broker may keep a question that it has no records for."""
        kafka_classes.make_all()
        self._bootstrap = settings.kafka_bootstrap.split(",")
        self._session_ms = round(settings.kafka_session_seconds * 1000)
        self._group = group
        self._fetch_wait_ms = fetch_wait_ms
        self._subscriptions: Mapping[str, Subscription | RawSubscription] = {
            subscription.topic.name: subscription for subscription in subscriptions
        }
        self._stopping = threading.Event()
        # Touched only by the event loop.
        self._places = {s.topic.name: asyncio.Semaphore(s.at_a_time) for s in subscriptions}
        self._open = {s.topic.name: asyncio.Event() for s in subscriptions}
        self.hold(())
        self._lanes: dict[tuple[str, bytes], deque[tuple[Any, _Partition]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Touched by the loop and the thread.
        self._lock = threading.Lock()
        self._partitions: dict[TopicPartition, _Partition] = {}

    def hold(self, topics: Collection[str]) -> None:
        """Begins with no more records of these topics, and goes on with all others.

        What is being handled is finished; a failure is not tried again. To be called from the
        event loop, or before it runs.
        """
        for name, is_open in self._open.items():
            if name in topics:
                is_open.clear()
            else:
                is_open.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Consumes until cancelled; calls `ready` when the group has given out partitions."""
        loop = asyncio.get_running_loop()
        self._burials = Burials(self._bootstrap, self._group)
        try:
            await run_in_thread(
                "kafka-consumer", lambda: self._consume(loop, ready), self._stopping
            )
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.to_thread(self._burials.close)

    # -- In the thread ---------------------------------------------------------------------

    def _consume(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                self._consume_until_stopped(loop, ready)
            except KafkaError as error:
                _log.warning("the consumer waits for the broker", error=repr(error))
                self._stopping.wait(random.uniform(0.2, 2.0))

    def _consume_until_stopped(
        self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]
    ) -> None:
        consumer = KafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=self._session_ms,
            heartbeat_interval_ms=self._session_ms // 6,
            fetch_max_wait_ms=self._fetch_wait_ms,
            max_poll_records=_POLL_RECORDS,
        )
        assigned = threading.Event()
        consumer.subscribe(list(self._subscriptions), listener=_Rebalance(self, consumer, assigned))
        last_commit = 0.0
        told = False
        try:
            while not self._stopping.is_set():
                self._pause_full(consumer)
                _take_back(consumer)
                batches = consumer.poll(timeout_ms=20 if consumer.paused() else 200)
                for partition, records in batches.items():
                    self._begin(partition, records, loop)
                if assigned.is_set() and not told:
                    told = True
                    ready()
                now = loop.time()
                if now - last_commit >= _COMMIT_SECONDS:
                    last_commit = now
                    self.commit(consumer)
            self.commit(consumer)
        finally:
            with self._lock:
                self._partitions.clear()
            consumer.close(autocommit=False)

    def _pause_full(self, consumer: KafkaConsumer) -> None:
        """Reads on in partitions whose window is half empty, and not in those that are full."""
        paused = consumer.paused()
        with self._lock:
            waiting = {key: len(partition.in_flight) for key, partition in self._partitions.items()}
        full = {key for key, count in waiting.items() if count >= _WINDOW}
        if full - paused:
            consumer.pause(*full - paused)
        if emptier := {key for key in paused if waiting.get(key, 0) <= _WINDOW // 2}:
            consumer.resume(*emptier)

    def _begin(
        self, key: TopicPartition, records: Sequence[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        with self._lock:
            partition = self._partitions.setdefault(key, _Partition())
            partition.position = records[-1].offset + 1
            records = [record for record in records if self._is_for_us(record)]
            partition.in_flight.update(record.offset for record in records)
        if records:
            loop.call_soon_threadsafe(self._queue, records, partition)

    def _is_for_us(self, record: Any) -> bool:
        """Tells whether a record is for all groups, or a dead letter of this one, replayed."""
        group = self._group.encode()
        return all(value == group for name, value in record.headers if name == ONLY_GROUP)

    def commit(self, consumer: KafkaConsumer) -> None:
        """Commits what is done. A failure is harmless: the records come again."""
        with self._lock:
            offsets = {
                key: partition.done_below()
                for key, partition in self._partitions.items()
                if partition.done_below() > partition.committed
            }
        if not offsets:
            return
        try:
            consumer.commit(
                {key: OffsetAndMetadata(offset, "", -1) for key, offset in offsets.items()}
            )
        except CommitFailedError:
            _log.info("the group was rebalanced before a commit")
            return
        with self._lock:
            for key, offset in offsets.items():
                if key in self._partitions:
                    self._partitions[key].committed = offset

    def forget(self, revoked: Sequence[TopicPartition]) -> None:
        """Drops partitions that now belong to another member; work in progress is harmless."""
        with self._lock:
            for key in revoked:
                self._partitions.pop(key, None)

    # -- In the event loop -----------------------------------------------------------------

    def _queue(self, records: Sequence[Any], partition: _Partition) -> None:
        """Puts records behind those with the same key, if order matters."""
        subscription = self._subscriptions[records[0].topic]
        in_order = isinstance(subscription, Subscription) and subscription.in_order
        for record in records:
            alone = b"%d/%d" % (record.partition, record.offset)
            key = (record.topic, record.key if in_order and record.key else alone)
            if key in self._lanes:
                self._lanes[key].append((record, partition))
            else:
                self._lanes[key] = deque([(record, partition)])
                task = asyncio.get_running_loop().create_task(self._work_off(key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work_off(self, key: tuple[str, bytes]) -> None:
        lane = self._lanes[key]
        while lane:
            record, partition = lane.popleft()
            headers = dict(record.headers)
            traceparent = headers.get(context.TRACEPARENT, b"").decode("ascii", "replace")
            context.enter(
                context.CallContext(
                    trace_id=context.trace_id_of(traceparent),
                    # Offsets begin anew in a broker that lost its log, hence the time.
                    event=f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}",
                )
            )
            await self._handle(record, partition)
            with self._lock:
                partition.in_flight.discard(record.offset)
        del self._lanes[key]

    async def _handle(self, record: Any, partition: _Partition) -> None:
        """Tries until a record is handled or buried, or another member has its partition."""
        failures = 0
        waits = 0
        while True:
            await self._open[record.topic].wait()
            async with self._places[record.topic]:
                if not self._has(partition):
                    return
                error = await self._attempt(record)
            if error is None:
                return
            if isinstance(error, Unavailable):
                waits += 1
                delay = _backoff(waits)
                _log.warning("handling waits", topic=record.topic, seconds=delay, error=str(error))
            else:
                failures += 1
                if self._is_hopeless(record, error, failures):
                    await self._bury(record, error)
                    return
                delay = _backoff(failures)
                _log.warning("handling failed", topic=record.topic, tries=failures, exc_info=error)
            await asyncio.sleep(delay)

    async def _attempt(self, record: Any) -> Exception | None:
        subscription = self._subscriptions[record.topic]
        try:
            if isinstance(subscription, RawSubscription):
                await subscription.handle(record)
            else:
                await subscription.handle(subscription.message.FromString(record.value))
        except Exception as error:
            return error
        return None

    def _is_hopeless(self, record: Any, error: Exception, failures: int) -> bool:
        if isinstance(error, Rejected | DecodeError):
            return True
        by_itself = isinstance(self._subscriptions[record.topic], Subscription)
        return by_itself and failures >= _TRIES

    def _has(self, partition: _Partition) -> bool:
        """Tells whether a partition is still this member's; else another handles its records."""
        with self._lock:
            return any(partition is own for own in self._partitions.values())

    async def _bury(self, record: Any, error: Exception) -> None:
        """Sends a record to the dead letters, however long the broker takes to accept it."""
        _log.error("dead letter", topic=record.topic, offset=record.offset, exc_info=error)
        attempt = 0
        while True:
            try:
                await asyncio.to_thread(
                    self._burials.bury, self._subscriptions[record.topic].topic, record, error
                )
                return
            except KafkaError as trouble:
                attempt += 1
                _log.warning("a dead letter waits for the broker", error=repr(trouble))
                await asyncio.sleep(_backoff(attempt))


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is not typed
    """Commits what is done before partitions go to another member."""

    def __init__(self, owner: Consumer, consumer: KafkaConsumer, assigned: threading.Event) -> None:
        self._owner = owner
        self._consumer = consumer
        self._assigned = assigned

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._owner.commit(self._consumer)
        self._owner.forget(revoked)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._assigned.set()


def _take_back(consumer: KafkaConsumer) -> None:
    """Lets the client go on with what it had fetched of a partition before that was paused.

    kafka-python 3.0 takes it back only while it holds nothing of another partition, and takes what
    is used up for something: a partition that was paused would wait for ever.
    """
    fetcher = consumer._fetcher
    if not fetcher._next_partition_records:
        fetcher._next_partition_records = None


def _backoff(attempt: int) -> float:
    """Returns how many seconds to wait after the `attempt`th failure: exponential, jittered."""
    most = min(_MOST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**attempt)
    return random.uniform(most / 2, most)
