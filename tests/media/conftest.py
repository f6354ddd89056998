"""Shared fixtures of media's tests: renderers, an empty store, and users who upload."""

import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status.rpc_status import from_call
from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from services.chassis import context
from services.chassis.config import DatabaseSettings, KafkaSettings
from services.chassis.database.ids import EPOCH_MS
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.rpc import client
from services.media.config import StorageSettings
from services.media.pipeline.renderers import Limits, Renderers
from services.media.storage.client import S3
from services.media.storage.originals import Originals
from services.media.storage.parts import Parts
from services.media.storage.variants import Variants
from services.media.store import Declaration, MediaStore, UploadMethod
from services.media.uploads.lifecycle import Uploads
from services.media.uploads.multipart import MultipartUploads
from services.media.uploads.streams import StreamedUploads
from services.media.worker.events import MediaEvents
from services.media.worker.processor import Processor
from tests.eventually import PATIENCE_SECONDS

LIMITS = Limits(
    memory_bytes=320 * 2**20,
    large_memory_bytes=560 * 2**20,
    cpu_seconds=30,
    wall_seconds=PATIENCE_SECONDS,
)

_users = itertools.count()


def new_user() -> int:
    """Returns an unused user id, each on another shard."""
    number = next(_users)
    return (int(time.time() * 1000) - EPOCH_MS) << 23 | (number % 8192) << 10 | number % 1024


def declared(
    file: bytes,
    content_type: str = "image/jpeg",
    *,
    method: UploadMethod = UploadMethod.FORM,
    sha256: bytes | None = None,
    request_id: str | None = None,
) -> Declaration:
    """Returns what a client declares about a file."""
    return Declaration(method, len(file), content_type, sha256, request_id)


@pytest.fixture(scope="session")
async def renderers() -> AsyncIterator[Renderers]:
    async with Renderers(2, LIMITS) as renderers:
        yield renderers


@pytest.fixture(scope="session")
def storage_settings(infrastructure) -> StorageSettings:
    keys = infrastructure.credentials.s3_media
    return StorageSettings(
        s3_endpoint=infrastructure.s3_endpoint,
        s3_access_key=keys.access_key,
        s3_secret_key=keys.secret_key,
    )


@pytest.fixture(scope="session")
def s3(storage_settings) -> S3:
    return S3(storage_settings)


@pytest.fixture(scope="session")
def originals(s3) -> Originals:
    return Originals(s3)


@pytest.fixture(scope="session")
def parts(s3) -> Parts:
    return Parts(s3)


@pytest.fixture(scope="package")
def database_settings(shared_database_of: Callable) -> DatabaseSettings:
    return shared_database_of("media").model_copy(
        update={"database_timeout_seconds": PATIENCE_SECONDS}
    )


@pytest.fixture(scope="package")
async def database_of_all(database_settings: DatabaseSettings) -> AsyncIterator[Database]:
    async with Database(database_settings) as database:
        yield database


@pytest.fixture
async def database(database_of_all: Database) -> Database:
    """An empty database."""
    async with database_of_all.connection() as connection:
        # For nearly empty tables, this is faster than TRUNCATE.
        await connection.execute("DELETE FROM media; DELETE FROM outbox")
    return database_of_all


@pytest.fixture
def store(database, database_settings, kafka: KafkaSettings) -> MediaStore:
    """A store whose relay does not run, so that events stay in the outbox."""
    return MediaStore(database, Outbox(database, Relay(database_settings, kafka)))


@pytest.fixture
def multipart(store, parts) -> MultipartUploads:
    return MultipartUploads(store, parts)


@pytest.fixture
def uploads(store, originals, multipart) -> Uploads:
    return Uploads(store, originals, multipart)


@pytest.fixture
def streams(uploads, multipart, originals, parts) -> StreamedUploads:
    return StreamedUploads(uploads, multipart, originals, parts)


def media_events(store: MediaStore, s3: S3, renderers: Renderers) -> MediaEvents:
    """Returns the worker's handlers, which write each step of progress at once."""
    processor = Processor(store, Originals(s3), Variants(s3), renderers, progress_seconds=0.0)
    return MediaEvents(store, s3, processor, at_a_time=4)


@pytest.fixture
def events(store, s3, renderers) -> MediaEvents:
    return media_events(store, s3, renderers)


@dataclass(frozen=True)
class Uploader:
    """A user, on whose behalf tests call MediaService as the gateway does."""

    stub: MediaServiceStub
    user_id: int

    async def create(
        self, file: bytes, content_type: str = "image/jpeg", request_id: str = ""
    ) -> pb.CreateUploadResponse:
        request = pb.CreateUploadRequest(
            content_type=content_type, size_bytes=len(file), request_id=request_id
        )
        return await self._call(self.stub.CreateUpload, request)

    async def complete(self, media_id: int) -> pb.Media:
        request = pb.CompleteUploadRequest(media_id=media_id)
        return (await self._call(self.stub.CompleteUpload, request)).media

    async def get(self, media_id: int) -> pb.Media:
        request = pb.GetMediaRequest(media_id=media_id)
        return (await self._call(self.stub.GetMedia, request)).media

    def watch(self, media_id: int) -> grpc.aio.UnaryStreamCall:
        metadata = [(context.USER_ID, str(self.user_id))]
        return self.stub.WatchMedia(pb.WatchMediaRequest(media_id=media_id), metadata=metadata)

    async def delete(self, media_id: int) -> pb.Media:
        request = pb.DeleteMediaRequest(media_id=media_id)
        return (await self._call(self.stub.DeleteMedia, request)).media

    async def upload(self, file: bytes, content_type: str = "image/jpeg") -> pb.Media:
        """Opens, sends and completes an upload."""
        opened = await self.create(file, content_type)
        assert (await send(opened, file)).is_success
        return await self.complete(opened.media.media_id)

    def another_user(self) -> "Uploader":
        return replace(self, user_id=new_user())

    async def _call(self, method: Any, request: Any) -> Any:
        metadata = [(context.USER_ID, str(self.user_id))] if self.user_id else []
        return await method(request, metadata=metadata, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="session")
async def gateway_channel(infrastructure) -> AsyncIterator[grpc.aio.Channel]:
    """The media service, called with the gateway's identity."""
    infrastructure.up(["media"])
    address = infrastructure.ports.address("media")
    async with client.channel("media", address, infrastructure.layout.pki / "gateway") as channel:
        yield channel


@pytest.fixture
def uploader(gateway_channel) -> Uploader:
    return Uploader(MediaServiceStub(gateway_channel), new_user())


async def send(upload: pb.CreateUploadResponse, file: bytes, **changed: str) -> httpx.Response:
    """POSTs a file with the form of CreateUpload, optionally with changed fields."""
    # Plain HTTP, so loading certificates is unnecessary.
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, verify=False) as phone:
        return await phone.post(
            upload.upload_url, data={**upload.form_fields, **changed}, files={"file": file}
        )


async def refusal(call: Any) -> str:
    """Returns the reason of a call's error."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    status = from_call(refused.value)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.domain == "photomesh"
            return info.reason
    raise AssertionError(f"no ErrorInfo in {status}")
