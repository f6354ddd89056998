"""Polling Kafka: the blocking side of a consumer, in a thread of its own.

The Kafka client is not thread-safe, so this thread alone polls, pauses, commits and takes part in
rebalances. It hands records over and learns through their `Partition` which are done. An offset is
committed when everything before it is done: a crash repeats records and loses none.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import CommitFailedError, KafkaError

from services.chassis.config import KafkaSettings
from services.chassis.events import kafka_classes
from services.chassis.telemetry import logs

_log = logs.logger(__name__)

WINDOW = 1000
"""How many records of one partition are in memory before it is paused. One takes about 1 KB."""

_POLL_RECORDS = 500
"""How many records one poll returns at most, and thus by how many a window may be exceeded."""

_COMMIT_SECONDS = 1.0


class Partition:
    """The progress of one partition while it is assigned to this consumer. Thread-safe."""

    def __init__(self) -> None:
        self.is_assigned = True
        """False once another member of the group handles the records."""
        self.committed = -1
        self._lock = threading.Lock()
        self._position = -1
        self._in_flight: set[int] = set()

    @property
    def in_flight(self) -> int:
        """How many records are not done."""
        return len(self._in_flight)

    def begin(self, records: Sequence[Any]) -> None:
        """Adds records that were polled, in their order."""
        with self._lock:
            self._in_flight.update(record.offset for record in records)
            self._position = records[-1].offset + 1

    def finish(self, records: Iterable[Any]) -> None:
        """Removes records that were handled, buried or skipped."""
        with self._lock:
            self._in_flight.difference_update(record.offset for record in records)

    def done_below(self) -> int:
        """Returns the offset to commit: every record before it is done."""
        with self._lock:
            return min(self._in_flight, default=self._position)


class Poller:
    """One member of a consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        group: str,
        topics: Sequence[str],
        fetch_wait_ms: int,
        deliver: Callable[[Sequence[Any], Partition], None],
    ) -> None:
        """Takes what is called, in the polling thread, with new records of one partition."""
        kafka_classes.make_all()
        self._bootstrap = settings.kafka_bootstrap.split(",")
        self._session_ms = round(settings.kafka_session_seconds * 1000)
        self._group = group
        self._topics = topics
        self._fetch_wait_ms = fetch_wait_ms
        self._deliver = deliver
        self._partitions: dict[TopicPartition, Partition] = {}

    def run(self, ready: Callable[[], None], stopping: threading.Event) -> None:
        """Polls until `stopping` is set; reconnects while the broker is unavailable. Blocks.

        Calls `ready` when the group has assigned partitions.
        """
        while not stopping.is_set():
            try:
                self._poll_until_stopped(ready, stopping)
            except KafkaError as error:
                _log.warning("consumer.blocked", group=self._group, error=repr(error))
                stopping.wait(random.uniform(0.2, 2.0))

    def _poll_until_stopped(self, ready: Callable[[], None], stopping: threading.Event) -> None:
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
        consumer.subscribe(self._topics, listener=_Rebalance(self, consumer, ready))
        last_commit = 0.0
        try:
            while not stopping.is_set():
                self._pause_full(consumer)
                _repair_fetcher(consumer)
                polled = consumer.poll(timeout_ms=20 if consumer.paused() else 200)
                for key, records in polled.items():
                    partition = self._partitions.setdefault(key, Partition())
                    partition.begin(records)
                    self._deliver(records, partition)
                now = time.monotonic()
                if now - last_commit >= _COMMIT_SECONDS:
                    last_commit = now
                    self.commit(consumer)
            self.commit(consumer)
        finally:
            self.forget(list(self._partitions))
            consumer.close(autocommit=False)

    def _pause_full(self, consumer: KafkaConsumer) -> None:
        """Pauses partitions whose window is full; resumes them when it is half empty."""
        paused = consumer.paused()
        in_flight = {key: partition.in_flight for key, partition in self._partitions.items()}
        full = {key for key, count in in_flight.items() if count >= WINDOW}
        if full - paused:
            consumer.pause(*full - paused)
        if emptier := {key for key in paused if in_flight.get(key, 0) <= WINDOW // 2}:
            consumer.resume(*emptier)

    def commit(self, consumer: KafkaConsumer) -> None:
        """Commits what is done. A failure is harmless: the records are polled again."""
        done = {key: partition.done_below() for key, partition in self._partitions.items()}
        offsets = {
            key: offset for key, offset in done.items() if offset > self._partitions[key].committed
        }
        if not offsets:
            return
        try:
            consumer.commit(
                {key: OffsetAndMetadata(offset, "", -1) for key, offset in offsets.items()}
            )
        except CommitFailedError:
            _log.info("commit.refused", group=self._group)
            return
        for key, offset in offsets.items():
            # A rebalance during the commit may have revoked the partition.
            if key in self._partitions:
                self._partitions[key].committed = offset

    def forget(self, revoked: Sequence[TopicPartition]) -> None:
        """Gives up partitions; records that are being handled are handled again by their owner."""
        for key in revoked:
            if partition := self._partitions.pop(key, None):
                partition.is_assigned = False


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is not typed
    """Commits what is done before partitions go to another member."""

    def __init__(
        self, poller: Poller, consumer: KafkaConsumer, assigned: Callable[[], None]
    ) -> None:
        self._poller = poller
        self._consumer = consumer
        self._assigned = assigned

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._poller.commit(self._consumer)
        self._poller.forget(revoked)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._assigned()


def _repair_fetcher(consumer: KafkaConsumer) -> None:
    """Drops a fetched partition that is used up, so that paused partitions can be resumed.

    kafka-python 3.0 returns to what it fetched of a partition before it was paused only while it
    holds no other partition, and mistakes one that is used up for one that it holds: a partition
    that was paused would wait forever.
    """
    fetcher = consumer._fetcher
    if not fetcher._next_partition_records:
        fetcher._next_partition_records = None
