"""The life of an upload, from opening it to publishing MediaUploaded.

All upload methods share these steps: the upload is opened as PENDING, its bytes are stored in S3,
they are checked against the declaration, and then one transaction makes the media item UPLOADED and
publishes MediaUploaded. Every step may be repeated, run concurrently, and resume after a crash at
any point.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.chassis.errors import FieldInvalid, RequestIdReused, Unavailable
from services.chassis.shared_tasks import SharedTasks
from services.chassis.telemetry import logs
from services.domain.errors import MediaUnknown
from services.media.errors import (
    ObjectMismatch,
    ObjectMissing,
    UploadCompleted,
    UploadLimit,
    UploadNotMultipart,
)
from services.media.limits import LIMITS, UNTOLD, UploadLimits
from services.media.sniffing import contradicts
from services.media.storage import OriginalChanged, Part, Storage
from services.media.store import Declaration, Door, Media, MediaStore, State

_IN_FLIGHT = 2
"""How many parts of one stream are being sent to S3 while the next part is read."""

_log = logs.logger(__name__)


@dataclass(frozen=True)
class Opened:
    """An upload, or an existing media item that replaces it."""

    media: Media
    reused: bool
    """Whether the media item comes from an earlier upload of the same bytes."""


@dataclass(frozen=True)
class Safe:
    """The durably stored beginning of a stream."""

    size_bytes: int
    parts: tuple[Part, ...] = ()
    whole: bool = False
    """Whether the whole file is stored, so that only MediaUploaded may still have to be
    published."""


@dataclass(frozen=True)
class Arrived:
    """The parts of an upload that S3 stores."""

    parts: tuple[Part, ...]
    count: int
    """The number of parts of the whole file."""


class Uploads:
    """The uploads of all accounts. Every async method may raise Unavailable."""

    def __init__(self, store: MediaStore, storage: Storage, limits: UploadLimits = LIMITS) -> None:
        self._store = store
        self._storage = storage
        self._limits = limits
        self._completing = SharedTasks[int, None]()

    async def open(self, owner_id: int, declaration: Declaration) -> Opened:
        """Opens an upload, or returns an existing one.

        Returns the upload with the same request id, if any; otherwise a media item with the same
        bytes, if any; otherwise a new upload.

        Raises:
            FieldInvalid: the size or the type is outside the limits.
            RequestIdReused: the request id was used for another file or upload method.
            UploadLimit: the owner has too many open uploads.
        """
        self._check(declaration)
        media = None
        if declaration.request_id is not None:
            media = await self._store.requested(owner_id, declaration.request_id)
        if media is None and declaration.sha256 is not None:
            same = await self._store.same_content(
                owner_id, sha256=declaration.sha256, size_bytes=declaration.size_bytes
            )
            if same is not None:
                return Opened(same, reused=True)
        if media is None:
            most = self._limits.open_uploads
            if await self._store.count_open(owner_id, most=most) == most:
                raise UploadLimit(most)
            media = await self._store.add(owner_id, declaration)
        if not _is_of(media, declaration):
            raise RequestIdReused
        return Opened(media, reused=False)

    def _check(self, declaration: Declaration) -> None:
        most = self._limits.most_bytes
        if declaration.door is Door.FORM:
            most = self._limits.form_bytes
        wrong = {}
        if declaration.size_bytes > most:
            wrong["size_bytes"] = f"must be at most {most}"
        if declaration.content_type not in self._limits.content_types:
            wrong["content_type"] = f"must be one of {', '.join(self._limits.content_types)}"
        if wrong:
            raise FieldInvalid(wrong)

    async def complete(self, media: Media) -> None:
        """Checks the file in S3, makes the item UPLOADED and publishes MediaUploaded. Idempotent.

        Concurrent calls in this process share one task, which continues if the callers cancel.

        Raises:
            ObjectMissing: the file, or a part of it, is missing.
            ObjectMismatch: the file does not match the declaration.
        """
        if media.state is State.PENDING:
            await self._completing.run(media.media_id, lambda: self._complete(media))

    async def _complete(self, media: Media) -> None:
        if media.s3_upload_id is not None and media.door is Door.PARTS:
            sent = await self._storage.parts(media.media_id, media.owner_id, media.s3_upload_id)
            # None: S3 has already assembled the parts, and only the database commit was lost.
            if sent is not None:
                parts = self._parts_of(media, sent)
                if len(parts) < self._limits.part_count(media.size_bytes):
                    raise ObjectMissing(media.media_id, "A part")
                await self._storage.complete_parts(
                    media.media_id, media.owner_id, media.s3_upload_id, parts
                )
        await self._announce(media)

    async def _announce(self, media: Media, counted: "_Counted | None" = None) -> None:
        """Checks the original in S3, makes the item UPLOADED and publishes MediaUploaded."""
        original = await self._storage.original(media.media_id, media.owner_id)
        if original is None:
            raise ObjectMissing(media.media_id)
        if media.size_bytes not in (0, original.size_bytes):
            raise ObjectMismatch(media.media_id, "size")
        if original.content_type != media.content_type or contradicts(
            media.content_type, original.first
        ):
            raise ObjectMismatch(media.media_id, "type")

        sha256 = original.sha256
        if sha256 is None and counted is not None and counted.etag == original.etag:
            sha256 = counted.sha256
        if sha256 is None and (media.sha256 is not None or media.door is Door.STREAM):
            try:
                sha256 = await self._storage.hash_original(
                    media.media_id, media.owner_id, original.etag
                )
            except OriginalChanged:
                raise ObjectMismatch(media.media_id, "content") from None
        if media.sha256 not in (None, sha256):
            raise ObjectMismatch(media.media_id, "SHA-256")
        await self._store.mark_uploaded(
            media, original.etag, size_bytes=original.size_bytes, sha256=sha256
        )

    async def abort(self, media: Media) -> None:
        """Aborts an upload and removes its data from S3.

        Raises:
            UploadCompleted: the upload is not open.
        """
        if not await self._store.abort(media):
            raise UploadCompleted(media.media_id)
        try:
            await self.clear(media)
        except Unavailable:
            # The sweeper removes the data later.
            _log.warning("removal.postponed", media_id=media.media_id)

    async def clear(self, media: Media) -> None:
        """Removes the data of an aborted upload from S3. Idempotent."""
        # Removes the parts first. Afterwards they are either already assembled, and removed with
        # the original, or cannot be assembled any more.
        if media.s3_upload_id is not None:
            await self._storage.abort_parts(media.media_id, media.owner_id, media.s3_upload_id)
        await self._storage.remove_original(media.media_id, media.owner_id)

    # --- Uploads in parts, which the client sends to S3 ---------------------------------------

    async def in_parts(self, media: Media) -> Media:
        """Returns a PENDING upload with its S3 upload id, which is created if missing.

        Raises:
            MediaUnknown: the upload was aborted meanwhile.
        """
        if media.s3_upload_id is not None:
            return media
        made = await self._storage.begin_parts(media.media_id, media.owner_id, media.content_type)
        if await self._store.use_parts(media, made):
            return replace(media, s3_upload_id=made)
        await self._storage.abort_parts(media.media_id, media.owner_id, made)
        found = await self._store.media(media.media_id)
        if found is None:
            raise MediaUnknown(media.media_id)
        return found

    async def sign_parts(self, media: Media, numbers: Sequence[int]) -> list[tuple[Part, str]]:
        """Returns the parts with these numbers, without ETags, each with the URL to PUT it to.

        Raises:
            UploadCompleted: the upload is not open.
            UploadNotMultipart: the upload is not one in parts.
            FieldInvalid: the upload has no such part.
        """
        s3_upload_id = _open_in_parts(media)
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
            url = self._storage.part_url(
                media.media_id,
                media.owner_id,
                s3_upload_id,
                number=number,
                size_bytes=size_bytes,
                life=self._limits.part_life,
            )
            return Part(number, size_bytes, etag=""), url

        # In a thread: a signature takes a fraction of a millisecond of CPU, and a hundred of them
        # take tens of milliseconds.
        return await asyncio.to_thread(lambda: [sign(number) for number in numbers])

    async def arrived(self, media: Media) -> Arrived:
        """Returns the parts that S3 stores.

        Raises:
            UploadCompleted: the upload is not open.
            UploadNotMultipart: the upload is not one in parts.
        """
        sent = await self._storage.parts(media.media_id, media.owner_id, _open_in_parts(media))
        if sent is None:
            raise UploadCompleted(media.media_id)
        return Arrived(self._parts_of(media, sent), self._limits.part_count(media.size_bytes))

    def _parts_of(self, media: Media, sent: Mapping[int, Sequence[Part]]) -> tuple[Part, ...]:
        """Returns the newest part of the right size for each number."""
        fitting = (
            [part for part in sent[number] if part.size_bytes == size_bytes]
            for number in range(1, self._limits.part_count(media.size_bytes) + 1)
            if number in sent and (size_bytes := self._limits.part_size(number, media.size_bytes))
        )
        return tuple(parts[-1] for parts in fitting if parts)

    # --- Uploads as a stream through this process ---------------------------------------------

    async def safe(self, media: Media) -> Safe:
        """Returns how much of a stream S3 stores, in whole parts from the beginning."""
        if media.state is not State.PENDING:
            return Safe(media.size_bytes, whole=True)
        if media.s3_upload_id is not None:
            sent = await self._storage.parts(media.media_id, media.owner_id, media.s3_upload_id)
            if sent is not None:
                parts = tuple(_unbroken(sent, self._limits.part_bytes))
                return Safe(len(parts) * self._limits.part_bytes, parts)
        original = await self._storage.original(media.media_id, media.owner_id)
        return Safe(original.size_bytes, whole=True) if original else Safe(0)

    async def receive(
        self, owner_id: int, declaration: Declaration, offset: int, chunks: AsyncIterator[bytes]
    ) -> Opened:
        """Stores a file, or its rest from `offset`, and publishes MediaUploaded.

        Raises:
            FieldInvalid: as for `open`; or the offset is beyond the stored parts or not at the
                start of a part, or the file is empty or larger than declared.
            RequestIdReused, UploadLimit: as for `open`.
            ObjectMissing: the file is smaller than declared.
            ObjectMismatch: the file does not match the declaration; the upload is aborted.
        """
        opened = await self.open(owner_id, declaration)
        if opened.media.state is State.PENDING:
            await self._receive(opened.media, offset, chunks)
        return opened

    async def _receive(self, media: Media, offset: int, chunks: AsyncIterator[bytes]) -> None:
        safe = await self.safe(media)
        counted = None
        if not safe.whole:
            part_bytes = self._limits.part_bytes
            if offset > safe.size_bytes or offset % part_bytes:
                raise FieldInvalid(
                    {"offset": f"must be a multiple of {part_bytes}, at most {safe.size_bytes}"}
                )
            counted = await self._take(media, safe.parts[: offset // part_bytes], chunks)
        try:
            await self._announce(media, counted)
        except ObjectMismatch:
            # Permanent: the stored bytes of a stream cannot be replaced.
            await self.abort(media)
            raise

    async def _take(
        self, media: Media, safe: tuple[Part, ...], chunks: AsyncIterator[bytes]
    ) -> "_Counted | None":
        """Stores the bytes after the safe parts: as parts, or a small file as one object.

        Returns the SHA-256 of a file in parts, if this call has read all of it.
        """
        limits = self._limits
        most = media.size_bytes or limits.most_bytes
        parts = list(safe)
        total = len(parts) * limits.part_bytes
        # An earlier stream received the safe parts, so hashing them would need a second read.
        digest = None if parts else hashlib.sha256()
        storing: deque[asyncio.Task[Part]] = deque()
        buffer, filled = bytearray(limits.part_bytes), 0

        async def count() -> None:
            if digest is not None:
                await asyncio.to_thread(digest.update, buffer)

        async def store() -> None:
            nonlocal media
            media = await self.in_parts(media)
            await count()
            # Backpressure: while this waits, nothing is read from the client.
            if len(storing) == _IN_FLIGHT:
                parts.append(await storing.popleft())
            number = len(parts) + len(storing) + 1
            storing.append(asyncio.create_task(self._put_part(media, number, buffer)))

        try:
            async for chunk in chunks:
                total += len(chunk)
                if total > most:
                    raise FieldInvalid({"file": f"must be of at most {most} bytes"})
                rest = memoryview(chunk)
                while rest:
                    if filled == limits.part_bytes:
                        await store()
                        buffer, filled = bytearray(limits.part_bytes), 0
                    piece = rest[: limits.part_bytes - filled]
                    buffer[filled : filled + len(piece)] = piece
                    filled += len(piece)
                    rest = rest[len(piece) :]
            if total == 0:
                raise FieldInvalid({"file": "must not be empty"})
            short = total < media.size_bytes
            del buffer[filled:]
            if filled == limits.part_bytes or (filled and not short and (parts or storing)):
                await store()
            while storing:
                parts.append(await storing.popleft())
        finally:
            for task in storing:
                task.cancel()
        if short:
            raise ObjectMissing(media.media_id, "The rest")

        if not parts:
            await count()
            assert digest is not None  # noqa: S101 -- There were no safe parts.
            await self._storage.put_original(
                media.media_id,
                media.owner_id,
                buffer,
                content_type=media.content_type,
                sha256=digest.digest(),
            )
            return None
        assert media.s3_upload_id is not None  # noqa: S101 -- It has parts.
        await self._storage.complete_parts(
            media.media_id, media.owner_id, media.s3_upload_id, parts
        )
        return _Counted(_etag_of(parts), digest.digest()) if digest else None

    async def _put_part(self, media: Media, number: int, content: bytearray) -> Part:
        assert media.s3_upload_id is not None  # noqa: S101 -- See `in_parts`.
        part = await self._storage.put_part(
            media.media_id, media.owner_id, media.s3_upload_id, number, content
        )
        if part is None:
            # A concurrent stream has completed the upload, or it was aborted. A retry finds out.
            raise Unavailable("The upload")
        return part


@dataclass(frozen=True)
class _Counted:
    """A SHA-256 of received bytes, and the ETag that the object of these bytes must have."""

    etag: str
    sha256: bytes


def _etag_of(parts: Sequence[Part]) -> str:
    """Returns the ETag of an object assembled from these parts, if ETags are MD5s.

    With some types of encryption they are not. Then no object has the returned ETag, and the
    object is read to hash it.
    """
    try:
        digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    except ValueError:
        return ""
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"'


def _unbroken(sent: Mapping[int, Sequence[Part]], part_bytes: int) -> list[Part]:
    """Returns the full-size parts before the first gap."""
    parts: list[Part] = []
    while whole := [part for part in sent.get(len(parts) + 1, ()) if part.size_bytes == part_bytes]:
        parts.append(whole[-1])
    return parts


def _is_of(media: Media, declaration: Declaration) -> bool:
    """Returns whether a media item matches a declaration.

    The declaration may omit the size and the SHA-256, which are known once the item is not PENDING.
    """
    known = media.state is not State.PENDING
    same_size = declaration.size_bytes == media.size_bytes
    same_content = declaration.sha256 == media.sha256
    return (
        (declaration.door, declaration.content_type) == (media.door, media.content_type)
        and (same_size or (known and declaration.size_bytes == 0))
        and (same_content or (known and declaration.sha256 is None))
    )


def _open_in_parts(media: Media) -> str:
    """Returns the S3 upload id of an open upload in parts."""
    if media.state is not State.PENDING:
        raise UploadCompleted(media.media_id)
    if media.s3_upload_id is None or media.door is not Door.PARTS:
        raise UploadNotMultipart(media.media_id)
    return media.s3_upload_id


def content_type_of(told: str) -> str:
    """Returns a REST client's content type if it is supported, otherwise `UNTOLD`."""
    return told if told in LIMITS.content_types else UNTOLD
