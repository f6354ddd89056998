"""The feed service's methods for operators, in the order of the contract."""

from photomesh.feed.v1 import feed_admin_service_pb2 as pb
from photomesh.feed.v1.feed_admin_service_pb2_grpc import FeedAdminServiceServicer

from services.chassis.rpc import Context
from services.chassis.telemetry import logs
from services.domain.timelines import CAP, Extent, HomeTimelines
from services.feed.peers import Peers
from services.feed.skeleton import Skeletons

_MAX_ENTRIES = 2 * CAP
"""More entries than any timeline has."""

_STATES = {
    Extent.ABSENT: pb.TIMELINE_STATE_ABSENT,
    Extent.REBUILDING: pb.TIMELINE_STATE_REBUILDING,
    Extent.PARTIAL: pb.TIMELINE_STATE_PARTIAL,
    Extent.WHOLE: pb.TIMELINE_STATE_WHOLE,
}

_log = logs.logger(__name__)


class FeedAdminService(FeedAdminServiceServicer):
    """Inspects and rebuilds home timelines."""

    def __init__(self, timelines: HomeTimelines, skeletons: Skeletons, peers: Peers) -> None:
        self._timelines = timelines
        self._skeletons = skeletons
        self._peers = peers

    async def InspectFeed(
        self, request: pb.InspectFeedRequest, context: Context
    ) -> pb.InspectFeedResponse:
        home = await self._timelines.read(request.account_id, 0, _MAX_ENTRIES)
        response = pb.InspectFeedResponse(state=_STATES[home.extent])
        if home.extent in (Extent.ABSENT, Extent.REBUILDING):
            return response
        followees = await self._peers.followees(request.account_id)
        pushed = set(followees.followee_ids) - set(followees.pulled_ids) - set(home.pulled)
        recent = await self._peers.recent([request.account_id, *pushed], before=0, limit=CAP)
        oldest = 0 if home.extent is Extent.WHOLE else min(home.post_ids, default=0)
        held = set(home.post_ids)
        response.post_ids.extend(home.post_ids)
        response.pulled_account_ids.extend(home.pulled)
        response.hidden_account_ids.extend(home.hidden)
        response.missing_post_ids.extend(
            post_id for post_id in recent if post_id >= oldest and post_id not in held
        )
        response.missing_pulled_account_ids.extend(set(followees.pulled_ids) - set(home.pulled))
        return response

    async def RebuildFeed(
        self, request: pb.RebuildFeedRequest, context: Context
    ) -> pb.RebuildFeedResponse:
        _log.info("rebuild.requested", account_id=request.account_id)
        await self._timelines.drop(request.account_id)
        await self._skeletons.rebuild(request.account_id)
        return pb.RebuildFeedResponse()
