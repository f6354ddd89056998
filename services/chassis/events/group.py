"""A consumer group: what a process that consumes events serves and runs."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from services.chassis.config import KafkaSettings
from services.chassis.database.pool import Database
from services.chassis.events.consumer import Consumer, Subscription
from services.chassis.events.dead_letter_service import DeadLetterService
from services.chassis.events.dead_letters import DeadLetters
from services.chassis.events.lag import PartitionLag, read_lag
from services.chassis.events.outbox import Outbox
from services.chassis.jobs import periodic
from services.chassis.rpc.server import Service, Worker

# Dead letters need not be listed at once.
_FETCH_WAIT_MS = 1000

_PURGE_SECONDS = 3600.0
"""The mean pause between purges of dead letters that were replayed or dropped long ago."""


class ConsumerGroup:
    """A process's membership in a consumer group: its consumer, and the group's dead letters."""

    def __init__(
        self,
        name: str,
        settings: KafkaSettings,
        database: Database,
        outbox: Outbox,
        subscriptions: Sequence[Subscription],
    ) -> None:
        self._name = name
        self._settings = settings
        self.topics = [each.topic for each in subscriptions]
        self.consumer = Consumer(settings, group=name, subscriptions=subscriptions)
        dead_letters = DeadLetters(
            database, outbox, group=name, messages=[each.message for each in subscriptions]
        )
        burials = Consumer(
            settings,
            group=f"{name}-dead-letters",
            subscriptions=dead_letters.subscriptions(),
            fetch_wait_ms=_FETCH_WAIT_MS,
        )
        self.dead_letters = Service(
            "photomesh.common.v1.DeadLetterService", DeadLetterService(dead_letters)
        )
        self.workers = [
            Worker("consumer", self.consumer.run),
            Worker("dead-letters", burials.run),
            periodic(
                "dead-letters-purge",
                lambda: dead_letters.purge(datetime.now(UTC)),
                seconds=_PURGE_SECONDS,
            ),
        ]

    async def lag(self) -> list[PartitionLag]:
        """Returns the group's lag in all partitions of its topics.

        Raises:
            Unavailable: the broker does not answer.
        """
        return await asyncio.to_thread(read_lag, self._settings, self._name, self.topics)
