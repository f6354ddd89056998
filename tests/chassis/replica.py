"""A replica of graph without a database: `python -m tests.chassis.replica`.

It uses the chassis's server and answers with its port. It never answers calls for the account whose
id is its port.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from photomesh.graph.v1 import graph_internal_service_pb2 as pb
from photomesh.graph.v1 import graph_internal_service_pb2_grpc as pb_grpc

from services.chassis.config import MeshSettings, load
from services.chassis.errors import DeadLetterUnknown
from services.chassis.rpc.server import Service, run, serve

# The accounts whose calls fail or hang.
UNKNOWN, BROKEN, SLOW = 101, 102, 103

SLOW_SECONDS = 1.5


class Graph(pb_grpc.GraphInternalServiceServicer):
    def __init__(self, port: int) -> None:
        self._port = port

    async def GetAudience(
        self, request: pb.GetAudienceRequest, context: Any
    ) -> pb.GetAudienceResponse:
        if request.followee_id == UNKNOWN:
            raise DeadLetterUnknown(UNKNOWN)
        if request.followee_id == BROKEN:
            raise RuntimeError("a secret of the server")
        if request.followee_id == self._port:
            await asyncio.Event().wait()
        await asyncio.sleep(SLOW_SECONDS if request.followee_id == SLOW else 0.01)
        return pb.GetAudienceResponse(followers=self._port)

    async def StreamFollowers(
        self, request: pb.StreamFollowersRequest, context: Any
    ) -> AsyncIterator[pb.StreamFollowersResponse]:
        yield pb.StreamFollowersResponse(follower_ids=[self._port])
        if request.followee_id == UNKNOWN:
            raise DeadLetterUnknown(UNKNOWN)

    async def _not_called(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    ListFollowees = BatchCheckFollows = FinishModeChange = BatchCheckVisibility = _not_called


async def main() -> None:
    settings = load(MeshSettings)
    graph = Graph(int(settings.listen.rpartition(":")[2]))
    await serve(
        settings,
        [Service("photomesh.graph.v1.GraphInternalService", graph)],
    )


if __name__ == "__main__":
    run(main)
