"""The graph service's internal methods, in the order of the contract."""

from collections.abc import AsyncIterator

from photomesh.graph.v1 import graph_internal_service_pb2 as pb
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceServicer

from services.chassis.rpc import Context
from services.graph.packing import packed
from services.graph.store.audiences import Audiences, Mode
from services.graph.store.relations import Relations

_BATCH = 32_768
"""Maximum number of ids in a message of StreamFollowers: 256 KiB."""

_ID_BYTES = 8

_NO_END = (1 << 63) - 1
"""The largest id."""


class GraphInternalService(GraphInternalServiceServicer):
    """The follow graph: the internal methods."""

    def __init__(self, relations: Relations, audiences: Audiences) -> None:
        self._relations = relations
        self._audiences = audiences

    async def StreamFollowers(
        self, request: pb.StreamFollowersRequest, context: Context
    ) -> AsyncIterator[pb.StreamFollowersResponse]:
        after = request.after_follower_id
        # Each batch uses its own connection: a slow client holds none between batches, and a
        # database failover affects only the batch in progress.
        while True:
            ids = await self._audiences.followers(
                request.followee_id,
                after=after,
                until=request.until_follower_id or _NO_END,
                limit=_BATCH,
            )
            if ids:
                yield pb.StreamFollowersResponse.FromString(packed(1, ids))
            if len(ids) < _BATCH * _ID_BYTES:
                return
            after = int.from_bytes(ids[-_ID_BYTES:], "big")

    async def GetAudience(
        self, request: pb.GetAudienceRequest, context: Context
    ) -> pb.GetAudienceResponse:
        audience = await self._audiences.audience(request.followee_id)
        bounds: list[int] = []
        if audience.followers > request.chunk_size:
            bounds = await self._audiences.bounds(request.followee_id, size=request.chunk_size)
        return pb.GetAudienceResponse(
            mode=_mode(audience.mode),
            change_id=audience.change_id,
            followers=audience.followers,
            bounds=bounds,
        )

    async def ListFollowees(
        self, request: pb.ListFolloweesRequest, context: Context
    ) -> pb.ListFolloweesResponse:
        reading = await self._relations.reading(request.follower_id)
        response = pb.ListFolloweesResponse.FromString(
            packed(1, reading.followees) + packed(2, reading.pulled) + packed(3, reading.hidden)
        )
        response.version = reading.version
        return response

    async def BatchCheckFollows(
        self, request: pb.BatchCheckFollowsRequest, context: Context
    ) -> pb.BatchCheckFollowsResponse:
        checks = await self._relations.check(
            [(pair.follower_id, pair.followee_id) for pair in request.pairs]
        )
        return pb.BatchCheckFollowsResponse(
            checks=[
                pb.FollowCheck(
                    follows=check.follows,
                    muted=check.muted,
                    mode=_mode(check.mode),
                    version=check.version,
                )
                for check in checks
            ]
        )

    async def FinishModeChange(
        self, request: pb.FinishModeChangeRequest, context: Context
    ) -> pb.FinishModeChangeResponse:
        await self._audiences.finish_change(request.account_id, request.change_id)
        # The number of followers may have crossed a threshold unnoticed in the meantime.
        await self._audiences.update_mode(request.account_id)
        return pb.FinishModeChangeResponse()

    async def BatchCheckVisibility(
        self, request: pb.BatchCheckVisibilityRequest, context: Context
    ) -> pb.BatchCheckVisibilityResponse:
        relations = await self._relations.between(request.viewer_id, request.account_ids)
        return pb.BatchCheckVisibilityResponse(
            visible=[
                relation.sees or relation.other_id == request.viewer_id for relation in relations
            ]
        )


def _mode(mode: Mode) -> pb.AudienceMode.ValueType:
    return pb.AudienceMode.Value(f"AUDIENCE_MODE_{mode}")
