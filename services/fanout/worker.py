"""What fan-out does with each event. Every effect is idempotent: events come at least once."""

from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.events_pb2 import FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1 import post_internal_service_pb2 as post_pb
from photomesh.post.v1.events_pb2 import PostCreated
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.common.client import call, stream
from services.common.timelines import CAP, HomeTimelines

_STREAM_SECONDS = 60.0


class Fanout:
    """Keeps home timelines in step with posts and follows."""

    def __init__(
        self,
        timelines: HomeTimelines,
        graph: GraphInternalServiceStub,
        post: PostInternalServiceStub,
    ) -> None:
        self._timelines = timelines
        self._graph = graph
        self._post = post

    async def post_created(self, event: PostCreated) -> None:
        """Pushes a post into the timelines of its author and of all who follow them."""
        await self._timelines.push([event.author_id], [event.post_id])
        followers = stream(
            self._graph.StreamFollowers,
            graph_pb.StreamFollowersRequest(followee_id=event.author_id),
            within=_STREAM_SECONDS,
        )
        async for batch in followers:
            await self._timelines.push(batch.follower_ids, [event.post_id])

    async def follow_changed(self, event: FollowChanged) -> None:
        """Brings a follower's timeline in line with what holds now, whatever the event was."""
        if not await self._timelines.exists(event.follower_id):
            # Whoever builds it from now on reads the follow, which was committed before the event.
            return
        response = await call(
            self._graph.BatchCheckFollows,
            graph_pb.BatchCheckFollowsRequest(
                pairs=[
                    graph_pb.FollowPair(
                        follower_id=event.follower_id, followee_id=event.followee_id
                    )
                ]
            ),
        )
        if response.checks[0].follows:
            await self._backfill(event.follower_id, event.followee_id)
        else:
            # The next read rebuilds it. Also a rebuild that is under way, and may have read the
            # follow that is no more, is thereby refused.
            await self._timelines.drop(event.follower_id)

    async def _backfill(self, follower_id: int, followee_id: int) -> None:
        recent = await call(
            self._post.ListRecentByAuthors,
            post_pb.ListRecentByAuthorsRequest(author_ids=[followee_id], limit=CAP),
        )
        if recent.post_ids:
            await self._timelines.push([follower_id], recent.post_ids)
