"""The parts of fan-out without its process, and fakes of graph and post served over gRPC."""

import asyncio
import bisect
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import pytest
from photomesh.fanout.v1.events_pb2 import ChunkReady
from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode
from photomesh.graph.v1.graph_internal_service_pb2_grpc import (
    GraphInternalServiceServicer,
    GraphInternalServiceStub,
    add_GraphInternalServiceServicer_to_server,
)
from photomesh.post.v1 import post_internal_service_pb2 as post_pb
from photomesh.post.v1.post_internal_service_pb2_grpc import (
    PostInternalServiceServicer,
    PostInternalServiceStub,
    add_PostInternalServiceServicer_to_server,
)

from services.chassis import context
from services.chassis.cache.client import Cache, connect
from services.chassis.config import CacheSettings, KafkaSettings
from services.chassis.database.ids import EPOCH_MS
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.domain.post_cache import PostCache
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.fanout.events import Chunks, Events
from services.fanout.peers import Peers
from services.fanout.store import FanoutStore
from services.fanout.walk import Walks
from tests.eventually import PATIENCE_SECONDS

CHUNK = 100
"""The number of followers per chunk in these tests: the smallest size that graph allows."""

BACKFILL = 3

PUSHED = AudienceMode.AUDIENCE_MODE_PUSHED
PROMOTING = AudienceMode.AUDIENCE_MODE_PROMOTING
PULLED = AudienceMode.AUDIENCE_MODE_PULLED
DEMOTING = AudienceMode.AUDIENCE_MODE_DEMOTING

_serials = itertools.count(1)


def new_id() -> int:
    """Returns an unused id; later ones are larger."""
    serial = next(_serials)
    return (int(time.time() * 1000) - EPOCH_MS + serial) << 23 | 5 << 10 | serial % 1024


@dataclass
class World(GraphInternalServiceServicer, PostInternalServiceServicer):
    """A fake of graph and post, whose state tests change."""

    followers: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    modes: dict[int, AudienceMode.ValueType] = field(
        default_factory=lambda: defaultdict(lambda: PUSHED)
    )
    changes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    muted: set[tuple[int, int]] = field(default_factory=set)
    versions: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    posts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: list[tuple[int, int]] = field(default_factory=list)
    streams: list[tuple[int, int]] = field(default_factory=list)
    """The (after, until) bounds of each requested stream of followers."""
    meanwhile: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Changes to make just before each next response, after its data were read."""

    def follow(self, reader_id: int, author_id: int) -> None:
        bisect.insort(self.followers[author_id], reader_id)
        self.versions[reader_id] += 1

    def unfollow(self, reader_id: int, author_id: int) -> None:
        self.followers[author_id].remove(reader_id)
        self.versions[reader_id] += 1

    def begin_change(self, account_id: int, mode: AudienceMode.ValueType) -> int:
        self.modes[account_id] = mode
        self.changes[account_id] += 1
        return self.changes[account_id]

    def post(self, author_id: int) -> int:
        self.posts[author_id].append(new_id())
        return self.posts[author_id][-1]

    async def StreamFollowers(self, request, context):
        after, until = request.after_follower_id, request.until_follower_id
        self.streams.append((after, until))
        ids = [i for i in self.followers[request.followee_id] if i > after]
        if until:
            ids = [i for i in ids if i <= until]
        for start in range(0, len(ids), 40):
            yield graph_pb.StreamFollowersResponse(follower_ids=ids[start : start + 40])

    async def GetAudience(self, request, context):
        followers = self.followers[request.followee_id]
        size = request.chunk_size
        return graph_pb.GetAudienceResponse(
            mode=self.modes[request.followee_id],
            change_id=self.changes[request.followee_id],
            followers=len(followers),
            bounds=followers[size - 1 :: size] if len(followers) > size else [],
        )

    async def BatchCheckFollows(self, request, context):
        checks = [
            graph_pb.FollowCheck(
                follows=pair.follower_id in self.followers[pair.followee_id],
                muted=(pair.follower_id, pair.followee_id) in self.muted,
                mode=self.modes[pair.followee_id],
                version=self.versions[pair.follower_id],
            )
            for pair in request.pairs
        ]
        await self._change_meanwhile()
        return graph_pb.BatchCheckFollowsResponse(checks=checks)

    async def FinishModeChange(self, request, context):
        self.finished.append((request.account_id, request.change_id))
        if request.change_id == self.changes[request.account_id]:
            mode = self.modes[request.account_id]
            self.modes[request.account_id] = {PROMOTING: PULLED, DEMOTING: PUSHED}.get(mode, mode)
        return graph_pb.FinishModeChangeResponse()

    async def ListRecentByAuthors(self, request, context):
        ids = sorted(
            (
                post_id
                for author_id in request.author_ids
                for post_id in self.posts[author_id]
                if not request.before_post_id or post_id < request.before_post_id
            ),
            reverse=True,
        )
        if request.before_post_id:
            await self._change_meanwhile()
        return post_pb.ListRecentByAuthorsResponse(post_ids=ids[: request.limit])

    async def _change_meanwhile(self) -> None:
        if self.meanwhile:
            await self.meanwhile.pop(0)()


@dataclass
class Parts:
    """The parts of a fan-out worker."""

    world: World
    homes: HomeTimelines
    authors: AuthorTimelines
    posts: PostCache
    events: Events
    chunks: Chunks
    store: FanoutStore
    database: Database
    peers: Peers

    async def reader(self, *authors: int) -> int:
        """Returns a reader who follows the authors, with an empty timeline."""
        reader_id = new_id()
        for author_id in authors:
            self.world.follow(reader_id, author_id)
        await self.build(reader_id)
        return reader_id

    async def build(self, reader_id: int, pulled: tuple[int, ...] = ()) -> None:
        marker = await self.homes.begin_rebuild(reader_id)
        version = self.world.versions[reader_id]
        assert await self.homes.finish_rebuild(
            reader_id, marker, [], whole=True, version=version, pulled=pulled
        )

    async def crowd(self, author_id: int, count: int, seen: int = 7) -> list[int]:
        """Adds followers to an author; returns about `seen` of them, whose timelines exist."""
        readers = [new_id() for _ in range(count)]
        for reader_id in readers:
            self.world.follow(reader_id, author_id)
        watched = readers[:: max(1, count // seen)] + readers[-1:]
        await asyncio.gather(*(self.build(reader_id) for reader_id in dict.fromkeys(watched)))
        return list(dict.fromkeys(watched))

    async def feed(self, reader_id: int) -> list[int]:
        return list((await self.homes.read(reader_id, 0, 100)).post_ids)

    async def feeds(self, readers: list[int]) -> list[list[int]]:
        return await asyncio.gather(*map(self.feed, readers))

    async def waiting(self) -> list[tuple[int, ChunkReady]]:
        """Removes the chunk events from the outbox and returns them with their keys."""
        async with self.database.connection() as connection:
            cursor = await connection.execute("DELETE FROM outbox RETURNING id, key, payload")
            rows = sorted(await cursor.fetchall())
        return [(key, ChunkReady.FromString(payload)) for _, key, payload in rows]

    async def handle_chunks(self) -> int:
        """Handles chunk events until there are none; returns how many there were."""
        count = 0
        while events := await self.waiting():
            count += len(events)
            await asyncio.gather(*(self.chunks.on_chunk_ready(event) for _, event in events))
        return count


@pytest.fixture(scope="session")
async def cache(infrastructure) -> AsyncIterator[Cache]:
    settings = CacheSettings(
        valkey_url=infrastructure.valkey_url, valkey_timeout_seconds=PATIENCE_SECONDS
    )
    async with connect(settings) as cache:
        yield cache


@contextlib.asynccontextmanager
async def _served(world: World) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    add_GraphInternalServiceServicer_to_server(world, server)
    add_PostInternalServiceServicer_to_server(world, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


@pytest.fixture
async def parts(
    cache: Cache, shared_database_of: Callable, kafka: KafkaSettings
) -> AsyncIterator[Parts]:
    settings = shared_database_of("fanout")
    world = World()
    async with _served(world) as channel, Database(settings) as database:
        async with database.connection() as connection:
            await connection.execute("TRUNCATE fanouts, fanout_chunks, outbox")
        peers = Peers(
            GraphInternalServiceStub(channel),
            PostInternalServiceStub(channel),
            chunk_size=CHUNK,
            backfill=BACKFILL,
        )
        # No relay runs: tests handle the chunks' events themselves.
        store = FanoutStore(database, Outbox(database, Relay(settings, kafka)))
        homes, authors, posts = HomeTimelines(cache), AuthorTimelines(cache), PostCache(cache)
        walks = Walks(peers)
        yield Parts(
            world,
            homes,
            authors,
            posts,
            Events(homes, authors, posts, peers, walks, store),
            Chunks(homes, peers, walks, store),
            store,
            database,
            peers,
        )


def another_event() -> None:
    """Sets the event of the context to a new one."""
    context.enter(context.CallContext(trace_id="ab" * 16, event=f"test/0/{next(_serials)}/0"))


@pytest.fixture(autouse=True)
def current_event() -> None:
    another_event()
