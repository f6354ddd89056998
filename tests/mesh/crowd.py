"""Many concurrent users who call the services as the gateway does, checked by an oracle.

Only the rows that the feed needs are inserted directly: accounts without a usable password, and
media without files. All operations go through the services.
"""

import asyncio
import random
import secrets
import time
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import psycopg
from google.protobuf.message import Message
from photomesh.feed.v1.feed_service_pb2 import FeedState, GetFeedRequest
from photomesh.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from photomesh.graph.v1 import graph_service_pb2 as graph_pb
from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from photomesh.post.v1 import post_service_pb2 as post_pb
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated
from photomesh.post.v1.post_service_pb2_grpc import PostServiceStub

from deploy.local.stack import Stack
from services.chassis.database.ids import SHARDS
from tests.callers import Refusal, as_user, channel_to, pages_of
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh import mishaps
from tests.mesh.oracle import Oracle

_MAX_ASKED = 100
"""How many accounts one request to graph may ask about."""

_UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

_ADD_ACCOUNTS = """
    WITH new AS (
             INSERT INTO accounts (shard, account_id, username, password_hash)
             SELECT shard, next_id(shard), %(prefix)s || position, 'no password'
               FROM unnest(%(shards)s::smallint[]) WITH ORDINALITY AS drawn (shard, position)
             RETURNING account_id, username
         ), named AS (
             INSERT INTO usernames (normal_name, account_id) SELECT username, account_id FROM new
         )
    SELECT account_id FROM new
"""

_ADD_MEDIA = """
    INSERT INTO media (shard, media_id, owner_id, size_bytes, content_type, state, etag,
                       width, height, variants)
    SELECT (owner_id >> 10 & 8191)::smallint, next_id((owner_id >> 10 & 8191)::integer), owner_id,
           1, 'image/jpeg', 'READY', 'none', 1, 1, '[]'
      FROM unnest(%(owner_ids)s::bigint[]) AS owner_id
    RETURNING owner_id, media_id
"""

_ADD_FOLLOWS = """
    WITH edges AS (
             SELECT fan, star
               FROM unnest(%(fans)s::bigint[], %(stars)s::bigint[]) AS edge (fan, star)
         ), added AS (
             INSERT INTO follows (shard, follower_id, followee_id)
             SELECT shard_of(fan), fan, star FROM edges
         ), mirrored AS (
             INSERT INTO followers (shard, followee_id, follower_id)
             SELECT shard_of(star), star, fan FROM edges
         ), counted AS (
             INSERT INTO followee_counts (shard, follower_id, followees, version)
             SELECT shard_of(fan), fan, count(*), count(*) FROM edges GROUP BY fan
         )
    INSERT INTO follower_counts (shard, followee_id, slot, followers)
    SELECT shard_of(star), star, shard_of(fan) %% 16, count(*)
      FROM edges
     GROUP BY star, shard_of(fan) %% 16
"""

DEEDS: Mapping[str, tuple[str, type]] = {
    "follow": ("Follow", graph_pb.FollowRequest),
    "unfollow": ("Unfollow", graph_pb.UnfollowRequest),
    "accept": ("AcceptFollow", graph_pb.AcceptFollowRequest),
    "decline": ("DeclineFollow", graph_pb.DeclineFollowRequest),
    "remove": ("RemoveFollower", graph_pb.RemoveFollowerRequest),
    "block": ("Block", graph_pb.BlockRequest),
    "unblock": ("Unblock", graph_pb.UnblockRequest),
    "mute": ("Mute", graph_pb.MuteRequest),
    "unmute": ("Unmute", graph_pb.UnmuteRequest),
}
"""The operations of one account on another."""

_POST_DEEDS: Mapping[str, tuple[str, type]] = {
    "delete": ("DeletePost", post_pb.DeletePostRequest),
    "archive": ("ArchivePost", post_pb.ArchivePostRequest),
    "unarchive": ("UnarchivePost", post_pb.UnarchivePostRequest),
}


class _Unavailable(Exception):
    """A page could not be read, but a retry may succeed."""


@dataclass(frozen=True)
class _Page:
    """One page of a feed."""

    posts: Sequence[tuple[int, int]]
    """(post, author) pairs."""
    next_page_token: str
    degraded: bool


@dataclass
class Paging:
    """The progress of reading a feed page by page."""

    token: str = ""
    seen: list[int] = field(default_factory=list)
    degraded: bool = False
    """Whether any page was marked as possibly incomplete."""


@dataclass
class Crowd:
    """The users, their operations, and the oracle that checks the results."""

    mesh: Stack
    people: Sequence[int]
    media: Mapping[int, int]
    graph: GraphServiceStub
    post: PostServiceStub
    feed: FeedServiceStub
    rest: httpx.AsyncClient
    oracle: Oracle
    posts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    pagings: dict[int, Paging] = field(default_factory=lambda: defaultdict(Paging))
    ties: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    """Each user's followees, followers, requesters, blocked and muted, according to responses."""
    buried: int = 0
    """How many dead letters there were at the start."""
    unknown: dict[int, int] = field(default_factory=dict)
    """The authors of posts that were seen before CreatePost returned."""
    pages: int = 0
    """How many pages were read."""
    patience: float = PATIENCE_SECONDS
    """For how many seconds calls to an unavailable service are retried."""

    async def begin_with(self, edges: Sequence[tuple[int, int]]) -> None:
        """Inserts follows between users, given by their numbers, before any feed is read."""
        follows = [(self.people[fan], self.people[star]) for fan, star in edges]
        await asyncio.to_thread(_add_follows, self.mesh, follows)
        for fan, star in follows:
            self.oracle.end(self.oracle.begin("follow", fan, star), "following")
            self._record_ties("follow", fan, star, "following")

    # -- Operations ------------------------------------------------------------------------

    async def do(self, kind: str, actor: int, other: int) -> str:
        """Runs an operation on an account or on an own post; returns the result."""
        stub, (method, request) = (
            (self.post, _POST_DEEDS[kind]) if kind in _POST_DEEDS else (self.graph, DEEDS[kind])
        )
        named = {"post_id" if kind in _POST_DEEDS else "account_id": other}
        deadline = time.monotonic() + self.patience
        while True:
            operation = self.oracle.begin(kind, actor, other)
            try:
                response = await getattr(stub, method)(
                    request(**named), metadata=as_user(actor), timeout=PATIENCE_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _UNAVAILABLE and time.monotonic() < deadline:
                    # Its outcome is unknown, so the retry is another operation.
                    await asyncio.sleep(0.1)
                    continue
                if error.code() in _UNAVAILABLE:
                    raise
                answer = Refusal.of(error).reason
            else:
                answer = "done"
                if kind == "follow":
                    is_request = response.state == graph_pb.FOLLOW_STATE_REQUESTED
                    answer = "requested" if is_request else "following"
            self.oracle.end(operation, answer)
            self._record_ties(kind, actor, other, answer)
            return answer

    def _record_ties(self, kind: str, actor: int, other: int, answer: str) -> None:
        def tie(name: str, one: int, another: int, holds: bool) -> None:
            (self.ties[name, one].add if holds else self.ties[name, one].discard)(another)

        def follows(follower: int, followee: int, holds: bool) -> None:
            tie("followees", follower, followee, holds)
            tie("followers", followee, follower, holds)

        if kind in ("follow", "unfollow"):
            follows(actor, other, answer == "following")
            tie("requesters", other, actor, answer == "requested")
        if kind in ("accept", "decline", "remove", "block"):
            follows(other, actor, kind == "accept" and answer == "done")
            tie("requesters", actor, other, False)
        if kind == "block":
            follows(actor, other, False)
        if kind in ("block", "unblock"):
            tie("blocked", actor, other, kind == "block")
        if kind in ("mute", "unmute"):
            tie("muted", actor, other, kind == "mute")

    async def set_private(self, actor: int, private: bool) -> None:
        request = graph_pb.SetPrivacyRequest(private=private)
        await self._retry(
            lambda: self.graph.SetPrivacy(
                request, metadata=as_user(actor), timeout=PATIENCE_SECONDS
            )
        )

    async def make_post(self, author: int) -> int:
        """Creates a post; returns its id once it is published."""
        request = post_pb.CreatePostRequest(
            media_ids=[self.media[author]], request_id=secrets.token_hex(16)
        )
        me = as_user(author)
        made = await self._retry(
            lambda: self.post.CreatePost(request, metadata=me, timeout=PATIENCE_SECONDS)
        )
        post_id: int = made.post.post_id
        if made.post.state != post_pb.POST_STATE_PUBLISHED:
            # Media was unavailable for a moment; the sweep publishes the post.
            asked = post_pb.GetPostRequest(post_id=post_id)
            await eventually(
                lambda: self.post.GetPost(asked, metadata=me, timeout=PATIENCE_SECONDS),
                lambda answer: answer.post.state == post_pb.POST_STATE_PUBLISHED,
                within=self.patience,
            )
        self.oracle.posted(author, post_id)
        self.posts[author].append(post_id)
        return post_id

    async def repeat_events(self, rng: random.Random, count: int) -> None:
        """Publishes `count` earlier events again, as a broker may deliver them twice."""
        events = list(self._old_events(rng, count))
        await asyncio.to_thread(mishaps.repeat, self.mesh, events)

    def _old_events(self, rng: random.Random, count: int) -> Iterator[Message]:
        """Yields events that were published before."""
        posts, pairs = sorted(self.oracle.authors.items()), self.oracle.pairs()
        for _ in range(count):
            match rng.randrange(4):
                case 0 if posts:
                    post, author = rng.choice(posts)
                    yield PostCreated(post_id=post, author_id=author)
                case 1 if posts:
                    post, author = rng.choice(posts)
                    yield PostChanged(post_id=post, author_id=author)
                case 2 if pairs:
                    one, other = rng.sample(rng.choice(pairs), 2)
                    yield FollowChanged(follower_id=one, followee_id=other)
                case 3:
                    person = rng.choice(self.people)
                    yield CelebrityChanged(account_id=person)

    async def read(self, reader: int, size: int) -> None:
        """Reads the next page of a feed; after the last page, the first one again."""
        paging = self.pagings[reader]
        await self._read_page(reader, paging, size)
        if not paging.token:
            del self.pagings[reader]

    async def read_all(self, reader: int, sizes: Callable[[], int]) -> Paging:
        """Reads all pages of a feed."""
        paging = Paging()
        await self._read_page(reader, paging, sizes())
        while paging.token:
            await self._read_page(reader, paging, sizes())
        return paging

    async def _read_page(self, reader: int, paging: Paging, size: int) -> None:
        """Reads the next page.

        Checks that the reader may see its posts, and that they are in order, without repeats.
        """
        since = self.oracle.now
        page = await self._page(reader, paging.token, size)
        for post_id, author in page.posts:
            if wrong := self.oracle.forbidden(reader, author, post_id, since):
                raise AssertionError(
                    self._report(f"{wrong} ({since=})", reader, [author], [post_id])
                )
            if post_id not in self.oracle.authors:
                self.unknown[post_id] = author
            assert not paging.seen or post_id < paging.seen[-1], self._report(
                f"{reader} is shown {post_id} behind {paging.seen[-10:]}", reader, [author], []
            )
            paging.seen.append(post_id)
        is_full = len(page.posts) == size
        assert is_full or page.degraded or not page.next_page_token, self._report(
            f"{reader} is shown a page of {len(page.posts)} instead of {size}", reader, [], []
        )
        paging.token = page.next_page_token
        paging.degraded |= page.degraded
        self.pages += 1

    async def _page(self, reader: int, token: str, size: int) -> _Page:
        """Requests a page by gRPC or by REST in turn, because both accept each other's tokens."""
        me = as_user(reader)
        if self.pages % 2:
            request = GetFeedRequest(page_size=size, page_token=token)
            response = await self._retry(
                lambda: self.feed.GetFeed(request, metadata=me, timeout=PATIENCE_SECONDS)
            )
            posts = [(post.post_id, post.author.account_id) for post in response.posts]
            degraded = response.state == FeedState.FEED_STATE_DEGRADED
            return _Page(posts, response.next_page_token, degraded)
        response = await self._retry(lambda: self._rest_page(reader, token, size))
        return _Page(
            [(int(post["postId"]), int(post["author"]["accountId"])) for post in response["posts"]],
            response["nextPageToken"],
            response["state"] == "FEED_STATE_DEGRADED",
        )

    async def _rest_page(self, reader: int, token: str, size: int) -> Any:
        try:
            answer = await self.rest.get(
                "/v1/feed",
                params={"pageSize": size, "pageToken": token},
                headers=dict(as_user(reader)),
                timeout=PATIENCE_SECONDS,
            )
        except httpx.TransportError as error:
            raise _Unavailable from error
        if answer.status_code in (503, 504):
            raise _Unavailable(answer.text)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def _retry(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Retries an idempotent call while the service is unavailable."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _UNAVAILABLE or time.monotonic() > deadline:
                    raise
            except _Unavailable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    def _report(self, wrong: str, reader: int, authors: Iterable[int], posts: Iterable[int]) -> str:
        """Returns a failure message with the operations that led to it."""
        lines = [wrong, f"operations by and on {reader}:"]
        lines.append(self.oracle.history(reader))
        for author in sorted(set(authors) - {reader}):
            lines += [f"between {reader} and {author}:", self.oracle.history(reader, author)]
        for post_id in list(posts)[:5]:
            lines += [f"on post {post_id}:", self.oracle.history(post_id)]
        return "\n".join(lines)

    # -- Checks of an idle mesh ------------------------------------------------------------

    async def check_feeds(
        self, readers: Sequence[int], rng: random.Random, *, width: int = 8
    ) -> None:
        """Compares feeds, read page by page, with what the oracle expects."""
        places = asyncio.Semaphore(width)

        async def check(reader: int) -> None:
            async with places:
                wanted = self.oracle.feed(reader)

                # Retries only because a busy machine may answer too late.
                paging = await eventually(
                    lambda: self.read_all(reader, lambda: rng.randint(1, 100)),
                    lambda paging: not paging.degraded,
                )
                seen = paging.seen
                missing = [each for each in wanted if each not in set(seen)]
                alien = [each for each in seen if each not in set(wanted)]
                assert seen == wanted, self._report(
                    f"the feed of {reader} lacks {missing} of {len(wanted)} and shows {alien}",
                    reader,
                    {self.oracle.authors[each] for each in missing + alien},
                    missing + alien,
                )

        await asyncio.gather(*map(check, readers))

    async def resolve(self) -> None:
        """Reads all changed relations from graph and checks that the oracle allows them."""
        assert await asyncio.to_thread(mishaps.count_dead_letters, self.mesh) == self.buried
        for post_id, author in self.unknown.items():
            assert self.oracle.authors.get(post_id) == author, f"{author} did not create {post_id}"
        others: dict[int, set[int]] = defaultdict(set)
        for pair in self.oracle.unresolved():
            one, other = pair
            others[one].add(other)
            others[other].add(one)
        places = asyncio.Semaphore(8)

        async def ask(me: int, asked: Sequence[int]) -> None:
            async with places:
                request = graph_pb.BatchGetRelationshipsRequest(account_ids=asked)
                answer = await self._retry(
                    lambda: self.graph.BatchGetRelationships(
                        request, metadata=as_user(me), timeout=PATIENCE_SECONDS
                    )
                )
            for each in answer.relationships:
                facts = [
                    name
                    for name in ("follows", "requested", "blocks", "mutes")
                    if getattr(each, name)
                ]
                self.oracle.resolve(me, each.account_id, facts)

        asked = {me: sorted(every) for me, every in others.items()}
        await asyncio.gather(
            *(
                ask(me, every[start : start + _MAX_ASKED])
                for me, every in asked.items()
                for start in range(0, len(every), _MAX_ASKED)
            )
        )


@asynccontextmanager
async def crowd_of(mesh: Stack, count: int, rng: random.Random) -> AsyncIterator[Crowd]:
    """Yields a crowd of new users."""
    people = await asyncio.to_thread(_add_accounts, mesh, count, rng)
    media = await asyncio.to_thread(_add_media, mesh, people)
    buried = await asyncio.to_thread(mishaps.count_dead_letters, mesh)
    async with (
        channel_to(mesh, "graph", identity="gateway") as graph,
        channel_to(mesh, "post", identity="gateway") as post,
        channel_to(mesh, "feed", identity="gateway") as feed,
        pages_of(mesh) as rest,
    ):
        yield Crowd(
            mesh,
            people,
            media,
            GraphServiceStub(graph),
            PostServiceStub(post),
            FeedServiceStub(feed),
            rest,
            Oracle(),
            buried=buried,
        )


def _add_accounts(mesh: Stack, count: int, rng: random.Random) -> list[int]:
    values = {
        "prefix": f"crowd.{secrets.token_hex(5)}.",
        "shards": [rng.randrange(SHARDS) for _ in range(count)],
    }
    with psycopg.connect(mesh.database_url("account")) as database:
        return [row[0] for row in database.execute(_ADD_ACCOUNTS, values).fetchall()]


def _add_follows(mesh: Stack, follows: Sequence[tuple[int, int]]) -> None:
    values = {"fans": [fan for fan, _ in follows], "stars": [star for _, star in follows]}
    with psycopg.connect(mesh.database_url("graph")) as database:
        database.execute(_ADD_FOLLOWS, values)


def _add_media(mesh: Stack, owner_ids: Sequence[int]) -> dict[int, int]:
    with psycopg.connect(mesh.database_url("media")) as database:
        return dict(database.execute(_ADD_MEDIA, {"owner_ids": owner_ids}).fetchall())
