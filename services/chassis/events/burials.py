"""Writing dead letters: records that a consumer group could not handle, to `<topic>.dlq`."""

import threading
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer

from services.chassis.events.topics import Topic, dead_letters

# Headers of a dead letter: why which consumer group could not handle which record of the topic.
DLQ_REASON = "dlq-reason"
DLQ_GROUP = "dlq-group"
DLQ_PARTITION = "dlq-partition"
DLQ_OFFSET = "dlq-offset"

ONLY_GROUP = "only-group"
"""Header of a replayed dead letter: the consumer group that handles it. Other groups skip it."""

_ACK_SECONDS = 10.0


class Burials:
    """Writes the dead letters of a consumer group; connects when there is the first one."""

    def __init__(self, bootstrap: Sequence[str], group: str) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None

    def bury(self, topic: Topic, record: Any, error: Exception) -> None:
        """Writes a dead letter; returns when the broker has acknowledged it. Blocks.

        Raises:
            KafkaError: it has not.
        """
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(
                    bootstrap_servers=self._bootstrap, acks="all", max_block_ms=5_000
                )
        self._producer.send(
            dead_letters(topic).name,
            key=record.key,
            value=record.value,
            headers=[
                *(header for header in record.headers if header[0] != ONLY_GROUP),
                (DLQ_REASON, f"{type(error).__name__}: {error}"[:1000].encode()),
                (DLQ_GROUP, self._group.encode()),
                (DLQ_PARTITION, str(record.partition).encode()),
                (DLQ_OFFSET, str(record.offset).encode()),
            ],
        ).get(timeout=_ACK_SECONDS)

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._producer is not None:
            self._producer.close(timeout=1)
