"""Opening, completing and aborting uploads, for all upload methods."""

from dataclasses import dataclass

from services.chassis.errors import FieldInvalid, RequestIdReused, Unavailable
from services.chassis.shared_tasks import SharedTasks
from services.chassis.telemetry import logs
from services.media.errors import ObjectMismatch, ObjectMissing, UploadCompleted, UploadLimit
from services.media.limits import LIMITS, UploadLimits
from services.media.sniffing import contradicts
from services.media.storage.originals import OriginalChanged, Originals
from services.media.store import Declaration, Media, MediaStore, State, UploadMethod
from services.media.uploads.multipart import MultipartUploads

_log = logs.logger(__name__)


@dataclass(frozen=True)
class OpenedUpload:
    """An upload, or an existing media item that replaces it."""

    media: Media
    reused: bool
    """Whether the media item comes from an earlier upload of the same bytes."""


@dataclass(frozen=True)
class Hashed:
    """The SHA-256 of received bytes, and the ETag that the object of these bytes must have."""

    etag: str
    sha256: bytes


class Uploads:
    """The uploads of all accounts. Every async method may raise Unavailable."""

    def __init__(
        self,
        store: MediaStore,
        originals: Originals,
        multipart: MultipartUploads,
        limits: UploadLimits = LIMITS,
    ) -> None:
        self._store = store
        self._originals = originals
        self._multipart = multipart
        self._limits = limits
        self._completing = SharedTasks[int, None]()

    async def open(self, owner_id: int, declaration: Declaration) -> OpenedUpload:
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
                return OpenedUpload(same, reused=True)
        if media is None:
            limit = self._limits.open_uploads
            if await self._store.count_open(owner_id, limit=limit) == limit:
                raise UploadLimit(limit)
            media = await self._store.add(owner_id, declaration)
        if not _matches(media, declaration):
            raise RequestIdReused
        return OpenedUpload(media, reused=False)

    def _check(self, declaration: Declaration) -> None:
        max_bytes = self._limits.max_bytes
        if declaration.method is UploadMethod.FORM:
            max_bytes = self._limits.form_bytes
        wrong = {}
        if declaration.size_bytes > max_bytes:
            wrong["size_bytes"] = f"must be at most {max_bytes}"
        if declaration.content_type not in self._limits.content_types:
            wrong["content_type"] = f"must be one of {', '.join(self._limits.content_types)}"
        if wrong:
            raise FieldInvalid(wrong)

    async def complete(self, media: Media) -> None:
        """Checks the file in S3, makes the item UPLOADED and publishes MediaUploaded. Idempotent.

        Concurrent calls in this process share one task, which continues if callers are canceled.

        Raises:
            ObjectMissing: the file, or a part of it, is missing.
            ObjectMismatch: the file does not match the declaration.
        """
        if media.state is State.PENDING:
            await self._completing.run(media.media_id, lambda: self._complete(media))

    async def _complete(self, media: Media) -> None:
        if media.method is UploadMethod.PARTS:
            await self._multipart.assemble(media)
        await self.finish(media)

    async def finish(self, media: Media, hashed: Hashed | None = None) -> None:
        """Like `complete`, for a file that S3 stores as one object.

        `hashed`: the SHA-256 of the received bytes; saves reading an object with the same ETag.
        """
        original = await self._originals.find(media.key_prefix)
        if original is None:
            raise ObjectMissing(media.media_id)
        if media.size_bytes not in (0, original.size_bytes):
            raise ObjectMismatch(media.media_id, "size")
        if original.content_type != media.content_type or contradicts(
            media.content_type, original.first
        ):
            raise ObjectMismatch(media.media_id, "type")

        sha256 = original.sha256
        if sha256 is None and hashed is not None and hashed.etag == original.etag:
            sha256 = hashed.sha256
        if sha256 is None and (media.sha256 is not None or media.method is UploadMethod.STREAM):
            try:
                sha256 = await self._originals.hash(media.key_prefix, original.etag)
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
            await self.remove_data(media)
        except Unavailable:
            # The sweeper removes the data later.
            _log.warning("removal.postponed", media_id=media.media_id)

    async def remove_data(self, media: Media) -> None:
        """Removes the data of an aborted upload from S3. Idempotent."""
        # Parts first: afterwards they are either already assembled, and removed with the original,
        # or can no longer be assembled.
        await self._multipart.abort(media)
        await self._originals.remove(media.key_prefix)


def _matches(media: Media, declaration: Declaration) -> bool:
    """Returns whether a media item matches a declaration.

    The declaration may omit the size and the SHA-256, which are known once the item is not PENDING.
    """
    known = media.state is not State.PENDING
    same_size = declaration.size_bytes == media.size_bytes
    same_content = declaration.sha256 == media.sha256
    return (
        (declaration.method, declaration.content_type) == (media.method, media.content_type)
        and (same_size or (known and declaration.size_bytes == 0))
        and (same_content or (known and declaration.sha256 is None))
    )
