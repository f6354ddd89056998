"""Checks whether the first bytes of a file match its declared type."""

from services.media.pipeline.header import Kind, kind_of
from services.media.pipeline.outputs import Unprocessable

SNIFFED_BYTES = 256
"""How many bytes the check needs."""

SUPPORTED_TYPES = {
    "image/jpeg": Kind.JPEG,
    "image/png": Kind.PNG,
    "image/webp": Kind.WEBP,
    "image/avif": Kind.AVIF,
    "image/heic": Kind.HEIF,
    "image/heif": Kind.HEIF,
    "image/gif": Kind.GIF,
    "image/tiff": Kind.TIFF,
}
"""The supported picture formats, by content type."""


def contradicts(content_type: str, first: bytes) -> bool:
    """Returns whether a file starts like a supported type other than the declared one.

    Returns False if the type is not supported: the pipeline rejects the file later, and stores the
    reason with the media item.
    """
    try:
        kind = kind_of(first)
    except Unprocessable:
        return False
    return SUPPORTED_TYPES.get(content_type, kind) is not kind
