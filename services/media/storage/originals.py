"""Uploaded files in S3, and the forms that clients upload them with."""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO

from services.media.sniffing import SNIFFED_BYTES
from services.media.storage.client import S3
from services.media.storage.keys import original_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_READ_BYTES = 1 << 20


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


class OriginalChanged(Exception):
    """The file was replaced by another upload after it was checked."""


class Originals:
    """Uploaded files, by the key prefix of their media items.

    Every async method may raise Unavailable.
    """

    def __init__(self, s3: S3) -> None:
        self._s3 = s3
        self._bucket = s3.originals_bucket

    def form(
        self,
        key_prefix: str,
        *,
        content_type: str,
        size_bytes: int,
        sha256: bytes | None,
        life: timedelta,
    ) -> tuple[str, dict[str, str]]:
        """Returns the URL and the fields of the form that a client POSTs with its file.

        S3 accepts the form only for this exact key, type, size and content.
        """
        fields = {"Content-Type": content_type}
        if sha256 is not None:
            fields["x-amz-checksum-sha256"] = b64encode(sha256).decode()
        post = self._s3.short.client.generate_presigned_post(
            self._bucket,
            original_key(key_prefix),
            Fields=dict(fields),
            Conditions=[
                *({name: value} for name, value in fields.items()),
                ["content-length-range", size_bytes, size_bytes],
            ],
            ExpiresIn=int(life.total_seconds()),
        )
        return post["url"], post["fields"]

    async def find(self, key_prefix: str) -> Original | None:
        """Returns the uploaded file of a media item; None: there is none yet."""
        key = original_key(key_prefix)

        def get(client: "S3Client") -> Original:
            # S3 returns no checksum for a range request, so this takes a second request.
            head = client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
            first = client.get_object(
                Bucket=self._bucket,
                Key=key,
                IfMatch=head["ETag"],
                Range=f"bytes=0-{SNIFFED_BYTES - 1}",
            )
            sha256 = head.get("ChecksumSHA256", "")
            return Original(
                size_bytes=head["ContentLength"],
                content_type=head["ContentType"],
                etag=head["ETag"],
                first=first["Body"].read(),
                # A multipart upload has a checksum of its parts' checksums (with a "-"), which is
                # not the SHA-256 of the content.
                sha256=b64decode(sha256) if sha256 and "-" not in sha256 else None,
            )

        return await self._s3.short.run_unless((404, 412), get)

    async def put(
        self, key_prefix: str, content: bytearray, *, content_type: str, sha256: bytes
    ) -> None:
        """Stores a small file unless one exists."""
        await self._s3.long.run_unless(
            # 412: a file exists. 409: a concurrent request is storing one.
            (409, 412),
            lambda client: client.put_object(
                Bucket=self._bucket,
                Key=original_key(key_prefix),
                Body=content,  # type: ignore[arg-type]  # The stubs lack bytearray.
                ContentType=content_type,
                ChecksumSHA256=b64encode(sha256).decode(),
                IfNoneMatch="*",
            ),
        )

    async def remove(self, key_prefix: str) -> None:
        """Removes a file. Idempotent."""
        await self._s3.short.run(
            lambda client: client.delete_object(Bucket=self._bucket, Key=original_key(key_prefix))
        )

    async def hash(self, key_prefix: str, etag: str) -> bytes:
        """Reads the file with this ETag and returns its SHA-256.

        Takes one request, little memory, and one second of one core per GiB.

        Raises:
            OriginalChanged: the file now has another ETag.
        """
        digest = hashlib.sha256()

        def update(chunks: Iterable[bytes]) -> None:
            for chunk in chunks:
                digest.update(chunk)

        await self._read(key_prefix, etag, update)
        return digest.digest()

    async def fetch(self, key_prefix: str, etag: str, into: BinaryIO) -> None:
        """Writes the content of the file with this ETag to a local file.

        A missing file raises Unavailable: it existed when it was checked, and S3 may need time to
        find its objects again after a crash.

        Raises:
            OriginalChanged: the file now has another ETag.
        """

        def write(chunks: Iterable[bytes]) -> None:
            into.writelines(chunks)
            into.flush()

        await self._read(key_prefix, etag, write)

    async def _read(
        self, key_prefix: str, etag: str, consume: Callable[[Iterable[bytes]], None]
    ) -> None:
        def get(client: "S3Client") -> bool:
            found = client.get_object(
                Bucket=self._bucket, Key=original_key(key_prefix), IfMatch=etag
            )
            consume(found["Body"].iter_chunks(_READ_BYTES))
            return True

        if not await self._s3.long.run_unless((412,), get):
            raise OriginalChanged
