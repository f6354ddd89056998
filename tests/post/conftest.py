"""Authors with media, and the parts of post without its process."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.account.v1.account_service_pb2 import CreateAccountRequest
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated

from deploy.local.stack import Stack
from services.chassis import context
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings, DatabaseSettings, KafkaSettings
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.rpc import client
from services.domain.cdn import CdnSettings, EdgeSigner
from services.domain.post_cache import PostCache
from services.post import jobs
from services.post.events import Events
from services.post.peers import Peers
from services.post.presenter import Presenter
from services.post.resolver import Resolver
from services.post.service import PostService
from services.post.store import PostStore
from tests.callers import as_user, channel_to
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.pictures import photo


@pytest.fixture(scope="session")
def services(infrastructure: Stack) -> Stack:
    infrastructure.up(["account", "media", "media-worker", "graph", "post"])
    return infrastructure


@dataclass(frozen=True)
class Author:
    """A signed-up user."""

    account_id: int
    username: str
    _media: MediaServiceStub

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return as_user(self.account_id)

    async def open_upload(self, file: bytes) -> media_pb.CreateUploadResponse:
        return await self._media.CreateUpload(
            media_pb.CreateUploadRequest(content_type="image/jpeg", size_bytes=len(file)),
            metadata=self.metadata,
        )

    async def upload(self, file: bytes) -> int:
        """Uploads and completes a file; returns the media's id."""
        upload = await self.open_upload(file)
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as s3:
            sent = await s3.post(
                upload.upload_url, data=dict(upload.form_fields), files={"file": file}
            )
        assert sent.is_success, sent.text
        await self._media.CompleteUpload(
            media_pb.CompleteUploadRequest(media_id=upload.media.media_id),
            metadata=self.metadata,
        )
        return upload.media.media_id

    async def delete(self, media_id: int) -> None:
        request = media_pb.DeleteMediaRequest(media_id=media_id)
        await self._media.DeleteMedia(request, metadata=self.metadata)

    async def processed(self, media_id: int) -> media_pb.Media:
        """Waits until a media item is READY or FAILED."""

        async def ask() -> media_pb.Media:
            answer = await self._media.GetMedia(
                media_pb.GetMediaRequest(media_id=media_id), metadata=self.metadata
            )
            return answer.media

        ends = (media_pb.MEDIA_STATE_READY, media_pb.MEDIA_STATE_FAILED)
        return await eventually(ask, lambda media: media.state in ends)

    async def photo(self, seed: int = 0) -> int:
        """Uploads a small photo and waits until it is READY; returns the media's id."""
        media_id = await self.upload(photo(240, 240, seed=seed))
        media = await self.processed(media_id)
        assert media.state == media_pb.MEDIA_STATE_READY
        return media_id


@pytest.fixture
async def author(services: Stack) -> AsyncIterator[Author]:
    async for author in _sign_up(services):
        yield author


@pytest.fixture
async def stranger(services: Stack) -> AsyncIterator[Author]:
    async for author in _sign_up(services):
        yield author


async def _sign_up(services: Stack) -> AsyncIterator[Author]:
    username = secrets.token_hex(8)
    async with (
        channel_to(services, "account", identity="gateway") as account,
        channel_to(services, "media", identity="gateway") as media,
    ):
        answer = await AccountServiceStub(account).CreateAccount(
            CreateAccountRequest(username=username, password=secrets.token_hex(8))
        )
        yield Author(answer.account.account_id, username, MediaServiceStub(media))


@asynccontextmanager
async def peers_at(services: Stack, graph_address: str) -> AsyncIterator[Peers]:
    async with (
        channel_to(services, "account", identity="post") as account,
        channel_to(services, "media", identity="post") as media,
        client.channel("graph", graph_address, services.layout.pki / "post") as graph,
    ):
        yield Peers(
            AccountInternalServiceStub(account),
            MediaInternalServiceStub(media),
            GraphInternalServiceStub(graph),
        )


@pytest.fixture
async def peers(services: Stack) -> AsyncIterator[Peers]:
    async with peers_at(services, services.ports.address("graph")) as peers:
        yield peers


class Replica:
    """Parts of one process. No relay runs, so events stay in the database."""

    def __init__(self, database: Database, relay: Relay, peers: Peers) -> None:
        self.database = database
        self.store = PostStore(database, Outbox(database, relay))
        self.resolver = Resolver(self.store, peers)
        self.handlers = Events(self.store, peers, self.resolver)

    async def sweep(self) -> None:
        await jobs.sweep(self.store, self.resolver)

    async def events(self) -> list[int]:
        """Returns the posts of all PostCreated events, sorted."""
        return sorted(await self._posts("post_created", PostCreated))

    async def changes(self) -> list[int]:
        """Returns the posts of all PostChanged events, in order."""
        return await self._posts("post_changed", PostChanged)

    async def _posts(self, topic: str, message: type[PostCreated] | type[PostChanged]) -> list[int]:
        async with self.database.connection() as connection:
            cursor = await connection.execute(
                "SELECT key, payload FROM outbox WHERE topic = %s ORDER BY id", [topic]
            )
            events = [
                (key, message.FromString(payload)) for key, payload in await cursor.fetchall()
            ]
        assert all(key == event.author_id for key, event in events)
        return [event.post_id for _, event in events]

    async def make_due(self) -> None:
        """Makes every post due for the sweep."""
        async with self.database.connection() as connection:
            await connection.execute("UPDATE posts SET settle_time = now() - interval '1 s'")


@pytest.fixture
def settings(database_of: Callable) -> DatabaseSettings:
    return database_of("post")


@pytest.fixture
async def replicas(
    settings: DatabaseSettings, kafka: KafkaSettings, peers: Peers
) -> AsyncIterator[list[Replica]]:
    relay = Relay(settings, kafka)
    async with Database(settings) as one, Database(settings) as other:
        yield [Replica(database, relay, peers) for database in (one, other)]


def sign_in(author: Author) -> None:
    """Makes an author the caller of what the test calls next."""
    context.enter(context.CallContext(trace_id="ab" * 16, user_id=author.account_id))


PostServiceMaker = Callable[..., AbstractAsyncContextManager[PostService]]


@pytest.fixture
def post_service(replicas: list[Replica], services: Stack) -> PostServiceMaker:
    """Makes the public service of the first replica, optionally with other dependencies."""

    @asynccontextmanager
    async def make(
        *, resolver: Resolver | None = None, valkey_url: str = "", graph_address: str = ""
    ) -> AsyncIterator[PostService]:
        graph_address = graph_address or services.ports.address("graph")
        cdn = CdnSettings(cdn_url="http://cdn", cdn_key_file=services.layout.pki / "cdn.key")
        # A call that waited for the cache's own timeout would take an hour.
        valkey = CacheSettings(
            valkey_url=valkey_url or services.valkey_url, valkey_timeout_seconds=3600
        )
        async with (
            connect(valkey) as cache,
            peers_at(services, graph_address) as peers,
        ):
            yield PostService(
                replicas[0].store,
                peers,
                resolver or replicas[0].resolver,
                Presenter(peers.names, EdgeSigner(cdn)),
                PostCache(cache),
            )

    return make
