"""Files that OpenCV cannot read, or reads incorrectly, opened with Pillow and libheif.

When Pillow opens a file, it reads the dimensions, the orientation and the colour profile; it
decodes only on request. pillow-heif does the same for HEIF.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pillow_heif
from PIL import AvifImagePlugin, ExifTags, Image, TiffImagePlugin

from services.media.pipeline.header import MAX_PIXELS, FileType, Header
from services.media.pipeline.outputs import Failure, Unprocessable

# `check_size` already rejects larger pictures. This limit is for files whose decoder sees other
# dimensions.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# Imported here, so that no file makes Pillow load the plugins of all formats.
_PLUGINS = (AvifImagePlugin, TiffImagePlugin)

# Disables threads and all images except the main one.
pillow_heif.register_heif_opener(
    thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
)

_TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


def open_with_pillow(
    file_type: FileType, data: mmap.mmap, file: BinaryIO
) -> tuple[Header, Image.Image]:
    """Returns the header of a file, whose content is `data`, and the image that decodes it.

    Raises:
        Unprocessable: CORRUPT or TOO_MANY_PIXELS.
        MemoryError: the memory limit is too low.
    """
    with pillow_errors_as_unprocessable():
        image = Image.open(file, formats=[file_type.name])
        width, height = image.size
        orientation = 1
        # GIF has none. Of a PNG, Pillow may decode all pixels to find it; its header is parsed.
        if file_type not in (FileType.GIF, FileType.PNG):
            orientation = _orientation(file_type, data, image)
        if file_type is FileType.TIFF:
            # Prevents Pillow from rotating after decoding, which would hold the picture twice.
            turned = image.tag_v2.get(ExifTags.Base.Orientation)  # type: ignore[attr-defined]
            if turned in (5, 6, 7, 8):
                width, height = height, width
            image.getexif().pop(ExifTags.Base.Orientation, None)
        profile = image.info.get("icc_profile")
    return Header(
        file_type,
        width,
        height,
        orientation,
        transparent=image.mode in _TRANSPARENT_MODES or "transparency" in image.info,
        profile=profile if isinstance(profile, bytes) and profile else None,
        unusual=True,
    ), image


def _orientation(file_type: FileType, data: mmap.mmap, image: Image.Image) -> int:
    if file_type is FileType.HEIF:
        # libheif applies HEIF's own rotation and mirroring. If there are any, EXIF only repeats
        # them and is ignored. In some files, however, only EXIF has the orientation.
        meta = _box(data, b"meta")
        turned = b"irot" in meta or b"imir" in meta
        # pillow-heif overwrites the EXIF orientation and keeps the original under this name.
        value = None if turned else image.info.get("original_orientation")
    else:
        value = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _box(data: mmap.mmap, name: bytes) -> bytes:
    """Returns a top-level box of a HEIF file; empty if there is none."""
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
def pillow_errors_as_unprocessable() -> Iterator[None]:
    """Converts the exceptions that Pillow raises for a damaged file, which have many types.

    Raises:
        Unprocessable: CORRUPT or TOO_MANY_PIXELS.
        MemoryError: the memory limit is too low.
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
