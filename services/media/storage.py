"""All of S3: where the files of a media item lie, and how they get there and back.

Two buckets: originals, which nobody but media reads, with their metadata; and media, the
variants, which the CDN reads. In both, all of one item is under
`<year>/<month>/<day>/<owner_id>/<media_id>/`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.common.config import StorageSettings
from services.common.errors import Unavailable
from services.common.ids import created_at
from services.media.pipeline.outputs import Variant

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UPLOAD_LIFE = timedelta(minutes=10)
"""How long S3 takes a form."""

_AT_A_TIME = 16
"""How many requests are under way; boto3 blocks, so each has a thread."""

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


class OriginalChanged(Exception):
    """The file was uploaded again after it was checked."""


class Storage:
    """Files in S3. Every method but `form` may raise Unavailable."""

    def __init__(self, settings: StorageSettings) -> None:
        self._originals = settings.originals_bucket
        self._variants = settings.media_bucket
        self._threads = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="s3")
        self._s3: S3Client = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                max_pool_connections=_AT_A_TIME,
                connect_timeout=1,
                read_timeout=5,
                retries={"total_max_attempts": 2, "mode": "standard"},
                # TLS and ETags guard the bytes; more checksums cost more than the request.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def form(
        self, media_id: int, owner_id: int, *, content_type: str, size_bytes: int
    ) -> UploadForm:
        """Returns a form that S3 takes for exactly this key, type and size. Asks nobody."""
        expire_time = datetime.now(UTC) + UPLOAD_LIFE
        post = self._s3.generate_presigned_post(
            self._originals,
            _original_key(media_id, owner_id),
            Fields={"Content-Type": content_type},
            Conditions=[
                {"Content-Type": content_type},
                ["content-length-range", size_bytes, size_bytes],
            ],
            ExpiresIn=int(UPLOAD_LIFE.total_seconds()),
        )
        return UploadForm(post["url"], post["fields"], expire_time)

    async def original(self, media_id: int, owner_id: int) -> Original | None:
        """Returns what was uploaded for a media item; None: nothing yet."""

        def head() -> Original | None:
            try:
                found = self._s3.head_object(
                    Bucket=self._originals, Key=_original_key(media_id, owner_id)
                )
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return Original(found["ContentLength"], found["ContentType"], found["ETag"])

        return await self._in_thread(head)

    async def read_original(self, media_id: int, owner_id: int, etag: str) -> bytes:
        """Returns the content of the original that has this ETag.

        One that is missing counts as Unavailable: it was there when it was checked, and S3 may
        take a while to find its objects again after a crash.

        Raises:
            OriginalChanged: another file lies there now.
        """

        def get() -> bytes:
            try:
                found = self._s3.get_object(
                    Bucket=self._originals, Key=_original_key(media_id, owner_id), IfMatch=etag
                )
            except ClientError as error:
                if _status(error) == 412:
                    raise OriginalChanged from error
                raise
            return found["Body"].read()

        return await self._in_thread(get)

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

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work)
        except (BotoCoreError, ClientError) as error:
            # Also a refusal: wrong keys are our fault and will be put right, not the caller's.
            raise Unavailable("The object storage") from error


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
