"""Pictures that OpenCV does not read, or not as they are meant, read by Pillow and libheif.

Pillow tells a file's dimensions, orientation and colour profile when it opens it, and decodes
when it is told to; pillow-heif does the same for HEIF.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pillow_heif
from PIL import AvifImagePlugin, ExifTags, Image, TiffImagePlugin

from services.media.pipeline.header import MOST_PIXELS, Header, Kind
from services.media.pipeline.outputs import Failure, Unprocessable

# More than this is refused before; this is for files that tell their decoder something else.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS

# Imported here, so that no file makes Pillow look for all the formats that it knows.
_PLUGINS = (AvifImagePlugin, TiffImagePlugin)

# Neither threads nor pictures beside the first are wanted.
pillow_heif.register_heif_opener(
    thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
)

_TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


def open_foreign(kind: Kind, data: mmap.mmap, file: BinaryIO) -> tuple[Header, Image.Image]:
    """Reads the header of a file, whose content is `data`, and returns it with what decodes it.

    Raises:
        Unprocessable: CORRUPT, or TOO_MANY_PIXELS.
        MemoryError: there is less than it needs.
    """
    with blamed_on_the_file():
        image = Image.open(file, formats=[kind.name])
        width, height = image.size
        orientation = 1 if kind is Kind.GIF else _orientation(kind, data, image)
        if kind is Kind.TIFF:
            # Pillow would turn it after decoding, and hold it twice meanwhile.
            turned = image.tag_v2.get(ExifTags.Base.Orientation)  # type: ignore[attr-defined]
            if turned in (5, 6, 7, 8):
                width, height = height, width
            image.getexif().pop(ExifTags.Base.Orientation, None)
        profile = image.info.get("icc_profile")
    return Header(
        kind,
        width,
        height,
        orientation,
        transparent=image.mode in _TRANSPARENT_MODES or "transparency" in image.info,
        profile=profile if isinstance(profile, bytes) and profile else None,
        unusual=True,
    ), image


def _orientation(kind: Kind, data: mmap.mmap, image: Image.Image) -> int:
    if kind is Kind.HEIF:
        # libheif obeys what HEIF itself says of turning and mirroring, and then EXIF, which says
        # the same again, counts for nothing. There are files, though, where only EXIF says it.
        meta = _box(data, b"meta")
        turned = b"irot" in meta or b"imir" in meta
        # pillow-heif writes over what EXIF says, and keeps it under this name.
        told = None if turned else image.info.get("original_orientation")
    else:
        told = image.getexif().get(ExifTags.Base.Orientation)
    return told if isinstance(told, int) and 1 <= told <= 8 else 1


def _box(data: mmap.mmap, name: bytes) -> bytes:
    """Returns an outermost box of a HEIF file; empty when there is none."""
    position = 0
    while position + 8 <= len(data):
        length, found = struct.unpack_from(">I4s", data, position)
        if found == name:
            return data[position : position + length]
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
        if length < 8:
            break
        position += length
    return b""


@contextmanager
def blamed_on_the_file() -> Iterator[None]:
    """Turns what Pillow raises about a damaged file, which may be anything, into CORRUPT.

    Raises:
        Unprocessable: CORRUPT, or TOO_MANY_PIXELS.
        MemoryError: there is less memory than it needs.
    """
    try:
        yield
    except Image.DecompressionBombError:
        raise Unprocessable(Failure.TOO_MANY_PIXELS) from None
    except (
        *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError),
        *(SyntaxError, TypeError, ValueError, struct.error, zlib.error),
    ) as error:
        if "memory" in str(error).lower():
            raise MemoryError from error
        raise Unprocessable(Failure.CORRUPT) from error
