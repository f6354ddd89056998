"""People and their media, for posting."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from photomesh.account.v1.account_service_pb2 import CreateAccountRequest
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from deploy.local.stack import Stack
from tests.callers import as_user, channel_to
from tests.eventually import eventually
from tests.pictures import photo


@pytest.fixture(scope="session")
def services(infrastructure: Stack) -> Stack:
    infrastructure.up(["account", "media", "media-worker", "post"])
    return infrastructure


@dataclass(frozen=True)
class Author:
    """Somebody who has signed up."""

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
        async with httpx.AsyncClient() as s3:
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
        """Waits for a media item's end."""

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
            CreateAccountRequest(username=username, password="password")
        )
        yield Author(answer.account.account_id, username, MediaServiceStub(media))


@pytest.fixture
async def media_service(services: Stack) -> AsyncIterator[MediaInternalServiceStub]:
    """Media as post calls it."""
    async with channel_to(services, "media", identity="post") as channel:
        yield MediaInternalServiceStub(channel)
