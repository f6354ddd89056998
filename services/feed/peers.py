"""Calls to graph and post, each with a concurrency limit and a circuit breaker.

If a peer stalls, readers wait only until its breaker opens.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1 import post_internal_service_pb2 as post_pb
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub
from photomesh.post.v1.post_service_pb2 import Post

from services.chassis.breaker import Breaker
from services.chassis.errors import Unavailable
from services.chassis.rpc.client import call
from services.chassis.rpc.rest import as_json
from services.domain.post_cache import CachedPost, Form

_SECONDS = 1.0
"""Timeout of a call, without the wait for a slot."""

_CONCURRENT_CALLS = 8
"""Maximum number of concurrent calls to a peer. Further calls would wait just as long at the peer,
which would still process them after their readers have timed out."""

_MAX_WAITING = 1_000
"""Maximum number of calls that wait for a slot."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True)
class Fetched:
    """Posts as the post service returned them."""

    posts: Mapping[int, CachedPost | None]
    """None: the post must not be shown to anyone."""
    lasting: frozenset[int]
    """Posts that may be cached. A post without its author's name may not: account was
    unavailable."""


class PeerUnavailable(Unavailable):
    """A peer is unavailable, slow or overloaded."""


class GraphUnavailable(PeerUnavailable):
    """Graph is unavailable, slow or overloaded."""


class Peers:
    """Feed's client for graph and post. Methods raise PeerUnavailable."""

    def __init__(self, graph: GraphInternalServiceStub, post: PostInternalServiceStub) -> None:
        self._graph = graph
        self._post = post
        self._limited_graph = _LimitedPeer("Graph", GraphUnavailable)
        self._limited_post = _LimitedPeer("Post", PeerUnavailable)

    async def followees(self, reader_id: int) -> graph_pb.ListFolloweesResponse:
        """Returns the authors whose posts belong to a reader's feed.

        Raises:
            GraphUnavailable: graph is unavailable, slow or overloaded.
        """
        return await self._limited_graph.call(
            self._graph.ListFollowees, graph_pb.ListFolloweesRequest(follower_id=reader_id)
        )

    async def recent(self, author_ids: Sequence[int], before: int, limit: int) -> Sequence[int]:
        """Returns up to `limit` of the authors' posts with ids below `before`, newest first."""
        response = await self._limited_post.call(
            self._post.ListRecentByAuthors,
            post_pb.ListRecentByAuthorsRequest(
                author_ids=author_ids, before_post_id=before, limit=limit
            ),
        )
        return response.post_ids

    async def posts(self, post_ids: Sequence[int], form: Form) -> Fetched:
        """Returns the current state of posts."""
        response = await self._limited_post.call(
            self._post.BatchGetPosts, post_pb.BatchGetPostsRequest(post_ids=post_ids)
        )
        posts: dict[int, CachedPost | None] = dict.fromkeys(post_ids)
        posts |= {
            post.post_id: CachedPost(post.author.account_id, _serialized(post, form))
            for post in response.posts
            if post.post_id
        }
        nameless = {
            post.post_id for post in response.posts if post.post_id and not post.author.username
        }
        return Fetched(posts, frozenset(posts.keys() - nameless))


def _serialized(post: Post, form: Form) -> bytes:
    return post.SerializeToString() if form is Form.PROTO else as_json(post)


class _LimitedPeer:
    """Calls one peer, with a limit on concurrency and a circuit breaker."""

    def __init__(self, peer: str, unavailable: type[PeerUnavailable]) -> None:
        self._peer = peer
        self._unavailable = unavailable
        self._breaker = Breaker(peer)
        self._slots = asyncio.Semaphore(_CONCURRENT_CALLS)
        self._waits: set[asyncio.Timeout] = set()

    async def call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request
    ) -> Response:
        if len(self._waits) >= _MAX_WAITING:
            raise self._unavailable(self._peer)
        try:
            attempt = self._breaker.call(probe=lambda: call(method, request, within=_SECONDS))
        except Unavailable as error:
            self._give_up()
            raise self._unavailable(self._peer) from error
        wait = asyncio.timeout(None)
        try:
            with attempt:
                try:
                    async with wait:
                        self._waits.add(wait)
                        async with self._slots:
                            return await call(method, request, within=_SECONDS)
                except TimeoutError as error:
                    raise Unavailable(self._peer) from error
                finally:
                    self._waits.discard(wait)
        except Unavailable as error:
            raise self._unavailable(self._peer) from error

    def _give_up(self) -> None:
        """Fails all calls that have waited for a slot since before the circuit opened."""
        waits, self._waits = self._waits, set()
        for wait in waits:
            wait.reschedule(0)
