"""Calls to graph and post. Every method may raise Unavailable."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1 import post_internal_service_pb2 as post_pb
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.chassis.database.ids import created_at, least_id
from services.chassis.rpc.client import call, stream

_STREAM_SECONDS = 60.0
_SCAN_SECONDS = 15.0
"""Timeout of GetAudience: graph reads all of a large audience to find the bounds of its chunks."""

_PULLED_AFTER = timedelta(seconds=3)
"""How long it takes until all readers who pull a post see it: see services/feed/authors.py."""

_MAX_LATEST = 100
"""Maximum number of posts in this time. No person can post more."""


@dataclass(frozen=True)
class Recent:
    """An author's newest posts."""

    post_ids: Sequence[int]
    complete_from: int
    """The lowest id of `post_ids`, if there are older posts; 0: `post_ids` are all posts."""


def is_pulled(mode: AudienceMode.ValueType) -> bool:
    """Reports whether feeds must pull the posts of an account in this mode."""
    return mode in (AudienceMode.AUDIENCE_MODE_PROMOTING, AudienceMode.AUDIENCE_MODE_PULLED)


class Peers:
    """Fan-out's client for graph and post."""

    def __init__(
        self,
        graph: GraphInternalServiceStub,
        post: PostInternalServiceStub,
        *,
        chunk_size: int,
        backfill: int,
    ) -> None:
        """`chunk_size`: followers per chunk; `backfill`: how many posts `recent` returns."""
        self._graph = graph
        self._post = post
        self.chunk_size = chunk_size
        self._backfill = backfill

    async def audience(self, account_id: int) -> graph_pb.GetAudienceResponse:
        """Returns an account's mode and number of followers, with the bounds of the chunks."""
        request = graph_pb.GetAudienceRequest(followee_id=account_id, chunk_size=self.chunk_size)
        return await call(self._graph.GetAudience, request, within=_SCAN_SECONDS)

    async def followers(
        self, account_id: int, *, after: int, until: int
    ) -> AsyncIterator[Sequence[int]]:
        """Yields the ids of an account's followers above `after`, up to `until` (0: all)."""
        request = graph_pb.StreamFollowersRequest(
            followee_id=account_id, after_follower_id=after, until_follower_id=until
        )
        async for batch in stream(self._graph.StreamFollowers, request, within=_STREAM_SECONDS):
            yield batch.follower_ids

    async def check(self, follower_id: int, followee_id: int) -> graph_pb.FollowCheck:
        """Returns the relation between two accounts."""
        pair = graph_pb.FollowPair(follower_id=follower_id, followee_id=followee_id)
        request = graph_pb.BatchCheckFollowsRequest(pairs=[pair])
        return (await call(self._graph.BatchCheckFollows, request)).checks[0]

    async def mode(self, account_id: int) -> AudienceMode.ValueType:
        """Returns how an account's posts reach its followers."""
        # Unlike `audience`, this does not cost more for more followers.
        return (await self.check(account_id, account_id)).mode

    async def finish_mode_change(self, account_id: int, change_id: int) -> None:
        request = graph_pb.FinishModeChangeRequest(account_id=account_id, change_id=change_id)
        await call(self._graph.FinishModeChange, request)

    async def is_visible(self, author_id: int, post_id: int) -> bool:
        """Reports whether a post is published, and neither archived nor deleted."""
        # This reads one index row. BatchGetPosts would also request the author's name from account.
        request = post_pb.ListRecentByAuthorsRequest(
            author_ids=[author_id], before_post_id=post_id + 1, limit=1
        )
        return list((await call(self._post.ListRecentByAuthors, request)).post_ids) == [post_id]

    async def with_latest(self, author_id: int, post_id: int) -> Sequence[int]:
        """Returns a post, and its author's posts of the seconds before it."""
        since = least_id(created_at(post_id) - _PULLED_AFTER)
        request = post_pb.ListRecentByAuthorsRequest(
            author_ids=[author_id], before_post_id=post_id, limit=_MAX_LATEST
        )
        before = (await call(self._post.ListRecentByAuthors, request)).post_ids
        return [post_id, *(each for each in before if each >= since)]

    async def recent(self, author_id: int) -> Recent:
        """Returns an author's newest posts."""
        limit = self._backfill
        request = post_pb.ListRecentByAuthorsRequest(author_ids=[author_id], limit=limit + 1)
        post_ids = (await call(self._post.ListRecentByAuthors, request)).post_ids
        if len(post_ids) > limit:
            return Recent(post_ids[:limit], complete_from=post_ids[limit - 1])
        return Recent(post_ids, complete_from=0)
