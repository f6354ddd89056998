"""Multipart uploads: the division of files into parts, and the parts that S3 stores."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from services.chassis.errors import FieldInvalid
from services.domain.errors import MediaUnknown
from services.media.errors import ObjectMissing, UploadCompleted, UploadNotMultipart
from services.media.limits import LIMITS, UploadLimits
from services.media.storage.parts import Part, Parts
from services.media.store import Media, MediaStore, State, UploadMethod


class MultipartUploads:
    """Uploads whose bytes S3 stores in parts. Every async method may raise Unavailable."""

    def __init__(self, store: MediaStore, parts: Parts, limits: UploadLimits = LIMITS) -> None:
        self._store = store
        self._parts = parts
        self._limits = limits

    async def begin(self, media: Media) -> Media:
        """Returns a PENDING upload with its S3 upload id, which is created if missing.

        Raises:
            MediaUnknown: the upload was aborted in the meantime.
        """
        if media.s3_upload_id is not None:
            return media
        s3_upload_id = await self._parts.begin(media.key_prefix, media.content_type)
        if await self._store.use_parts(media, s3_upload_id):
            return replace(media, s3_upload_id=s3_upload_id)
        await self._parts.abort(media.key_prefix, s3_upload_id)
        found = await self._store.media(media.media_id)
        if found is None:
            raise MediaUnknown(media.media_id)
        return found

    async def sign(self, media: Media, numbers: Sequence[int]) -> list[tuple[Part, str]]:
        """Returns the parts with these numbers, without ETags, each with its upload URL.

        Raises:
            UploadCompleted: the upload is not open.
            UploadNotMultipart: the client does not send this upload in parts.
            FieldInvalid: a part number is out of range.
        """
        s3_upload_id = _open_upload_id(media)
        count = self._limits.part_count(media.size_bytes)
        wrong = {
            f"part_numbers[{index}]": f"must be 1 to {count}"
            for index, number in enumerate(numbers)
            if not 1 <= number <= count
        }
        if wrong:
            raise FieldInvalid(wrong)

        def sign(number: int) -> tuple[Part, str]:
            size_bytes = self._limits.part_size(number, media.size_bytes)
            url = self._parts.url(
                media.key_prefix,
                s3_upload_id,
                number=number,
                size_bytes=size_bytes,
                life=self._limits.part_life,
            )
            return Part(number, size_bytes, etag=""), url

        # In a thread: a signature takes a fraction of a millisecond of CPU, and a hundred of them
        # take tens of milliseconds.
        return await asyncio.to_thread(lambda: [sign(number) for number in numbers])

    async def received(self, media: Media) -> list[Part]:
        """Returns the parts that S3 stores.

        Raises:
            UploadCompleted: the upload is not open.
            UploadNotMultipart: the client does not send this upload in parts.
        """
        stored = await self._parts.stored(media.key_prefix, _open_upload_id(media))
        if stored is None:
            raise UploadCompleted(media.media_id)
        return self._received(media, stored)

    async def assemble(self, media: Media) -> None:
        """Assembles the parts that the client has sent, unless S3 has already done so.

        Raises:
            ObjectMissing: a part is missing.
        """
        if media.s3_upload_id is None:
            return
        stored = await self._parts.stored(media.key_prefix, media.s3_upload_id)
        if stored is None:
            return
        received = self._received(media, stored)
        if len(received) < self._limits.part_count(media.size_bytes):
            raise ObjectMissing(media.media_id, "A part")
        await self._parts.complete(media.key_prefix, media.s3_upload_id, received)

    async def abort(self, media: Media) -> None:
        """Removes the parts of an upload. Idempotent."""
        if media.s3_upload_id is not None:
            await self._parts.abort(media.key_prefix, media.s3_upload_id)

    def _received(self, media: Media, stored: Mapping[int, Sequence[Part]]) -> list[Part]:
        """Returns the newest part of the right size for each number."""
        fitting = (
            [
                part
                for part in stored.get(number, ())
                if part.size_bytes == self._limits.part_size(number, media.size_bytes)
            ]
            for number in range(1, self._limits.part_count(media.size_bytes) + 1)
        )
        return [parts[-1] for parts in fitting if parts]


def _open_upload_id(media: Media) -> str:
    """Returns the S3 upload id of an open upload that the client sends in parts."""
    if media.state is not State.PENDING:
        raise UploadCompleted(media.media_id)
    if media.s3_upload_id is None or media.method is not UploadMethod.PARTS:
        raise UploadNotMultipart(media.media_id)
    return media.s3_upload_id
