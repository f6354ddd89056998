"""DeadLetterService, which every process that consumes events serves for its consumer group."""

from photomesh.common.v1 import dead_letter_service_pb2 as pb
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceServicer

from services.chassis.events.dead_letters import DeadLetters
from services.chassis.rpc import Context

_PAGE = 50


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
