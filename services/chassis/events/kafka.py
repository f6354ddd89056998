"""What the Kafka clients of every process have in common.

The client is librdkafka, through confluent-kafka. What hand-written code or another client would
cost instead was measured with the local broker, in CPU µs of the client's process for each record:

                               produced    consumed
    kafka-python and crc32c        13.7         5.3
    confluent-kafka                 2.4        0.85

aiokafka 0.14 could not be measured: its producer gets no producer id from that broker, and its
consumer receives nothing. What is written by hand is what no client has: a window for each
partition, so that a slow one does not stop the others (polling.py).
"""

import logging
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from services.chassis.config import KafkaSettings

Headers = Sequence[tuple[str, bytes]]

_CONNECT_SECONDS = 3.0
_ACK_SECONDS = 10.0


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Returns the options that all clients share."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "photomesh",
        # Clients report errors, and ours log them. librdkafka's own log has a line for each attempt
        # to connect, which are up to 20 a second; 2 leaves what is critical.
        "log_level": 2,
        "logger": logging.getLogger("librdkafka"),
        # Less than the defaults, 10 s and 60 s: a broker that restarts or fails over is found soon.
        "reconnect.backoff.max.ms": 1000,
        "socket.timeout.ms": 10_000,
    }


class Publisher:
    """Publishes records in batches, in order and without duplicates.

    After an error it may have lost its place in the sequence of its records: replace it.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        """Connects; blocks.

        Raises:
            KafkaException: the broker is unavailable.
        """
        self._errors: list[KafkaError] = []
        self._producer = Producer(
            {
                **client_options(settings),
                # Implies acks=all, and at most 5 requests at a time.
                "enable.idempotence": True,
                # As Java's clients and kafka-python do: a key never changes its partition.
                "partitioner": "murmur2_random",
                # One record batch for each partition: flush() sends it.
                "linger.ms": 1000,
                "delivery.timeout.ms": round(_ACK_SECONDS * 1000),
                "queue.buffering.max.kbytes": 256 * 1024,
                "delivery.report.only.error": True,
                "on_delivery": self._on_error,
            }
        )
        self._producer.list_topics(timeout=_CONNECT_SECONDS)

    def add(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Adds a record to the batch.

        Raises:
            KafkaException: an earlier record failed for good, or this one is too large.
        """
        self._producer.produce(topic, value, key, headers=list(headers))

    def flush(self) -> None:
        """Returns when the broker has acknowledged every record that was added. Blocks.

        Raises:
            KafkaException: it has not; some may have been published.
        """
        if self._producer.flush(_ACK_SECONDS):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if self._errors:
            raise KafkaException(self._errors[0])

    def close(self) -> None:
        """Drops records that are not acknowledged, and disconnects."""
        self._producer.purge()
        self._producer.close()

    def _on_error(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._errors.append(error)
