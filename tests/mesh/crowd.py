"""Many people at once, who talk to the services as the gateway does, and an oracle beside them.

Nothing of them is real but what the feed needs: rows of accounts that nobody can sign in to, and
of media without files. All that they do goes through the services.
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

_MOST_ASKED = 100
"""About how many accounts one may ask graph at once."""

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

_ADD_ACCOUNTS = """
    WITH new AS (
             INSERT INTO accounts (shard, account_id, username, password_hash)
             SELECT shard, next_id(shard), %(prefix)s || position, 'nobody signs in'
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
"""What one account can do to another."""

_POST_DEEDS: Mapping[str, tuple[str, type]] = {
    "delete": ("DeletePost", post_pb.DeletePostRequest),
    "archive": ("ArchivePost", post_pb.ArchivePostRequest),
    "unarchive": ("UnarchivePost", post_pb.UnarchivePostRequest),
}


class _NotNow(Exception):
    """A page that may be asked for again."""


@dataclass(frozen=True)
class _Page:
    """What is shown at once."""

    posts: Sequence[tuple[int, int]]
    """Each with its author."""
    next_page_token: str
    degraded: bool


@dataclass
class Paging:
    """A feed that is being read page by page."""

    token: str = ""
    seen: list[int] = field(default_factory=list)
    degraded: bool = False
    """Whether a page of it said that posts may be missing."""


@dataclass
class Crowd:
    """The people, what they can do, and what the oracle says to it."""

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
    """What people believe: their followees, followers, requesters, blocked and muted."""
    buried: int = 0
    """How many dead letters there were in the beginning."""
    unknown: dict[int, int] = field(default_factory=dict)
    """Authors of posts that were seen before their making was answered."""
    pages: int = 0
    """How many were read."""
    patience: float = PATIENCE_SECONDS
    """For how many seconds whoever finds a service away asks it again."""

    async def begin_with(self, edges: Sequence[tuple[int, int]]) -> None:
        """Lets people follow others, by their numbers, since long before anybody read a feed."""
        follows = [(self.people[fan], self.people[star]) for fan, star in edges]
        await asyncio.to_thread(_add_follows, self.mesh, follows)
        for fan, star in follows:
            self.oracle.end(self.oracle.begin("follow", fan, star), "following")
            self._believe("follow", fan, star, "following")

    # -- What people do --------------------------------------------------------------------

    async def do(self, kind: str, actor: int, other: int) -> str:
        """Does something to an account or to an own post; returns the answer."""
        stub, (method, request) = (
            (self.post, _POST_DEEDS[kind]) if kind in _POST_DEEDS else (self.graph, DEEDS[kind])
        )
        named = {"post_id" if kind in _POST_DEEDS else "account_id": other}
        deadline = time.monotonic() + self.patience
        while True:
            operation = self.oracle.begin(kind, actor, other)
            try:
                told = await getattr(stub, method)(
                    request(**named), metadata=as_user(actor), timeout=PATIENCE_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _AWAY and time.monotonic() < deadline:
                    # Nobody knows what became of it, so to do it again is another operation.
                    await asyncio.sleep(0.1)
                    continue
                if error.code() in _AWAY:
                    raise
                answer = Refusal.of(error).reason
            else:
                answer = "done"
                if kind == "follow":
                    is_request = told.state == graph_pb.FOLLOW_STATE_REQUESTED
                    answer = "requested" if is_request else "following"
            self.oracle.end(operation, answer)
            self._believe(kind, actor, other, answer)
            return answer

    def _believe(self, kind: str, actor: int, other: int, answer: str) -> None:
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
        await self._patiently(
            lambda: self.graph.SetPrivacy(
                request, metadata=as_user(actor), timeout=PATIENCE_SECONDS
            )
        )

    async def make_post(self, author: int) -> int:
        """Posts; returns the post's id once it is published."""
        request = post_pb.CreatePostRequest(
            media_ids=[self.media[author]], request_id=secrets.token_hex(16)
        )
        me = as_user(author)
        made = await self._patiently(
            lambda: self.post.CreatePost(request, metadata=me, timeout=PATIENCE_SECONDS)
        )
        post_id: int = made.post.post_id
        if made.post.state != post_pb.POST_STATE_PUBLISHED:
            # Media was away for a moment; the sweep publishes it.
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
        """Has so many events come again, as a broker may."""
        events = list(self._old_events(rng, count))
        await asyncio.to_thread(mishaps.repeat, self.mesh, events)

    def _old_events(self, rng: random.Random, count: int) -> Iterator[Message]:
        """Yields events that have been published."""
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
        """Reads the next page of a feed, from the newest post again behind the last page."""
        paging = self.pagings[reader]
        await self._turn(reader, paging, size)
        if not paging.token:
            del self.pagings[reader]

    async def read_all(self, reader: int, sizes: Callable[[], int]) -> Paging:
        """Reads a feed from its newest post to its end."""
        paging = Paging()
        await self._turn(reader, paging, sizes())
        while paging.token:
            await self._turn(reader, paging, sizes())
        return paging

    async def _turn(self, reader: int, paging: Paging, size: int) -> None:
        """Reads one more page.

        Whatever it shows must be what the reader may see, in order, and nothing twice.
        """
        since = self.oracle.now
        page = await self._page(reader, paging.token, size)
        for post_id, author in page.posts:
            if wrong := self.oracle.forbidden(reader, author, post_id, since):
                raise AssertionError(self._told(f"{wrong} ({since=})", reader, [author], [post_id]))
            if post_id not in self.oracle.authors:
                self.unknown[post_id] = author
            assert not paging.seen or post_id < paging.seen[-1], self._told(
                f"{reader} is shown {post_id} behind {paging.seen[-10:]}", reader, [author], []
            )
            paging.seen.append(post_id)
        is_full = len(page.posts) == size
        assert is_full or page.degraded or not page.next_page_token, self._told(
            f"{reader} is shown a page of {len(page.posts)} instead of {size}", reader, [], []
        )
        paging.token = page.next_page_token
        paging.degraded |= page.degraded
        self.pages += 1

    async def _page(self, reader: int, token: str, size: int) -> _Page:
        """Asks for a page, as an app of this or that kind would: they share their tokens."""
        me = as_user(reader)
        if self.pages % 2:
            request = GetFeedRequest(page_size=size, page_token=token)
            told = await self._patiently(
                lambda: self.feed.GetFeed(request, metadata=me, timeout=PATIENCE_SECONDS)
            )
            posts = [(post.post_id, post.author.account_id) for post in told.posts]
            degraded = told.state == FeedState.FEED_STATE_DEGRADED
            return _Page(posts, told.next_page_token, degraded)
        told = await self._patiently(lambda: self._rest_page(reader, token, size))
        return _Page(
            [(int(post["postId"]), int(post["author"]["accountId"])) for post in told["posts"]],
            told["nextPageToken"],
            told["state"] == "FEED_STATE_DEGRADED",
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
            raise _NotNow from error
        if answer.status_code in (503, 504):
            raise _NotNow(answer.text)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Makes a call that can be repeated until the service is there."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY or time.monotonic() > deadline:
                    raise
            except _NotNow:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    def _told(self, wrong: str, reader: int, authors: Iterable[int], posts: Iterable[int]) -> str:
        """Says what is wrong, and what led to it."""
        lines = [wrong, f"what {reader} did, and what was done to them:"]
        lines.append(self.oracle.history(reader))
        for author in sorted(set(authors) - {reader}):
            lines += [f"between {reader} and {author}:", self.oracle.history(reader, author)]
        for post_id in list(posts)[:5]:
            lines += [f"to the post {post_id}:", self.oracle.history(post_id)]
        return "\n".join(lines)

    # -- When all is quiet -----------------------------------------------------------------

    async def check_feeds(
        self, readers: Sequence[int], rng: random.Random, *, width: int = 8
    ) -> None:
        """Compares feeds with the oracle's, page by page."""
        places = asyncio.Semaphore(width)

        async def check(reader: int) -> None:
            async with places:
                wanted = self.oracle.feed(reader)

                # Only to wait for a machine that is too busy to answer in time.
                paging = await eventually(
                    lambda: self.read_all(reader, lambda: rng.randint(1, 100)),
                    lambda paging: not paging.degraded,
                )
                seen = paging.seen
                missing = [each for each in wanted if each not in set(seen)]
                alien = [each for each in seen if each not in set(wanted)]
                assert seen == wanted, self._told(
                    f"the feed of {reader} lacks {missing} of {len(wanted)} and shows {alien}",
                    reader,
                    {self.oracle.authors[each] for each in missing + alien},
                    missing + alien,
                )

        await asyncio.gather(*map(check, readers))

    async def settle(self) -> None:
        """Asks graph what holds wherever something was done, and checks that it can be."""
        assert await asyncio.to_thread(mishaps.count_dead_letters, self.mesh) == self.buried
        for post_id, author in self.unknown.items():
            assert self.oracle.authors.get(post_id) == author, f"nobody made {post_id}"
        others: dict[int, set[int]] = defaultdict(set)
        for pair in self.oracle.unsettled():
            one, other = pair
            others[one].add(other)
            others[other].add(one)
        places = asyncio.Semaphore(8)

        async def ask(me: int, asked: Sequence[int]) -> None:
            async with places:
                request = graph_pb.BatchGetRelationshipsRequest(account_ids=asked)
                answer = await self._patiently(
                    lambda: self.graph.BatchGetRelationships(
                        request, metadata=as_user(me), timeout=PATIENCE_SECONDS
                    )
                )
            for told in answer.relationships:
                holds = [
                    name
                    for name in ("follows", "requested", "blocks", "mutes")
                    if getattr(told, name)
                ]
                self.oracle.settle(me, told.account_id, holds)

        asked = {me: sorted(every) for me, every in others.items()}
        await asyncio.gather(
            *(
                ask(me, every[start : start + _MOST_ASKED])
                for me, every in asked.items()
                for start in range(0, len(every), _MOST_ASKED)
            )
        )


@asynccontextmanager
async def crowd_of(mesh: Stack, count: int, rng: random.Random) -> AsyncIterator[Crowd]:
    """Yields people who are new here."""
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
