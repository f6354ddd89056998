"""All of S3: where the files of a media item lie, and how they get there and back.

Two buckets: originals, which nobody but media reads, with their metadata; and media, the
variants, which the CDN reads. In both, all of one item is under
`<year>/<month>/<day>/<owner_id>/<media_id>/`.
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

from services.common.config import StorageSettings
from services.common.errors import Unavailable
from services.common.ids import created_at
from services.media.pipeline.outputs import Variant
from services.media.sniffing import SNIFFED_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_AT_A_TIME = 16
"""How many requests are under way; boto3 blocks, so each has a thread."""

_LONG_AT_A_TIME = 8
"""How many requests that carry much are under way besides: they must not hold up the others."""

_READ_BYTES = 1 << 20

_IMMUTABLE = "public, max-age=31536000, immutable"
"""The content under a variant's key never changes."""

Result = TypeVar("Result")


def key_prefix(media_id: int, owner_id: int) -> str:
    """Returns what the keys of all files of a media item begin with."""
    return f"{created_at(media_id):%Y/%m/%d}/{owner_id}/{media_id}/"


def _original_key(media_id: int, owner_id: int) -> str:
    return key_prefix(media_id, owner_id) + "original"


@dataclass(frozen=True)
class UploadForm:
    """What a client POSTs together with its file."""

    url: str
    fields: dict[str, str]
    expire_time: datetime


@dataclass(frozen=True)
class Original:
    """What S3 tells of an uploaded file."""

    size_bytes: int
    content_type: str
    etag: str
    """Identifies the content: another upload under the same key has another one."""
    first: bytes
    """What it begins with."""
    sha256: bytes | None
    """What S3 itself has checked; None: nobody asked it to."""


@dataclass(frozen=True)
class Part:
    """A part of an upload that S3 has."""

    number: int
    """From 1."""
    size_bytes: int
    etag: str


class OriginalChanged(Exception):
    """The file was uploaded again after it was checked."""


class Storage:
    """Files in S3. Every method that is awaited may raise Unavailable."""

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
                    # TLS and ETags guard the bytes; more checksums cost more than the request.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

        self._s3 = client(connections=_AT_A_TIME, read_timeout=5)
        # Carries parts and whole files, and puts hundreds of parts together.
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
        """Returns a form that S3 takes for exactly this key, type, size and content."""
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
        """Returns where S3 takes exactly this part in exactly this size."""
        return self._s3.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": self._originals,
                "Key": _original_key(media_id, owner_id),
                "UploadId": s3_upload_id,
                "PartNumber": number,
                # Signed, so S3 refuses another.
                "ContentLength": size_bytes,
            },
            ExpiresIn=int(life.total_seconds()),
        )

    async def begin_parts(self, media_id: int, owner_id: int, content_type: str) -> str:
        """Begins an upload in parts and returns S3's name of it."""

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
        """Returns the parts that S3 has, by number; None: the upload was completed or aborted.

        S3 has one of each number. SeaweedFS keeps all that were ever sent, newest last here.
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
                    Body=content,  # type: ignore[arg-type]  # The stubs forget bytearray.
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
        """Makes parts the original, exactly those with these ETags.

        Nothing if the upload was completed or aborted before: what lies there tells which.
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
        """Stores a small original, unless there is one already."""

        def put() -> None:
            try:
                self._long_s3.put_object(
                    Bucket=self._originals,
                    Key=_original_key(media_id, owner_id),
                    Body=content,  # type: ignore[arg-type]  # The stubs forget bytearray.
                    ContentType=content_type,
                    ChecksumSHA256=b64encode(sha256).decode(),
                    IfNoneMatch="*",
                )
            except ClientError as error:
                # 409: somebody else is at it this very moment, which is as good.
                if _status(error) not in (409, 412):
                    raise

        await self._in_thread(put, long=True)

    async def abort_parts(self, media_id: int, owner_id: int, s3_upload_id: str) -> None:
        """Removes the parts of an upload that was not completed; again is harmless."""

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
        """Removes an original; again is harmless."""
        await self._in_thread(
            lambda: self._s3.delete_object(
                Bucket=self._originals, Key=_original_key(media_id, owner_id)
            )
        )

    async def original(self, media_id: int, owner_id: int) -> Original | None:
        """Returns what was uploaded for a media item; None: nothing yet."""
        key = _original_key(media_id, owner_id)

        def get() -> Original | None:
            try:
                # Of a range S3 tells no checksum, so that takes a request of its own.
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
                # Of an upload in parts it is made of the parts' checksums.
                sha256=b64decode(sha256) if sha256 and "-" not in sha256 else None,
            )

        return await self._in_thread(get)

    async def hash_original(self, media_id: int, owner_id: int, etag: str) -> bytes:
        """Reads the original that has this ETag once over, and returns its SHA-256.

        Costs one request and a second of one core for each GiB, but little memory.

        Raises:
            OriginalChanged: another file lies there now.
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
        """Writes the content of the original that has this ETag into a file.

        One that is missing counts as Unavailable: it was there when it was checked, and S3 may
        take a while to find its objects again after a crash.

        Raises:
            OriginalChanged: another file lies there now.
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
        """Stores a variant; again is harmless."""
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
        """Returns what is stored of a media item's variants: object names, sizes in bytes."""
        prefix = key_prefix(media_id, owner_id)

        def ls() -> dict[str, int]:
            found = self._s3.list_objects_v2(Bucket=self._variants, Prefix=prefix)
            return {
                each["Key"].removeprefix(prefix): each["Size"] for each in found.get("Contents", [])
            }

        return await self._in_thread(ls)

    async def erase(self, media_id: int, owner_id: int) -> int:
        """Removes all files of a media item, and uploads in progress; returns how many."""
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
                # One item has far fewer files than a page of S3's.
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
            # Also a refusal: wrong keys are our fault and will be put right, not the caller's.
            raise Unavailable("The object storage") from error


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
