"""Uploads that clients stream to this process, which sends them to S3."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from services.chassis.errors import FieldInvalid, Unavailable
from services.media.errors import ObjectMismatch, ObjectMissing
from services.media.limits import LIMITS, UploadLimits
from services.media.storage.originals import Originals
from services.media.storage.parts import Part, Parts
from services.media.store import Declaration, Media, State
from services.media.uploads.lifecycle import Hashed, OpenedUpload, Uploads
from services.media.uploads.multipart import MultipartUploads

_IN_FLIGHT = 2
"""How many parts of one stream are being sent to S3 while the next part is read."""


@dataclass(frozen=True)
class StoredBeginning:
    """The durably stored beginning of a stream."""

    size_bytes: int
    parts: tuple[Part, ...] = ()
    is_whole: bool = False
    """Whether the whole file is stored. Then at most MediaUploaded remains to be published."""


class StreamedUploads:
    """Streamed uploads of all accounts. Every async method may raise Unavailable."""

    def __init__(
        self,
        uploads: Uploads,
        multipart: MultipartUploads,
        originals: Originals,
        parts: Parts,
        limits: UploadLimits = LIMITS,
    ) -> None:
        self._uploads = uploads
        self._multipart = multipart
        self._originals = originals
        self._parts = parts
        self._limits = limits

    async def stored(self, media: Media) -> StoredBeginning:
        """Returns the beginning of a stream that S3 stores, in complete parts."""
        if media.state is not State.PENDING:
            return StoredBeginning(media.size_bytes, is_whole=True)
        if media.s3_upload_id is not None:
            stored = await self._parts.stored(media.key_prefix, media.s3_upload_id)
            if stored is not None:
                parts = tuple(_contiguous(stored, self._limits.part_bytes))
                return StoredBeginning(len(parts) * self._limits.part_bytes, parts)
        original = await self._originals.find(media.key_prefix)
        return (
            StoredBeginning(original.size_bytes, is_whole=True) if original else StoredBeginning(0)
        )

    async def receive(
        self, owner_id: int, declaration: Declaration, offset: int, chunks: AsyncIterator[bytes]
    ) -> OpenedUpload:
        """Stores a file, or the rest of it from `offset`, and publishes MediaUploaded.

        Raises:
            FieldInvalid: as for `Uploads.open`; or the offset is beyond the stored parts or not at
                the start of a part, or the file is empty or larger than declared.
            RequestIdReused, UploadLimit: as for `Uploads.open`.
            ObjectMissing: the file is smaller than declared.
            ObjectMismatch: the file does not match the declaration; the upload is aborted.
        """
        opened = await self._uploads.open(owner_id, declaration)
        media = opened.media
        if media.state is not State.PENDING:
            return opened
        stored = await self.stored(media)
        hashed = None
        if not stored.is_whole:
            part_bytes = self._limits.part_bytes
            if offset > stored.size_bytes or offset % part_bytes:
                raise FieldInvalid(
                    {"offset": f"must be a multiple of {part_bytes}, at most {stored.size_bytes}"}
                )
            hashed = await self._store_rest(media, stored.parts[: offset // part_bytes], chunks)
        try:
            await self._uploads.finish(media, hashed)
        except ObjectMismatch:
            # Permanent: the stored bytes of a stream cannot be replaced.
            await self._uploads.abort(media)
            raise
        return opened

    async def _store_rest(
        self, media: Media, stored: tuple[Part, ...], chunks: AsyncIterator[bytes]
    ) -> Hashed | None:
        """Stores the bytes after the stored parts: as parts, or a small file as one object.

        Returns the SHA-256 of a file in parts, if this call has read all of it.
        """
        part_bytes = self._limits.part_bytes
        parts = list(stored)
        received = len(parts) * part_bytes
        max_bytes = media.size_bytes or self._limits.max_bytes
        # An earlier stream received the stored parts, so hashing them would need a second read.
        digest = None if parts else hashlib.sha256()
        storing: deque[asyncio.Task[Part]] = deque()

        async def store(piece: bytearray) -> None:
            nonlocal media
            media = await self._multipart.begin(media)
            if digest is not None:
                await asyncio.to_thread(digest.update, piece)
            # Backpressure: while this waits, nothing is read from the client.
            if len(storing) == _IN_FLIGHT:
                parts.append(await storing.popleft())
            number = len(parts) + len(storing) + 1
            storing.append(asyncio.create_task(self._put_part(media, number, piece)))

        try:
            async for piece in _pieces(chunks, part_bytes, received=received, max_bytes=max_bytes):
                received += len(piece)
                is_last = len(piece) < part_bytes
                if not is_last or (piece and (parts or storing) and received >= media.size_bytes):
                    await store(piece)
            if received == 0:
                raise FieldInvalid({"file": "must not be empty"})
            while storing:
                parts.append(await storing.popleft())
        finally:
            for task in storing:
                task.cancel()
        if received < media.size_bytes:
            raise ObjectMissing(media.media_id, "The rest")

        if not parts:
            sha256 = (await asyncio.to_thread(hashlib.sha256, piece)).digest()
            await self._originals.put(
                media.key_prefix, piece, content_type=media.content_type, sha256=sha256
            )
            return None
        assert media.s3_upload_id is not None  # noqa: S101 -- It has parts.
        await self._parts.complete(media.key_prefix, media.s3_upload_id, parts)
        return Hashed(_etag_of(parts), digest.digest()) if digest else None

    async def _put_part(self, media: Media, number: int, content: bytearray) -> Part:
        assert media.s3_upload_id is not None  # noqa: S101 -- See MultipartUploads.begin.
        part = await self._parts.put(media.key_prefix, media.s3_upload_id, number, content)
        if part is None:
            # The upload was completed by a concurrent stream, or aborted. The retry detects which.
            raise Unavailable("The upload")
        return part


async def _pieces(
    chunks: AsyncIterator[bytes], size: int, *, received: int, max_bytes: int
) -> AsyncIterator[bytearray]:
    """Yields the bytes of a stream in pieces of `size` bytes; the last is shorter, possibly empty.

    Raises:
        FieldInvalid: the stream and the `received` bytes before it exceed `max_bytes`.
    """
    buffer, filled = bytearray(size), 0
    async for chunk in chunks:
        received += len(chunk)
        if received > max_bytes:
            raise FieldInvalid({"file": f"must have at most {max_bytes} bytes"})
        rest = memoryview(chunk)
        while rest:
            part = rest[: size - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            rest = rest[len(part) :]
            if filled == size:
                yield buffer
                buffer, filled = bytearray(size), 0
    del buffer[filled:]
    yield buffer


def _etag_of(parts: Sequence[Part]) -> str:
    """Returns the ETag of an object assembled from these parts, if ETags are MD5s.

    With some types of encryption they are not. Then the returned ETag matches no object, and the
    object must be read to hash it.
    """
    try:
        digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    except ValueError:
        return ""
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'


def _contiguous(stored: Mapping[int, Sequence[Part]], part_bytes: int) -> list[Part]:
    """Returns the full-size parts before the first gap."""
    parts: list[Part] = []
    while full := [p for p in stored.get(len(parts) + 1, ()) if p.size_bytes == part_bytes]:
        parts.append(full[-1])
    return parts
