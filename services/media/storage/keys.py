"""The layout of S3 objects."""

from services.chassis.database.ids import created_at


def key_prefix(media_id: int, owner_id: int) -> str:
    """Returns the prefix of the keys of all files of a media item, in both buckets."""
    return f"{created_at(media_id):%Y/%m/%d}/{owner_id}/{media_id}/"


def original_key(key_prefix: str) -> str:
    """Returns the key of an uploaded file in the originals bucket."""
    return key_prefix + "original"
