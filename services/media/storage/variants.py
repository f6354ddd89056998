"""The variants of media items in S3, which the CDN reads."""

from services.media.pipeline.outputs import Variant
from services.media.storage.client import S3

_IMMUTABLE = "public, max-age=31536000, immutable"
"""The content of a variant's key never changes."""


class Variants:
    """Variants, by the key prefix of their media items. Every method may raise Unavailable."""

    def __init__(self, s3: S3) -> None:
        self._s3 = s3
        self._bucket = s3.media_bucket

    async def put(self, key_prefix: str, variant: Variant, content: bytes) -> None:
        """Stores a variant. Idempotent."""
        await self._s3.short.run(
            lambda client: client.put_object(
                Bucket=self._bucket,
                Key=key_prefix + variant.object_name,
                Body=content,
                ContentType=variant.content_type,
                CacheControl=_IMMUTABLE,
            )
        )

    async def sizes(self, key_prefix: str) -> dict[str, int]:
        """Returns the object names of a media item's stored variants, with sizes in bytes."""
        found = await self._s3.short.run(
            lambda client: client.list_objects_v2(Bucket=self._bucket, Prefix=key_prefix)
        )
        return {
            each["Key"].removeprefix(key_prefix): each["Size"] for each in found.get("Contents", [])
        }
