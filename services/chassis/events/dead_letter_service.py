"""DeadLetterService, which every process that consumes events serves for its consumer group."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
from photomesh.common.v1 import dead_letter_service_pb2 as pb
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceServicer

from services.chassis.config import KafkaSettings
from services.chassis.database.pool import Database
from services.chassis.events.consumer import Consumer, Subscription
from services.chassis.events.dead_letters import DeadLetters
from services.chassis.events.outbox import Outbox
from services.chassis.jobs import periodic
from services.chassis.rpc.server import Service, Worker

_PAGE = 50

# Dead letters need not be listed at once.
_FETCH_WAIT_MS = 1000

_PURGE_SECONDS = 3600.0
"""The mean pause between purges of dead letters that were settled long ago."""

Context = grpc.aio.ServicerContext[Any, Any]


def dead_letters_of(
    settings: KafkaSettings,
    database: Database,
    outbox: Outbox,
    *,
    group: str,
    subscriptions: Sequence[Subscription],
) -> tuple[Service, list[Worker]]:
    """Returns what a process with a consumer group serves and runs for its dead letters."""
    dead_letters = DeadLetters(
        database, outbox, group=group, messages=[each.message for each in subscriptions]
    )
    burials = Consumer(
        settings,
        group=f"{group}-dead-letters",
        subscriptions=dead_letters.subscriptions(),
        fetch_wait_ms=_FETCH_WAIT_MS,
    )

    async def purge() -> None:
        await dead_letters.purge(datetime.now(UTC))

    servicer = DeadLetterService(dead_letters)
    service = Service("photomesh.common.v1.DeadLetterService", servicer)
    return service, [
        Worker("dead-letters", burials.run),
        periodic("dead-letters-purge", purge, seconds=_PURGE_SECONDS),
    ]


class DeadLetterService(DeadLetterServiceServicer):
    """The dead letters of one consumer group, in the order of the contract."""

    def __init__(self, dead_letters: DeadLetters) -> None:
        self._dead_letters = dead_letters

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        found = await self._dead_letters.open(
            topic=request.topic, after_id=request.after_id, limit=request.page_size or _PAGE
        )
        return pb.ListDeadLettersResponse(dead_letters=found)

    async def GetDeadLetter(
        self, request: pb.GetDeadLetterRequest, context: Context
    ) -> pb.GetDeadLetterResponse:
        found = await self._dead_letters.get(request.dead_letter_id)
        return pb.GetDeadLetterResponse(dead_letter=found)

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Context
    ) -> pb.ReplayDeadLettersResponse:
        replayed = await self._dead_letters.replay(request.dead_letter_ids)
        return pb.ReplayDeadLettersResponse(replayed_ids=replayed)

    async def DropDeadLetters(
        self, request: pb.DropDeadLettersRequest, context: Context
    ) -> pb.DropDeadLettersResponse:
        dropped = await self._dead_letters.drop(request.dead_letter_ids)
        return pb.DropDeadLettersResponse(dropped_ids=dropped)
