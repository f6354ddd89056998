"""The lag of a consumer group, as the broker reports it.

The end of a partition is the high watermark of a fetch. ListOffsets is not used: Tansu 0.6 returns
the first offset of a batch of records, so a lag of thousands appears as none.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from services.chassis.config import KafkaSettings
from services.chassis.errors import Unavailable
from services.chassis.events.topics import Topic

_TIMEOUT_MS = 5_000

_FETCH_MS = 200
"""How long a broker without new records may wait before it answers a fetch. Brokers that check for
new records only occasionally answer sooner if they have some."""


@dataclass(frozen=True)
class PartitionLag:
    """A consumer group's position in one partition."""

    topic: str
    partition: int
    end: int
    """The offset that the next record will get."""
    committed: int
    """All records below this offset are handled; -1: no offset was committed."""

    @property
    def lag(self) -> int:
        """The number of records not handled yet."""
        return self.end - max(self.committed, 0)


def read_lag(settings: KafkaSettings, group: str, topics: Sequence[Topic]) -> list[PartitionLag]:
    """Returns the lag of a group in all partitions. Blocks; opens its own connection.

    Raises:
        Unavailable: the broker does not answer.
    """
    partitions = [
        TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)
    ]
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=settings.kafka_bootstrap.split(","), request_timeout_ms=_TIMEOUT_MS
        )
        try:
            found = admin.list_group_offsets({group: partitions})[group]
        finally:
            admin.close()
        committed = {key: found[key].offset if key in found else -1 for key in partitions}
        ends = read_ends(settings, {key: max(offset, 0) for key, offset in committed.items()})
    except KafkaError as error:
        raise Unavailable("The broker") from error
    return [PartitionLag(key.topic, key.partition, ends[key], committed[key]) for key in partitions]


def read_ends(
    settings: KafkaSettings, starts: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Returns the end of each partition, by a fetch from the given offset. Blocks.

    Raises:
        KafkaError: the broker does not answer.
    """
    ends: dict[TopicPartition, int] = {}
    deadline = time.monotonic() + _TIMEOUT_MS / 1000
    consumer = KafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap.split(","),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=_FETCH_MS,
        # One batch of records per partition is enough.
        max_partition_fetch_bytes=1,
    )
    try:
        consumer.assign(list(starts))
        for key, offset in starts.items():
            consumer.seek(key, offset)
        while len(ends) < len(starts):
            if time.monotonic() > deadline:
                raise KafkaTimeoutError("not all partitions were fetched in time")
            consumer.poll(timeout_ms=_FETCH_MS)
            fetched = {
                key: end
                for key in starts.keys() - ends.keys()
                if (end := consumer.highwater(key)) is not None
            }
            ends |= fetched
            # These are not fetched again.
            consumer.pause(*fetched)
    finally:
        consumer.close(autocommit=False)
    return ends
