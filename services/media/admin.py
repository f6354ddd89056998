"""What site reliability engineers do with media, in the order of the contract."""

from typing import Any

import grpc
from photomesh.media.v1 import media_admin_service_pb2 as pb
from photomesh.media.v1.media_admin_service_pb2_grpc import MediaAdminServiceServicer

from services.common.dead_letters import DeadLetters

_PAGE = 50

Context = grpc.aio.ServicerContext[Any, Any]


class MediaAdminService(MediaAdminServiceServicer):
    """Dead letters of media's topics."""

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
