"""Checks whether the first bytes of a file match its declared type."""

from services.media.pipeline.header import FileType, file_type_of
from services.media.pipeline.outputs import Unprocessable

SNIFFED_BYTES = 256
"""How many bytes the check needs."""

SUPPORTED_TYPES = {
    "image/jpeg": FileType.JPEG,
    "image/png": FileType.PNG,
    "image/webp": FileType.WEBP,
    "image/avif": FileType.AVIF,
    "image/heic": FileType.HEIF,
    "image/heif": FileType.HEIF,
    "image/gif": FileType.GIF,
    "image/tiff": FileType.TIFF,
}
"""The supported picture formats, by content type."""


def contradicts(content_type: str, first: bytes) -> bool:
    """Returns whether a file starts like a supported type other than the declared one.

    Returns False if the type is not supported: the pipeline rejects the file later, and stores the
    reason with the media item.
    """
    try:
        file_type = file_type_of(first)
    except Unprocessable:
        return False
    return SUPPORTED_TYPES.get(content_type, file_type) is not file_type
