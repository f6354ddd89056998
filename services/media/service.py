"""The media service's methods, in the order of its contracts."""

from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from photomesh.media.v1 import media_internal_service_pb2 as internal_pb
from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceServicer
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceServicer

from services.common.cdn import UrlSigner
from services.common.context import signed_in
from services.common.errors import MediaUnknown, RequestIdReused
from services.common.ids import created_at
from services.media.errors import ObjectMismatch, ObjectMissing, UploadCompleted
from services.media.pipeline.outputs import Fact
from services.media.storage import Storage, key_prefix
from services.media.store import Media, MediaStore, State

Context = grpc.aio.ServicerContext[Any, Any]


class MediaService(MediaServiceServicer):
    """Uploads, for people."""

    def __init__(self, store: MediaStore, storage: Storage, signer: UrlSigner) -> None:
        self._store = store
        self._storage = storage
        self._signer = signer

    async def CreateUpload(
        self, request: pb.CreateUploadRequest, context: Context
    ) -> pb.CreateUploadResponse:
        media = await self._store.add(
            signed_in(),
            request_id=request.request_id or None,
            size_bytes=request.size_bytes,
            content_type=request.content_type,
        )
        declared = (media.size_bytes, media.content_type)
        if declared != (request.size_bytes, request.content_type):
            raise RequestIdReused
        if media.state is not State.PENDING:
            raise UploadCompleted(media.media_id)

        form = self._storage.form(
            media.media_id,
            media.owner_id,
            content_type=media.content_type,
            size_bytes=media.size_bytes,
        )
        return pb.CreateUploadResponse(
            media=self._to_pb(media),
            upload_url=form.url,
            form_fields=form.fields,
            expire_time=_timestamp(form.expire_time),
        )

    async def CompleteUpload(
        self, request: pb.CompleteUploadRequest, context: Context
    ) -> pb.CompleteUploadResponse:
        media = await self._own(request.media_id)
        if media.state is State.PENDING:
            original = await self._storage.original(media.media_id, media.owner_id)
            if original is None:
                raise ObjectMissing(media.media_id)
            declared = (media.size_bytes, media.content_type)
            if (original.size_bytes, original.content_type) != declared:
                raise ObjectMismatch(media.media_id)
            await self._store.mark_uploaded(media, original.etag)
            # Another call may have completed it first, and the worker may be further already.
            media = await self._own(request.media_id)
        return pb.CompleteUploadResponse(media=self._to_pb(media))

    async def GetMedia(self, request: pb.GetMediaRequest, context: Context) -> pb.GetMediaResponse:
        return pb.GetMediaResponse(media=self._to_pb(await self._own(request.media_id)))

    async def DeleteMedia(
        self, request: pb.DeleteMediaRequest, context: Context
    ) -> pb.DeleteMediaResponse:
        await self._store.delete(await self._own(request.media_id))
        return pb.DeleteMediaResponse(media=self._to_pb(await self._own(request.media_id)))

    async def _own(self, media_id: int) -> Media:
        """Returns a media item of the caller's.

        Raises:
            MediaUnknown: there is none, or it is somebody else's.
        """
        owner_id = signed_in()
        media = await self._store.media(media_id)
        if media is None or media.owner_id != owner_id:
            raise MediaUnknown(media_id)
        return media

    def _to_pb(self, media: Media) -> pb.Media:
        message = pb.Media(
            media_id=media.media_id,
            owner_id=media.owner_id,
            state=_state(media),
            failure=_failure(media),
            width=media.width,
            height=media.height,
            create_time=_timestamp(created_at(media.media_id)),
            blurhash=media.facts.get(Fact.BLURHASH, ""),
            dominant_colour=media.facts.get(Fact.DOMINANT_COLOUR, ""),
            perceptual_hash=media.facts.get(Fact.PERCEPTUAL_HASH, ""),
        )
        if media.variants:
            # One signature is good for all of them.
            signed = self._signer.sign(key_prefix(media.media_id, media.owner_id))
            for variant in media.variants:
                message.variants.add(
                    name=variant.name,
                    content_type=variant.content_type,
                    width=variant.width,
                    height=variant.height,
                    size_bytes=variant.size_bytes,
                    url=signed.url(variant.object_name),
                )
        return message


class MediaInternalService(MediaInternalServiceServicer):
    """Media, for the mesh."""

    def __init__(self, store: MediaStore) -> None:
        self._store = store

    async def BatchGetMedia(
        self, request: internal_pb.BatchGetMediaRequest, context: Context
    ) -> internal_pb.BatchGetMediaResponse:
        found = await self._store.many(request.media_ids)
        return internal_pb.BatchGetMediaResponse(
            media=(_to_stored_pb(found.get(media_id)) for media_id in request.media_ids)
        )


def _to_stored_pb(media: Media | None) -> internal_pb.StoredMedia:
    if media is None:
        return internal_pb.StoredMedia()
    message = internal_pb.StoredMedia(
        media_id=media.media_id,
        owner_id=media.owner_id,
        state=_state(media),
        failure=_failure(media),
        width=media.width,
        height=media.height,
        create_time=_timestamp(created_at(media.media_id)),
        key_prefix=key_prefix(media.media_id, media.owner_id),
        blurhash=media.facts.get(Fact.BLURHASH, ""),
        dominant_colour=media.facts.get(Fact.DOMINANT_COLOUR, ""),
        perceptual_hash=media.facts.get(Fact.PERCEPTUAL_HASH, ""),
    )
    for variant in media.variants:
        message.variants.add(
            name=variant.name,
            content_type=variant.content_type,
            width=variant.width,
            height=variant.height,
            size_bytes=variant.size_bytes,
            object_name=variant.object_name,
        )
    return message


def _state(media: Media) -> "pb.MediaState.ValueType":
    return pb.MediaState.Value(f"MEDIA_STATE_{media.state}")


def _failure(media: Media) -> "pb.MediaFailure.ValueType":
    return pb.MediaFailure.Value(f"MEDIA_FAILURE_{media.failure or 'UNSPECIFIED'}")


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
