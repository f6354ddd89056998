"""Whether a file begins as its declared type does."""

from services.media.pipeline.header import Kind, kind_of
from services.media.pipeline.outputs import Unprocessable

SNIFFED_BYTES = 256
"""How many bytes are enough."""

KINDS = {
    "image/jpeg": Kind.JPEG,
    "image/png": Kind.PNG,
    "image/webp": Kind.WEBP,
    "image/avif": Kind.AVIF,
    "image/heic": Kind.HEIF,
    "image/heif": Kind.HEIF,
    "image/gif": Kind.GIF,
    "image/tiff": Kind.TIFF,
}
"""The types that are understood, by their names."""


def contradicts(content_type: str, first: bytes) -> bool:
    """Tells whether a file begins like one of another known type than a declared one.

    What begins like none is for the pipeline to refuse, with a reason that stays with the media.
    """
    try:
        kind = kind_of(first)
    except Unprocessable:
        return False
    return KINDS.get(content_type, kind) is not kind
