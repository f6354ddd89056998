"""How far a group of consumers is behind, as the broker knows it."""

from collections.abc import Sequence
from dataclasses import dataclass

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from services.common.config import KafkaSettings
from services.common.errors import Unavailable
from services.common.topics import Topic

_TIMEOUT_MS = 5_000


@dataclass(frozen=True)
class PartitionLag:
    """How far one partition is."""

    topic: str
    partition: int
    end: int
    """The offset that the next record will get."""
    committed: int
    """The offset below which all records are handled; -1: none was."""

    @property
    def lag(self) -> int:
        """How many records are not handled yet."""
        return self.end - max(self.committed, 0)


def read_lag(settings: KafkaSettings, group: str, topics: Sequence[Topic]) -> list[PartitionLag]:
    """Returns how far a group is. Blocks; opens a connection of its own.

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
            ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
            committed = admin.list_group_offsets({group: partitions})[group]
        finally:
            admin.close()
    except KafkaError as error:
        raise Unavailable("The broker") from error
    return [
        PartitionLag(
            key.topic,
            key.partition,
            ends[key].offset,
            committed[key].offset if key in committed else -1,
        )
        for key in partitions
    ]
