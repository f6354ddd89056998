"""The public methods of the media service, in the order of the contract."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceServicer

from services.chassis.context import signed_in
from services.chassis.errors import FieldInvalid
from services.chassis.rpc import Context
from services.chassis.rpc.open_streams import OpenStreams
from services.domain.cdn import UrlSigner
from services.domain.errors import MediaUnknown
from services.domain.presented_media import present_media
from services.media.errors import UploadUnknown
from services.media.internal import stored_media
from services.media.limits import LIMITS, UNDECLARED, UploadLimits
from services.media.pipeline.outputs import STEPS
from services.media.storage.originals import Originals
from services.media.store import Declaration, Media, MediaStore, State, UploadMethod
from services.media.uploads.lifecycle import Uploads
from services.media.uploads.multipart import MultipartUploads
from services.media.uploads.pace import paced
from services.media.uploads.streams import StreamedUploads
from services.media.watchers import Watchers


class MediaService(MediaServiceServicer):
    """The public methods, for users."""

    def __init__(
        self,
        store: MediaStore,
        originals: Originals,
        uploads: Uploads,
        multipart: MultipartUploads,
        streams: StreamedUploads,
        watchers: Watchers,
        signer: UrlSigner,
        limits: UploadLimits = LIMITS,
    ) -> None:
        self._store = store
        self._originals = originals
        self._uploads = uploads
        self._multipart = multipart
        self._streams = streams
        self._watchers = watchers
        self._signer = signer
        self._limits = limits
        self._open_streams = OpenStreams(
            "streamed uploads", max_open=limits.streams, max_per_user=limits.streams_per_account
        )

    async def GetUploadLimits(
        self, request: pb.GetUploadLimitsRequest, context: Context
    ) -> pb.GetUploadLimitsResponse:
        signed_in()
        response = pb.GetUploadLimitsResponse(
            form_max_bytes=self._limits.form_bytes,
            max_bytes=self._limits.max_bytes,
            part_bytes=self._limits.part_bytes,
            chunk_max_bytes=self._limits.chunk_bytes,
            content_types=self._limits.content_types,
            max_pixels=self._limits.max_pixels,
            pictures=(
                pb.PictureLimit(content_type=content_type, max_pixels=pixels)
                for content_type, pixels in self._limits.sure_pixels.items()
            ),
            max_open_uploads=self._limits.open_uploads,
            max_streams=self._limits.streams_per_account,
            stream_min_bytes_per_second=self._limits.stream_bytes_per_second,
        )
        response.abandoned_after.FromTimedelta(self._limits.abandoned_after)
        response.stream_patience.FromTimedelta(self._limits.stream_patience)
        return response

    async def CreateUpload(
        self, request: pb.CreateUploadRequest, context: Context
    ) -> pb.CreateUploadResponse:
        declaration = _declaration(request, UploadMethod.FORM, request.content_type)
        opened = await self._uploads.open(signed_in(), declaration)
        media = opened.media
        response = pb.CreateUploadResponse(media=self._to_pb(media), reused=opened.reused)
        if media.state is State.PENDING:
            expire_time = datetime.now(UTC) + self._limits.form_life
            response.upload_url, fields = self._originals.form(
                media.key_prefix,
                content_type=media.content_type,
                size_bytes=media.size_bytes,
                sha256=media.sha256,
                life=self._limits.form_life,
            )
            response.form_fields.update(fields)
            response.expire_time.FromDatetime(expire_time)
        return response

    async def CreateMultipartUpload(
        self, request: pb.CreateMultipartUploadRequest, context: Context
    ) -> pb.CreateMultipartUploadResponse:
        declaration = _declaration(request, UploadMethod.PARTS, request.content_type)
        opened = await self._uploads.open(signed_in(), declaration)
        media = opened.media
        response = pb.CreateMultipartUploadResponse(media=self._to_pb(media), reused=opened.reused)
        if media.state is State.PENDING:
            await self._multipart.begin(media)
            response.part_bytes = self._limits.part_bytes
            response.part_count = self._limits.part_count(media.size_bytes)
        return response

    async def SignUploadParts(
        self, request: pb.SignUploadPartsRequest, context: Context
    ) -> pb.SignUploadPartsResponse:
        media = await self._own(request.media_id)
        expire_time = datetime.now(UTC) + self._limits.part_life
        signed = await self._multipart.sign(media, request.part_numbers)
        response = pb.SignUploadPartsResponse(
            parts=(
                pb.SignedPart(part_number=part.number, url=url, size_bytes=part.size_bytes)
                for part, url in signed
            )
        )
        response.expire_time.FromDatetime(expire_time)
        return response

    async def ListUploadParts(
        self, request: pb.ListUploadPartsRequest, context: Context
    ) -> pb.ListUploadPartsResponse:
        media = await self._own(request.media_id)
        return pb.ListUploadPartsResponse(
            parts=(
                pb.UploadPart(part_number=part.number, size_bytes=part.size_bytes)
                for part in await self._multipart.received(media)
            ),
            part_bytes=self._limits.part_bytes,
            part_count=self._limits.part_count(media.size_bytes),
        )

    async def CompleteUpload(
        self, request: pb.CompleteUploadRequest, context: Context
    ) -> pb.CompleteUploadResponse:
        await self._uploads.complete(await self._own(request.media_id))
        # Reads the item again, because the worker may have changed its state already.
        return pb.CompleteUploadResponse(media=self._to_pb(await self._own(request.media_id)))

    async def AbortUpload(
        self, request: pb.AbortUploadRequest, context: Context
    ) -> pb.AbortUploadResponse:
        await self._uploads.abort(await self._own(request.media_id))
        return pb.AbortUploadResponse()

    async def UploadMedia(
        self, request_iterator: AsyncIterator[pb.UploadMediaRequest], context: Context
    ) -> pb.UploadMediaResponse:
        owner_id = signed_in()
        # Counts the stream before its first message, because a client can delay that one, too.
        with self._open_streams.opened_by(owner_id):
            messages = paced(
                request_iterator,
                lambda message: len(message.file.data),
                bytes_per_second=self._limits.stream_bytes_per_second,
                patience=self._limits.stream_patience.total_seconds(),
            )
            first = await anext(messages, pb.UploadMediaRequest())
            # REST clients may send any Content-Type.
            content_type = first.file.content_type
            if content_type not in self._limits.content_types:
                content_type = UNDECLARED
            declaration = _declaration(first, UploadMethod.STREAM, content_type)
            chunks = self._chunks(first, messages)
            opened = await self._streams.receive(owner_id, declaration, first.offset, chunks)
        media = await self._own(opened.media.media_id)
        return pb.UploadMediaResponse(media=self._to_pb(media), reused=opened.reused)

    async def _chunks(
        self, first: pb.UploadMediaRequest, rest: AsyncIterator[pb.UploadMediaRequest]
    ) -> AsyncIterator[bytes]:
        message: pb.UploadMediaRequest | None = first
        while message is not None:
            if len(message.file.data) > self._limits.chunk_bytes:
                raise FieldInvalid(
                    {"file.data": f"must be at most {self._limits.chunk_bytes} bytes"}
                )
            yield message.file.data
            message = await anext(rest, None)

    async def GetUploadOffset(
        self, request: pb.GetUploadOffsetRequest, context: Context
    ) -> pb.GetUploadOffsetResponse:
        media = await self._store.requested(signed_in(), request.request_id)
        if media is None or media.method is not UploadMethod.STREAM:
            raise UploadUnknown
        stored = await self._streams.stored(media)
        return pb.GetUploadOffsetResponse(media=self._to_pb(media), offset=stored.size_bytes)

    async def GetMedia(self, request: pb.GetMediaRequest, context: Context) -> pb.GetMediaResponse:
        return pb.GetMediaResponse(media=self._to_pb(await self._own(request.media_id)))

    async def WatchMedia(
        self, request: pb.WatchMediaRequest, context: Context
    ) -> AsyncIterator[pb.WatchMediaResponse]:
        owned = await self._own(request.media_id)
        async with aclosing(self._watchers.watch(owned.media_id, owned.owner_id)) as changes:
            async for media, last in changes:
                response = pb.WatchMediaResponse()
                if media is not None:
                    response.media.CopyFrom(self._to_pb(media))
                    response.last = last
                    response.progress.steps_done.extend(media.steps_done)
                    response.progress.steps_total = len(STEPS)
                yield response

    async def DeleteMedia(
        self, request: pb.DeleteMediaRequest, context: Context
    ) -> pb.DeleteMediaResponse:
        await self._store.delete(await self._own(request.media_id))
        return pb.DeleteMediaResponse(media=self._to_pb(await self._own(request.media_id)))

    async def _own(self, media_id: int) -> Media:
        """Returns a media item that the caller owns.

        Raises:
            MediaUnknown: the item does not exist or belongs to another account.
        """
        owner_id = signed_in()
        media = await self._store.media(media_id)
        if media is None or media.owner_id != owner_id:
            raise MediaUnknown(media_id)
        return media

    def _to_pb(self, media: Media) -> pb.Media:
        return present_media(stored_media(media), self._signer)


def _declaration(
    request: pb.CreateUploadRequest | pb.CreateMultipartUploadRequest | pb.UploadMediaRequest,
    method: UploadMethod,
    content_type: str,
) -> Declaration:
    return Declaration(
        method=method,
        size_bytes=request.size_bytes,
        content_type=content_type,
        sha256=bytes.fromhex(request.sha256) or None,
        request_id=request.request_id or None,
    )
