"""Writing dead letters: records that a consumer group could not handle, to `<topic>.dlq`."""

import threading

from services.chassis.config import KafkaSettings
from services.chassis.events.kafka import Publisher
from services.chassis.events.polling import Record
from services.chassis.events.topics import Topic, dead_letters

# Headers of a dead letter: why which consumer group could not handle which record of the topic.
DLQ_REASON = "dlq-reason"
DLQ_GROUP = "dlq-group"
DLQ_PARTITION = "dlq-partition"
DLQ_OFFSET = "dlq-offset"

ONLY_GROUP = "only-group"
"""Header of a replayed dead letter: the consumer group that handles it. Other groups skip it."""


class Burials:
    """Writes the dead letters of a consumer group; connects when there is the first one."""

    def __init__(self, settings: KafkaSettings, group: str) -> None:
        self._settings = settings
        self._group = group
        self._lock = threading.Lock()
        self._publisher: Publisher | None = None

    def bury(self, topic: Topic, record: Record, error: Exception) -> None:
        """Writes a dead letter; returns when the broker has acknowledged it. Blocks.

        Raises:
            KafkaException: it has not.
        """
        with self._lock:
            if self._publisher is None:
                self._publisher = Publisher(self._settings)
            try:
                self._publisher.add(
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
                )
                self._publisher.flush()
            except BaseException:
                self._disconnect()
                raise

    def close(self) -> None:
        """Closes the connection, if there is one."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
