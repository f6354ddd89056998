"""All access to S3, and the layout of its objects.

There are two buckets. The originals bucket contains uploaded files with their metadata; only the
media service and its worker read it. The media bucket contains the variants, which the CDN reads.
In both, the keys of one media item start with `<year>/<month>/<day>/<owner_id>/<media_id>/`.
"""

import asyncio
import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.chassis.database.ids import created_at
from services.chassis.errors import Unavailable
from services.media.config import StorageSettings
from services.media.pipeline.outputs import Variant
from services.media.sniffing import SNIFFED_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_AT_A_TIME = 16
"""How many short requests run at a time. boto3 blocks, so each needs a thread."""

_LONG_AT_A_TIME = 8
"""How many large transfers run at a time, in a separate pool so that they do not delay the short
requests."""

_READ_BYTES = 1 << 20

_IMMUTABLE = "public, max-age=31536000, immutable"
"""The content of a variant's key never changes."""

Result = TypeVar("Result")


def key_prefix(media_id: int, owner_id: int) -> str:
    """Returns the prefix of the keys of all files of a media item."""
    return f"{created_at(media_id):%Y/%m/%d}/{owner_id}/{media_id}/"


def _original_key(media_id: int, owner_id: int) -> str:
    return key_prefix(media_id, owner_id) + "original"


@dataclass(frozen=True)
class UploadForm:
    """The form that a client POSTs to S3 with its file."""

    url: str
    fields: dict[str, str]
    expire_time: datetime


@dataclass(frozen=True)
class Original:
    """An uploaded file as S3 describes it."""

    size_bytes: int
    content_type: str
    etag: str
    """Identifies the content: each upload to the same key gets a new ETag."""
    first: bytes
    """The first bytes."""
    sha256: bytes | None
    """The checksum that S3 verified; None: the upload did not include one."""


@dataclass(frozen=True)
class Part:
    """A part of an upload, stored in S3."""

    number: int
    """Starts at 1."""
    size_bytes: int
    etag: str


class OriginalChanged(Exception):
    """The file was replaced by another upload after it was checked."""


class Storage:
    """Files in S3. Every async method may raise Unavailable."""

    def __init__(self, settings: StorageSettings) -> None:
        self._originals = settings.originals_bucket
        self._variants = settings.media_bucket
        self._threads = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="s3")
        self._long_threads = ThreadPoolExecutor(_LONG_AT_A_TIME, thread_name_prefix="s3-long")

        def client(*, connections: int, read_timeout: int) -> "S3Client":
            return boto3.client(
                "s3",
                endpoint_url=settings.s3_endpoint,
                region_name=settings.s3_region,
                aws_access_key_id=settings.s3_access_key,
                aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path"},
                    max_pool_connections=connections,
                    connect_timeout=1,
                    read_timeout=read_timeout,
                    retries={"total_max_attempts": 2, "mode": "standard"},
                    # TLS and ETags protect the content. Additional checksums would take longer
                    # than the request itself.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

        self._s3 = client(connections=_AT_A_TIME, read_timeout=5)
        # For parts and whole files, and for assembling hundreds of parts.
        self._long_s3 = client(connections=_LONG_AT_A_TIME, read_timeout=30)

    def form(
        self,
        media_id: int,
        owner_id: int,
        *,
        content_type: str,
        size_bytes: int,
        sha256: bytes | None,
        life: timedelta,
    ) -> UploadForm:
        """Returns a form that S3 accepts only for this exact key, type, size and content."""
        expire_time = datetime.now(UTC) + life
        fields = {"Content-Type": content_type}
        if sha256 is not None:
            fields["x-amz-checksum-sha256"] = b64encode(sha256).decode()
        post = self._s3.generate_presigned_post(
            self._originals,
            _original_key(media_id, owner_id),
            Fields=dict(fields),
            Conditions=[
                *({name: value} for name, value in fields.items()),
                ["content-length-range", size_bytes, size_bytes],
            ],
            ExpiresIn=int(life.total_seconds()),
        )
        return UploadForm(post["url"], post["fields"], expire_time)

    def part_url(
        self,
        media_id: int,
        owner_id: int,
        s3_upload_id: str,
        *,
        number: int,
        size_bytes: int,
        life: timedelta,
    ) -> str:
        """Returns a URL that accepts only this part, in this exact size."""
        return self._s3.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": self._originals,
                "Key": _original_key(media_id, owner_id),
                "UploadId": s3_upload_id,
                "PartNumber": number,
                # The length is signed, so S3 rejects any other.
                "ContentLength": size_bytes,
            },
            ExpiresIn=int(life.total_seconds()),
        )

    async def begin_parts(self, media_id: int, owner_id: int, content_type: str) -> str:
        """Starts a multipart upload and returns its S3 upload id."""

        def create() -> str:
            return self._s3.create_multipart_upload(
                Bucket=self._originals,
                Key=_original_key(media_id, owner_id),
                ContentType=content_type,
            )["UploadId"]

        return await self._in_thread(create)

    async def parts(
        self, media_id: int, owner_id: int, s3_upload_id: str
    ) -> dict[int, list[Part]] | None:
        """Returns the stored parts by number; None: the upload was completed or aborted.

        S3 stores one part per number. SeaweedFS keeps every part that was sent; in the result, the
        newest is last.
        """

        def pages() -> dict[int, list[Part]] | None:
            found: dict[int, list[Part]] = {}
            try:
                answers = list(
                    self._s3.get_paginator("list_parts").paginate(
                        Bucket=self._originals,
                        Key=_original_key(media_id, owner_id),
                        UploadId=s3_upload_id,
                    )
                )
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            listed = (part for answer in answers for part in answer.get("Parts", ()))
            for part in sorted(listed, key=lambda part: (part["PartNumber"], part["LastModified"])):
                found.setdefault(part["PartNumber"], []).append(
                    Part(part["PartNumber"], part["Size"], part["ETag"])
                )
            return found

        return await self._in_thread(pages)

    async def put_part(
        self, media_id: int, owner_id: int, s3_upload_id: str, number: int, content: bytearray
    ) -> Part | None:
        """Stores a part; None: the upload was completed or aborted."""

        def put() -> Part | None:
            try:
                stored = self._long_s3.upload_part(
                    Bucket=self._originals,
                    Key=_original_key(media_id, owner_id),
                    UploadId=s3_upload_id,
                    PartNumber=number,
                    Body=content,  # type: ignore[arg-type]  # The stubs lack bytearray.
                )
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return Part(number, len(content), stored["ETag"])

        return await self._in_thread(put, long=True)

    async def complete_parts(
        self, media_id: int, owner_id: int, s3_upload_id: str, parts: Sequence[Part]
    ) -> None:
        """Assembles the original from exactly the parts with these ETags.

        Does nothing if the upload was already completed or aborted. The caller finds out which by
        reading the original.
        """

        def complete() -> None:
            try:
                self._long_s3.complete_multipart_upload(
                    Bucket=self._originals,
                    Key=_original_key(media_id, owner_id),
                    UploadId=s3_upload_id,
                    MultipartUpload={
                        "Parts": [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
                    },
                )
            except ClientError as error:
                if _status(error) != 404:
                    raise

        await self._in_thread(complete, long=True)

    async def put_original(
        self, media_id: int, owner_id: int, content: bytearray, *, content_type: str, sha256: bytes
    ) -> None:
        """Stores a small original unless one exists."""

        def put() -> None:
            try:
                self._long_s3.put_object(
                    Bucket=self._originals,
                    Key=_original_key(media_id, owner_id),
                    Body=content,  # type: ignore[arg-type]  # The stubs lack bytearray.
                    ContentType=content_type,
                    ChecksumSHA256=b64encode(sha256).decode(),
                    IfNoneMatch="*",
                )
            except ClientError as error:
                # 412: an original exists. 409: a concurrent request is storing one.
                if _status(error) not in (409, 412):
                    raise

        await self._in_thread(put, long=True)

    async def abort_parts(self, media_id: int, owner_id: int, s3_upload_id: str) -> None:
        """Removes the parts of an upload that is not completed. Idempotent."""

        def abort() -> None:
            try:
                self._s3.abort_multipart_upload(
                    Bucket=self._originals,
                    Key=_original_key(media_id, owner_id),
                    UploadId=s3_upload_id,
                )
            except ClientError as error:
                if _status(error) != 404:
                    raise

        await self._in_thread(abort)

    async def remove_original(self, media_id: int, owner_id: int) -> None:
        """Removes an original. Idempotent."""
        await self._in_thread(
            lambda: self._s3.delete_object(
                Bucket=self._originals, Key=_original_key(media_id, owner_id)
            )
        )

    async def original(self, media_id: int, owner_id: int) -> Original | None:
        """Returns the uploaded file of a media item; None: there is none yet."""
        key = _original_key(media_id, owner_id)

        def get() -> Original | None:
            try:
                # S3 returns no checksum for a range request, so this takes a second request.
                told = self._s3.head_object(Bucket=self._originals, Key=key, ChecksumMode="ENABLED")
                begin = self._s3.get_object(
                    Bucket=self._originals,
                    Key=key,
                    IfMatch=told["ETag"],
                    Range=f"bytes=0-{SNIFFED_BYTES - 1}",
                )
            except ClientError as error:
                if _status(error) in (404, 412):
                    return None
                raise
            sha256 = told.get("ChecksumSHA256", "")
            return Original(
                size_bytes=told["ContentLength"],
                content_type=told["ContentType"],
                etag=told["ETag"],
                first=begin["Body"].read(),
                # A multipart upload has a checksum of its parts' checksums (with a "-"), which is
                # not the SHA-256 of the content.
                sha256=b64decode(sha256) if sha256 and "-" not in sha256 else None,
            )

        return await self._in_thread(get)

    async def hash_original(self, media_id: int, owner_id: int, etag: str) -> bytes:
        """Reads the original with this ETag and returns its SHA-256.

        Takes one request, little memory, and one second of one core per GiB.

        Raises:
            OriginalChanged: the original now has another ETag.
        """

        def get() -> bytes:
            try:
                found = self._long_s3.get_object(
                    Bucket=self._originals, Key=_original_key(media_id, owner_id), IfMatch=etag
                )
            except ClientError as error:
                if _status(error) == 412:
                    raise OriginalChanged from error
                raise
            digest = hashlib.sha256()
            for chunk in found["Body"].iter_chunks(_READ_BYTES):
                digest.update(chunk)
            return digest.digest()

        return await self._in_thread(get, long=True)

    async def fetch_original(self, media_id: int, owner_id: int, etag: str, into: BinaryIO) -> None:
        """Writes the content of the original with this ETag to a file.

        A missing original raises Unavailable: it existed when it was checked, and after a crash S3
        may take a while to find its objects again.

        Raises:
            OriginalChanged: the original now has another ETag.
        """

        def get() -> None:
            try:
                found = self._long_s3.get_object(
                    Bucket=self._originals, Key=_original_key(media_id, owner_id), IfMatch=etag
                )
            except ClientError as error:
                if _status(error) == 412:
                    raise OriginalChanged from error
                raise
            into.writelines(found["Body"].iter_chunks(_READ_BYTES))
            into.flush()

        await self._in_thread(get, long=True)

    async def put_variant(
        self, media_id: int, owner_id: int, variant: Variant, content: bytes
    ) -> None:
        """Stores a variant. Idempotent."""
        key = key_prefix(media_id, owner_id) + variant.object_name
        await self._in_thread(
            lambda: self._s3.put_object(
                Bucket=self._variants,
                Key=key,
                Body=content,
                ContentType=variant.content_type,
                CacheControl=_IMMUTABLE,
            )
        )

    async def variants(self, media_id: int, owner_id: int) -> dict[str, int]:
        """Returns the object names of a media item's stored variants, with sizes in bytes."""
        prefix = key_prefix(media_id, owner_id)

        def ls() -> dict[str, int]:
            found = self._s3.list_objects_v2(Bucket=self._variants, Prefix=prefix)
            return {
                each["Key"].removeprefix(prefix): each["Size"] for each in found.get("Contents", [])
            }

        return await self._in_thread(ls)

    async def erase(self, media_id: int, owner_id: int) -> int:
        """Removes all files and unfinished uploads of a media item; returns how many."""
        prefix = key_prefix(media_id, owner_id)

        def remove() -> int:
            removed = 0
            for bucket in (self._originals, self._variants):
                for upload in self._s3.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get(
                    "Uploads", []
                ):
                    self._s3.abort_multipart_upload(
                        Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
                # One item has far fewer files than one page of a listing (1,000).
                for found in self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get(
                    "Contents", []
                ):
                    self._s3.delete_object(Bucket=bucket, Key=found["Key"])
                    removed += 1
            return removed

        return await self._in_thread(remove)

    async def _in_thread(self, work: Callable[[], Result], *, long: bool = False) -> Result:
        loop = asyncio.get_running_loop()
        threads = self._long_threads if long else self._threads
        try:
            return await loop.run_in_executor(threads, work)
        except (BotoCoreError, ClientError) as error:
            # This includes rejected credentials: they are a server misconfiguration, not the
            # caller's error.
            raise Unavailable("The object storage") from error


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
