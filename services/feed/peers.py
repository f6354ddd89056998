"""What feed asks graph and post, behind a circuit breaker for each.

A peer that is stalled costs the first few questions their patience, then nobody's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1 import post_internal_service_pb2 as post_pb
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub
from photomesh.post.v1.post_service_pb2 import Post

from services.common.breaker import Breaker, State
from services.common.client import call
from services.common.post_cache import CachedPost, Form

_SECONDS = 1.0
"""How long a question may take."""

_PROBE_SECONDS = 0.2
"""How long it may take to find out whether a peer is back: somebody's page waits for it."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True)
class Subscriptions:
    """Whose posts belong into a reader's feed."""

    followee_ids: Sequence[int]
    """All of them, without those who are muted."""
    pulled_ids: Sequence[int]
    """Those of them whose posts are not pushed, or soon will not be."""
    hidden_ids: Sequence[int]
    """Who is none of them, though posts of theirs may be in the timeline or on their way there."""
    version: int
    """Grows with every change."""


@dataclass(frozen=True)
class Fetched:
    """What post tells of posts."""

    posts: Mapping[int, CachedPost | None]
    """None: nobody may be shown the post."""
    lasting: frozenset[int]
    """Those that may be kept. A post whose author's name was away is shown without it."""


class Peers:
    """Graph and post, as feed sees them. Every method may raise Unavailable."""

    def __init__(self, graph: GraphInternalServiceStub, post: PostInternalServiceStub) -> None:
        self._graph = graph
        self._post = post
        self._graph_breaker = Breaker("Graph")
        self._post_breaker = Breaker("Post")

    async def subscriptions(self, reader_id: int) -> Subscriptions:
        """Returns whose posts a reader wants."""
        answer = await _ask(
            self._graph_breaker,
            self._graph.ListFollowees,
            graph_pb.ListFolloweesRequest(follower_id=reader_id),
        )
        return Subscriptions(
            answer.followee_ids, answer.pulled_ids, answer.hidden_ids, answer.version
        )

    async def recent(self, author_ids: Sequence[int], before: int, limit: int) -> Sequence[int]:
        """Returns up to `limit` of the authors' posts with ids below `before`, newest first."""
        answer = await _ask(
            self._post_breaker,
            self._post.ListRecentByAuthors,
            post_pb.ListRecentByAuthorsRequest(
                author_ids=author_ids, before_post_id=before, limit=limit
            ),
        )
        return answer.post_ids

    async def posts(self, post_ids: Sequence[int], form: Form) -> Fetched:
        """Returns posts as they are now."""
        answer = await _ask(
            self._post_breaker,
            self._post.BatchGetPosts,
            post_pb.BatchGetPostsRequest(post_ids=post_ids),
        )
        posts: dict[int, CachedPost | None] = dict.fromkeys(post_ids)
        posts |= {
            post.post_id: CachedPost(post.author.account_id, _written(post, form))
            for post in answer.posts
            if post.post_id
        }
        nameless = {
            post.post_id for post in answer.posts if post.post_id and not post.author.username
        }
        return Fetched(posts, frozenset(posts.keys() - nameless))


def _written(post: Post, form: Form) -> bytes:
    if form is Form.PROTO:
        return post.SerializeToString()
    # As the gateway writes all other answers.
    text = MessageToJson(
        post, always_print_fields_with_no_presence=True, indent=None, ensure_ascii=False
    )
    return text.encode()


async def _ask(
    breaker: Breaker,
    method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
) -> Response:
    with breaker.attempt():
        is_probe = breaker.state is State.PROBING
        return await call(method, request, within=_PROBE_SECONDS if is_probe else _SECONDS)
