"""A page of a home feed: skeleton (which posts), then hydration (the posts themselves)."""

from collections.abc import Sequence
from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import FeedState
from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1 import post_internal_service_pb2 as post_pb
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.common import logs
from services.common.client import call
from services.common.errors import Unavailable
from services.common.post_cache import CachedPost, PostCache
from services.common.timelines import CAP, Extent, HomeTimelines

_log = logs.logger(__name__)

COMPLETE = FeedState.FEED_STATE_COMPLETE
REGENERATING = FeedState.FEED_STATE_REGENERATING
DEGRADED = FeedState.FEED_STATE_DEGRADED


@dataclass(frozen=True)
class Skeleton:
    """Which posts stand in a part of a feed."""

    post_ids: Sequence[int]
    """Newest first."""
    more: bool
    """Whether older posts follow."""
    state: FeedState.ValueType


@dataclass(frozen=True)
class Page:
    """A part of a feed, ready to be sent."""

    posts: Sequence[bytes]
    """Serialised photomesh.post.v1.Post, newest first."""
    last_id: int
    """Behind which id the next page begins; 0: there is none."""
    state: FeedState.ValueType


class HomeFeed:
    """Reads home feeds from the cache, and from the database where the cache does not reach."""

    def __init__(
        self,
        timelines: HomeTimelines,
        posts: PostCache,
        graph: GraphInternalServiceStub,
        post: PostInternalServiceStub,
    ) -> None:
        self._timelines = timelines
        self._posts = posts
        self._graph = graph
        self._post = post

    async def page(self, reader_id: int, before: int, size: int) -> Page:
        """Returns up to `size` posts with ids below `before` (0: from the newest).

        Posts that are gone are made up for by older ones, so that a page is short only at the
        end of the feed, or when a part of the mesh is away.

        Raises:
            Unavailable: so much is away that there is nothing to show.
        """
        posts: list[bytes] = []
        state = COMPLETE
        more = True
        while more and len(posts) < size:
            skeleton = await self._skeleton(reader_id, before, size - len(posts))
            hydrated, all_known = await self._hydrate(skeleton.post_ids)
            state = max(state, skeleton.state if all_known else DEGRADED)
            posts += hydrated
            more = skeleton.more
            if skeleton.post_ids:
                before = skeleton.post_ids[-1]
            elif more:
                break
        return Page(posts, before if more else 0, state)

    # -- Skeleton --------------------------------------------------------------------------

    async def _skeleton(self, reader_id: int, before: int, count: int) -> Skeleton:
        try:
            # One more than asked for says whether there is a next page.
            cached = await self._timelines.read(reader_id, before, count + 1)
        except Unavailable:
            return await self._from_database(reader_id, before, count, DEGRADED)
        if cached.extent is Extent.ABSENT:
            return await self._rebuild(reader_id, before, count)
        if cached.extent is Extent.REBUILDING:
            return await self._from_database(reader_id, before, count, REGENERATING)
        if cached.extent is Extent.WHOLE or len(cached.post_ids) > count:
            return _cut(cached.post_ids, count, COMPLETE)
        return await self._past_the_cache(reader_id, cached.post_ids, before, count)

    async def _past_the_cache(
        self, reader_id: int, cached: Sequence[int], before: int, count: int
    ) -> Skeleton:
        """Goes on from the database where the timeline ends."""
        try:
            older = await self._from_database(
                reader_id, cached[-1] if cached else before, count - len(cached), COMPLETE
            )
        except Unavailable:
            if not cached:
                raise
            return Skeleton(cached, more=True, state=DEGRADED)
        return Skeleton([*cached, *older.post_ids], older.more, older.state)

    async def _rebuild(self, reader_id: int, before: int, count: int) -> Skeleton:
        """Fills the reader's timeline from the database, and answers out of the same read."""
        try:
            marker = await self._timelines.begin_rebuild(reader_id)
        except Unavailable:
            return await self._from_database(reader_id, before, count, DEGRADED)
        if marker is None:
            return await self._from_database(reader_id, before, count, REGENERATING)
        newest = await self._recent(reader_id, before=0, limit=CAP)
        try:
            await self._timelines.finish_rebuild(
                reader_id, marker, newest, whole=len(newest) < CAP, version=0
            )
        except Unavailable as error:
            _log.warning("a rebuilt feed was not stored", error=str(error))
        asked_for = [post_id for post_id in newest if not before or post_id < before]
        if len(newest) < CAP or len(asked_for) > count:
            return _cut(asked_for, count, REGENERATING)
        return await self._from_database(reader_id, before, count, REGENERATING)

    async def _from_database(
        self, reader_id: int, before: int, count: int, state: FeedState.ValueType
    ) -> Skeleton:
        return _cut(await self._recent(reader_id, before, count + 1), count, state)

    async def _recent(self, reader_id: int, before: int, limit: int) -> Sequence[int]:
        followees = await call(
            self._graph.ListFollowees, graph_pb.ListFolloweesRequest(follower_id=reader_id)
        )
        recent = await call(
            self._post.ListRecentByAuthors,
            post_pb.ListRecentByAuthorsRequest(
                author_ids=[reader_id, *followees.followee_ids],
                before_post_id=before,
                limit=limit,
            ),
        )
        return recent.post_ids

    # -- Hydration -------------------------------------------------------------------------

    async def _hydrate(self, post_ids: Sequence[int]) -> tuple[list[bytes], bool]:
        """Returns the posts that exist, and whether it is known of all whether they do."""
        if not post_ids:
            return [], True
        try:
            known = await self._posts.get(post_ids)
        except Unavailable:
            known = {}
        missing = [post_id for post_id in post_ids if post_id not in known]
        all_known = True
        if missing:
            try:
                fetched = await self._fetch(missing)
            except Unavailable:
                if not known:
                    raise
                all_known = False
            else:
                known |= fetched
        shown = (known.get(post_id) for post_id in post_ids)
        return [post.post for post in shown if post], all_known

    async def _fetch(self, post_ids: Sequence[int]) -> dict[int, CachedPost]:
        response = await call(
            self._post.BatchGetPosts, post_pb.BatchGetPostsRequest(post_ids=post_ids)
        )
        posts = {post.post_id: post for post in response.posts if post.post_id}
        served = {
            post_id: CachedPost(post.author.account_id, post.SerializeToString())
            for post_id, post in posts.items()
        }
        # A post whose author's name was away is served without it, but not kept.
        whole = {
            post_id: served[post_id] for post_id, post in posts.items() if post.author.username
        }
        if whole:
            try:
                await self._posts.put(whole)
            except Unavailable as error:
                _log.warning("posts were not cached", error=str(error))
        return served


def _cut(post_ids: Sequence[int], count: int, state: FeedState.ValueType) -> Skeleton:
    """Returns the first `count` of ids that were read one further."""
    return Skeleton(post_ids[:count], more=len(post_ids) > count, state=state)
