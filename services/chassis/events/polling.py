"""Polling Kafka: the blocking side of a consumer, in a thread of its own.

This thread alone polls, pauses and takes part in rebalances. It hands records over and learns
through their `Partition` which are done. An offset is committed when everything before it is done:
a crash repeats records and loses none.
"""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from services.chassis.config import KafkaSettings
from services.chassis.events.kafka import Headers, client_options
from services.chassis.telemetry import logs

_log = logs.logger(__name__)

WINDOW = 1000
"""How many records of one partition are in memory before it is paused. One takes about 1 KB."""

_POLL_RECORDS = 500
"""How many records one poll returns at most, and thus by how many a window may be exceeded."""

_STORE_SECONDS = 0.2
_COMMIT_MS = 1000
_REBALANCE_SECONDS = 5.0
_CLOSE_SECONDS = 3.0


class Record(NamedTuple):
    """A record of a topic."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """In milliseconds."""
    key: bytes | None
    value: bytes
    headers: Headers


class Partition:
    """The progress of one partition while it is assigned to this consumer. Thread-safe."""

    def __init__(self) -> None:
        self.is_assigned = True
        """False once another member of the group handles the records."""
        self.is_paused = False
        self._lock = threading.Lock()
        self._position = -1
        self._in_flight: set[int] = set()

    @property
    def in_flight(self) -> int:
        """How many records are not done."""
        return len(self._in_flight)

    def begin(self, records: Sequence[Record]) -> None:
        """Adds records that were polled, in their order."""
        with self._lock:
            self._in_flight.update(record.offset for record in records)
            self._position = records[-1].offset + 1

    def finish(self, records: Iterable[Record]) -> None:
        """Removes records that were handled, buried or skipped."""
        with self._lock:
            self._in_flight.difference_update(record.offset for record in records)

    def done_below(self) -> int:
        """Returns the offset to commit: every record before it is done."""
        with self._lock:
            return min(self._in_flight, default=self._position)


_Partitions = dict[tuple[str, int], Partition]
"""By topic and number."""


class Poller:
    """One member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        group: str,
        topics: Sequence[str],
        fetch_wait_ms: int,
        deliver: Callable[[Sequence[Record], Partition], None],
    ) -> None:
        """Takes what is called, in the polling thread, with new records of one partition."""
        session_ms = round(settings.kafka_session_seconds * 1000)
        self._options = {
            **client_options(settings),
            "group.id": group,
            # A group can have members with other clients only while they share a strategy.
            "partition.assignment.strategy": "range,roundrobin",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": session_ms // 6,
            "auto.offset.reset": "earliest",
            # What is stored is committed every second, before a rebalance and on close.
            "enable.auto.offset.store": False,
            "auto.commit.interval.ms": _COMMIT_MS,
            "fetch.wait.max.ms": fetch_wait_ms,
            # What is fetched of a partition is dropped when it is paused, and fetched again later.
            "max.partition.fetch.bytes": 256 * 1024,
            # Of all partitions together, before the next fetch.
            "queued.min.messages": 2 * _POLL_RECORDS,
            "queued.max.messages.kbytes": 16 * 1024,
            "fetch.queue.backoff.ms": 5,
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
        }
        self._group = group
        self._topics = list(topics)
        self._deliver = deliver

    def run(self, ready: Callable[[], None], stopping: threading.Event) -> None:
        """Polls until `stopping` is set; reconnects while the broker is unavailable. Blocks.

        Calls `ready` when the group has assigned partitions.
        """
        while not stopping.is_set():
            try:
                self._poll_until_stopped(ready, stopping)
            except KafkaException as error:
                _log.warning("consumer.blocked", group=self._group, error=repr(error))
                stopping.wait(random.uniform(0.2, 2.0))

    def _poll_until_stopped(self, ready: Callable[[], None], stopping: threading.Event) -> None:
        partitions: _Partitions = {}
        is_member = False

        def on_assign(_: Consumer, assigned: Sequence[TopicPartition]) -> None:
            nonlocal is_member
            is_member = True
            partitions.update({(each.topic, each.partition): Partition() for each in assigned})
            ready()

        def on_revoke(consumer: Consumer, revoked: list[TopicPartition]) -> None:
            _store(consumer, partitions)
            on_lost(consumer, revoked)

        def on_lost(consumer: Consumer, lost: list[TopicPartition]) -> None:
            nonlocal is_member
            is_member = False
            # librdkafka would find it paused when it is assigned again.
            consumer.resume(lost)
            # Records that are being handled are handled again by their next owner.
            for each in lost:
                partitions.pop((each.topic, each.partition)).is_assigned = False

        consumer = Consumer(self._options)
        try:
            consumer.subscribe(
                self._topics, on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost
            )
            next_store = 0.0
            while not stopping.is_set():
                is_any_paused = _pause_full(consumer, partitions)
                for key, records in self._poll(consumer, 0.02 if is_any_paused else 0.2).items():
                    # A rebalance during the poll may have revoked the partition.
                    if partition := partitions.get(key):
                        partition.begin(records)
                        self._deliver(records, partition)
                if time.monotonic() >= next_store:
                    next_store = time.monotonic() + _STORE_SECONDS
                    _store(consumer, partitions)
            # Tansu 0.6 makes a group wait forever for a leader that leaves during a rebalance.
            deadline = time.monotonic() + _REBALANCE_SECONDS
            while not is_member and time.monotonic() < deadline:
                consumer.poll(0.1)
        finally:
            # Closing revokes what is assigned, commits, and leaves the group. It waits for a broker
            # that accepts connections and does not answer.
            closing = threading.Thread(target=consumer.close, name="kafka-close", daemon=True)
            closing.start()
            closing.join(_CLOSE_SECONDS)

    def _poll(
        self, consumer: Consumer, seconds: float
    ) -> Mapping[tuple[str, int], Sequence[Record]]:
        """Returns the records of each partition that have arrived, or that arrive first."""
        first = consumer.poll(seconds)
        if first is None:
            return {}
        polled: defaultdict[tuple[str, int], list[Record]] = defaultdict(list)
        # With a timeout, consume() would wait for that many messages.
        for message in (first, *consumer.consume(_POLL_RECORDS - 1, timeout=0)):
            if error := message.error():
                # librdkafka tries again by itself, such as when a topic does not exist yet.
                _log.warning("consumer.blocked", group=self._group, error=repr(error))
                continue
            record = _record(message)
            polled[record.topic, record.partition].append(record)
        return polled

    def _on_error(self, error: KafkaError) -> None:
        """Logs an outage; librdkafka reconnects. It reports each failed attempt, too."""
        if error.fatal() or error.code() == KafkaError._ALL_BROKERS_DOWN:
            _log.warning("consumer.blocked", group=self._group, error=repr(error))

    def _on_commit(self, error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
        """Logs a failure. It is harmless: the records are handled again, or committed later."""
        if error is not None and error.code() != KafkaError._NO_OFFSET:
            _log.info("commit.refused", group=self._group, error=repr(error))


def _pause_full(consumer: Consumer, partitions: _Partitions) -> bool:
    """Pauses partitions whose window is full; resumes them when it is half empty.

    Returns whether any is paused.
    """
    full: list[TopicPartition] = []
    emptier: list[TopicPartition] = []
    for key, partition in partitions.items():
        if not partition.is_paused and partition.in_flight >= WINDOW:
            partition.is_paused = True
            full.append(TopicPartition(*key))
        elif partition.is_paused and partition.in_flight <= WINDOW // 2:
            partition.is_paused = False
            emptier.append(TopicPartition(*key))
    if full:
        consumer.pause(full)
    if emptier:
        consumer.resume(emptier)
    return any(partition.is_paused for partition in partitions.values())


def _store(consumer: Consumer, partitions: _Partitions) -> None:
    """Notes what is done, to be committed."""
    done = {key: partition.done_below() for key, partition in partitions.items()}
    offsets = [TopicPartition(*key, offset) for key, offset in done.items() if offset >= 0]
    if offsets:
        consumer.store_offsets(offsets=offsets)


def _record(message: Any) -> Record:  # Each of its types allows for None.
    _, timestamp = message.timestamp()
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        timestamp,
        message.key(),
        message.value() or b"",
        [(name, value or b"") for name, value in message.headers() or ()],
    )
