"""The lag of a consumer group, as the broker reports it.

The end of a partition is the high watermark of a fetch. ListOffsets is not used: Tansu 0.6 returns
the first offset of a batch of records, so a lag of thousands appears as none.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from services.chassis.config import KafkaSettings
from services.chassis.errors import Unavailable
from services.chassis.events.kafka import client_options
from services.chassis.events.topics import Topic

_TIMEOUT_SECONDS = 5.0

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
    # It reads what the group has committed, and does not join it.
    consumer = Consumer(
        {
            **client_options(settings),
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": _FETCH_MS,
            # One batch of records per partition is enough.
            "max.partition.fetch.bytes": 1,
            "queued.min.messages": 1,
        }
    )
    with contextlib.closing(consumer):
        try:
            committed = consumer.committed(
                [
                    TopicPartition(topic.name, number)
                    for topic in topics
                    for number in range(topic.partitions)
                ],
                timeout=_TIMEOUT_SECONDS,
            )
            return _fetch_ends(consumer, committed)
        except KafkaException as error:
            raise Unavailable("The broker") from error


def _fetch_ends(consumer: Consumer, committed: Sequence[TopicPartition]) -> list[PartitionLag]:
    """Adds the end of each partition, by a fetch from the offset that is committed.

    Raises:
        KafkaException: the broker does not answer.
    """
    ends: dict[TopicPartition, int] = {}
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    consumer.assign(
        [TopicPartition(each.topic, each.partition, max(each.offset, 0)) for each in committed]
    )
    while len(ends) < len(committed):
        if time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        consumer.consume(100, timeout=0.02)
        for each in committed:
            if each not in ends:
                _, end = consumer.get_watermark_offsets(each, cached=True)
                if end >= 0:
                    ends[each] = end
    return [
        PartitionLag(each.topic, each.partition, ends[each], max(each.offset, -1))
        for each in committed
    ]
