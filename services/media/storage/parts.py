"""Parts of unfinished multipart uploads in S3."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from services.media.storage.client import S3
from services.media.storage.keys import original_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Part:
    """A part of an upload, stored in S3."""

    number: int
    """Starts at 1."""
    size_bytes: int
    etag: str


class Parts:
    """Multipart uploads, by the key prefix of their media items and S3's ids.

    Every async method may raise Unavailable.
    """

    def __init__(self, s3: S3) -> None:
        self._s3 = s3
        self._bucket = s3.originals_bucket

    def url(
        self, key_prefix: str, s3_upload_id: str, *, number: int, size_bytes: int, life: timedelta
    ) -> str:
        """Returns a URL that accepts only this part, in this exact size."""
        return self._s3.short.client.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": self._bucket,
                "Key": original_key(key_prefix),
                "UploadId": s3_upload_id,
                "PartNumber": number,
                # The length is signed, so S3 rejects any other.
                "ContentLength": size_bytes,
            },
            ExpiresIn=int(life.total_seconds()),
        )

    async def begin(self, key_prefix: str, content_type: str) -> str:
        """Starts a multipart upload and returns its S3 upload id."""
        response = await self._s3.short.run(
            lambda client: client.create_multipart_upload(
                Bucket=self._bucket, Key=original_key(key_prefix), ContentType=content_type
            )
        )
        return response["UploadId"]

    async def stored(self, key_prefix: str, s3_upload_id: str) -> dict[int, list[Part]] | None:
        """Returns the stored parts by number; None: the upload was completed or aborted.

        S3 stores one part per number. SeaweedFS keeps every part that was sent; in the result, the
        newest is last.
        """

        def read(client: "S3Client") -> dict[int, list[Part]]:
            pages = client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=original_key(key_prefix), UploadId=s3_upload_id
            )
            found: dict[int, list[Part]] = {}
            listed = (part for page in pages for part in page.get("Parts", ()))
            for part in sorted(listed, key=lambda part: (part["PartNumber"], part["LastModified"])):
                found.setdefault(part["PartNumber"], []).append(
                    Part(part["PartNumber"], part["Size"], part["ETag"])
                )
            return found

        return await self._s3.short.run_unless((404,), read)

    async def put(
        self, key_prefix: str, s3_upload_id: str, number: int, content: bytearray
    ) -> Part | None:
        """Stores a part; None: the upload was completed or aborted."""
        stored = await self._s3.long.run_unless(
            (404,),
            lambda client: client.upload_part(
                Bucket=self._bucket,
                Key=original_key(key_prefix),
                UploadId=s3_upload_id,
                PartNumber=number,
                Body=content,  # type: ignore[arg-type]  # The stubs lack bytearray.
            ),
        )
        return Part(number, len(content), stored["ETag"]) if stored else None

    async def complete(self, key_prefix: str, s3_upload_id: str, parts: Sequence[Part]) -> None:
        """Assembles the original from exactly the parts with these ETags.

        Does nothing if the upload was already completed or aborted. To find out which, read the
        original.
        """
        await self._s3.long.run_unless(
            (404,),
            lambda client: client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=original_key(key_prefix),
                UploadId=s3_upload_id,
                MultipartUpload={
                    "Parts": [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
                },
            ),
        )

    async def abort(self, key_prefix: str, s3_upload_id: str) -> None:
        """Removes the parts of an upload that is not completed. Idempotent."""
        await self._s3.short.run_unless(
            (404,),
            lambda client: client.abort_multipart_upload(
                Bucket=self._bucket, Key=original_key(key_prefix), UploadId=s3_upload_id
            ),
        )
