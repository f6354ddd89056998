"""Sends requests to S3 from threads, because boto3 blocks, and converts its errors."""

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.chassis.errors import Unavailable
from services.media.config import StorageSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

AT_A_TIME = 16
"""How many short requests run at a time."""

_LONG_AT_A_TIME = 8
"""How many large transfers run at a time, in a separate pool so that they do not delay the short
requests."""

Result = TypeVar("Result")


class Requests:
    """Runs a limited number of requests at a time. Every method may raise Unavailable."""

    def __init__(self, settings: StorageSettings, *, at_a_time: int, read_timeout: int) -> None:
        """`read_timeout` is in seconds."""
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="s3")
        self.client: S3Client = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                max_pool_connections=at_a_time,
                connect_timeout=1,
                read_timeout=read_timeout,
                retries={"total_max_attempts": 2, "mode": "standard"},
                # TLS and ETags protect the content. Additional checksums would take longer than
                # the request itself.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def run(self, request: Callable[["S3Client"], Result]) -> Result:
        """Runs `request` in a thread and returns its result."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, request, self.client)
        except (BotoCoreError, ClientError) as error:
            # This includes rejected credentials: they are a server misconfiguration, not the
            # caller's error.
            raise Unavailable("The object storage") from error

    async def run_unless(
        self, statuses: Collection[int], request: Callable[["S3Client"], Result]
    ) -> Result | None:
        """Like `run`, but returns None if S3 responds with one of these HTTP statuses."""

        def attempt(client: "S3Client") -> Result | None:
            try:
                return request(client)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in statuses:
                    return None
                raise

        return await self.run(attempt)


class S3:
    """The two buckets, and the clients that send requests to them."""

    def __init__(self, settings: StorageSettings) -> None:
        self.originals_bucket = settings.originals_bucket
        self.media_bucket = settings.media_bucket
        self.short = Requests(settings, at_a_time=AT_A_TIME, read_timeout=5)
        # For parts and whole files, and for assembling hundreds of parts.
        self.long = Requests(settings, at_a_time=_LONG_AT_A_TIME, read_timeout=30)

    async def erase(self, key_prefix: str) -> int:
        """Removes all files and unfinished uploads of a media item; returns how many.

        Raises:
            Unavailable: S3 is unavailable.
        """

        def remove(client: "S3Client") -> int:
            removed = 0
            for bucket in (self.originals_bucket, self.media_bucket):
                uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=key_prefix)
                for upload in uploads.get("Uploads", []):
                    client.abort_multipart_upload(
                        Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
                # One item has far fewer files than one page of a listing (1,000).
                files = client.list_objects_v2(Bucket=bucket, Prefix=key_prefix)
                for file in files.get("Contents", []):
                    client.delete_object(Bucket=bucket, Key=file["Key"])
                    removed += 1
            return removed

        return await self.short.run(remove)
