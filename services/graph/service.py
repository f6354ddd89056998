"""The graph service's methods, in the order of its contracts."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from photomesh.account.v1.account_internal_service_pb2 import BatchGetAccountsRequest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1 import graph_internal_service_pb2 as internal_pb
from photomesh.graph.v1 import graph_service_pb2 as pb
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceServicer
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceServicer

from services.common import client
from services.common.context import signed_in
from services.common.errors import AccountUnknown
from services.graph.errors import SelfFollow
from services.graph.store import GraphStore

_BATCH = 2_000
"""How many ids a message of StreamFollowers holds at most: 16 KB."""

_NO_END = (1 << 63) - 1
"""No id is above it."""

Context = grpc.aio.ServicerContext[Any, Any]


class GraphService(GraphServiceServicer):
    """Following, for people."""

    def __init__(self, store: GraphStore, accounts: AccountInternalServiceStub) -> None:
        self._store = store
        self._accounts = accounts

    async def Follow(self, request: pb.FollowRequest, context: Context) -> pb.FollowResponse:
        follower_id = signed_in()
        if request.account_id == follower_id:
            raise SelfFollow
        await self._check_account(request.account_id)
        await self._store.follow(follower_id, request.account_id)
        return pb.FollowResponse()

    async def Unfollow(self, request: pb.UnfollowRequest, context: Context) -> pb.UnfollowResponse:
        await self._store.unfollow(signed_in(), request.account_id)
        return pb.UnfollowResponse()

    async def _check_account(self, account_id: int) -> None:
        answer = await client.call(
            self._accounts.BatchGetAccounts, BatchGetAccountsRequest(account_ids=[account_id])
        )
        if not answer.accounts[0].account_id:
            raise AccountUnknown(account_id)


class GraphInternalService(GraphInternalServiceServicer):
    """The follow graph, for the mesh."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store

    async def StreamFollowers(
        self, request: internal_pb.StreamFollowersRequest, context: Context
    ) -> AsyncIterator[internal_pb.StreamFollowersResponse]:
        after = request.after_follower_id
        until = request.until_follower_id or _NO_END
        # Each batch takes a connection for itself: a reader that is slow to take the last one
        # holds none, and a database that fails over is met only by the batch in between.
        while True:
            batch = await self._store.followers(
                request.followee_id, after=after, until=until, limit=_BATCH
            )
            if batch:
                yield internal_pb.StreamFollowersResponse(follower_ids=batch)
            if len(batch) < _BATCH:
                return
            after = batch[-1]

    async def GetAudience(
        self, request: internal_pb.GetAudienceRequest, context: Context
    ) -> internal_pb.GetAudienceResponse:
        followers = await self._store.count_followers(request.followee_id)
        bounds = []
        if followers > request.chunk_size:
            bounds = await self._store.chunks(request.followee_id, size=request.chunk_size)
        return internal_pb.GetAudienceResponse(
            mode=AudienceMode.AUDIENCE_MODE_PUSHED, followers=followers, bounds=bounds
        )

    async def ListFollowees(
        self, request: internal_pb.ListFolloweesRequest, context: Context
    ) -> internal_pb.ListFolloweesResponse:
        followee_ids = await self._store.followees(request.follower_id)
        return internal_pb.ListFolloweesResponse(followee_ids=followee_ids)

    async def BatchCheckFollows(
        self, request: internal_pb.BatchCheckFollowsRequest, context: Context
    ) -> internal_pb.BatchCheckFollowsResponse:
        pairs = [(pair.follower_id, pair.followee_id) for pair in request.pairs]
        checks = [
            internal_pb.FollowCheck(follows=follows, mode=AudienceMode.AUDIENCE_MODE_PUSHED)
            for follows in await self._store.check(pairs)
        ]
        return internal_pb.BatchCheckFollowsResponse(checks=checks)

    async def FinishModeChange(
        self, request: internal_pb.FinishModeChangeRequest, context: Context
    ) -> internal_pb.FinishModeChangeResponse:
        return internal_pb.FinishModeChangeResponse()

    async def BatchCheckVisibility(
        self, request: internal_pb.BatchCheckVisibilityRequest, context: Context
    ) -> internal_pb.BatchCheckVisibilityResponse:
        return internal_pb.BatchCheckVisibilityResponse(visible=[True] * len(request.account_ids))
