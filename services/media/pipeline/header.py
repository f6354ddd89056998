"""Parsing of a file's header before the file is decoded.

The header determines how to decode: the real type, the dimensions, the orientation, the colour
profile, and whether the picture may be transparent. The bytes are untrusted. For AVIF, HEIF, GIF
and TIFF, this module only detects the type: their headers are complex, and the libraries that
decode these types parse them (see `pillow_formats`).

Pillow 13 was tried for the others, too:

- JPEG: it skips junk between segments, which this module does not. But it rejects files with a JFIF
  or Adobe segment that is too short, and takes 48 s for 120 MB of EXIF segments.
- PNG: it finds an orientation behind the pixels only by decoding them, and rejects files with
  damaged metadata, for example a wrong checksum, that libpng and browsers show.
- WebP: it copies the file and allocates two canvases to open it. A file of 36 megapixels and 144 MB
  that OpenCV decodes then exceeds the memory limit.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from services.media.pipeline.outputs import Failure, Unprocessable

MAX_PIXELS = 100_000_000
MAX_SIDE = 30_000

_NAMED_BYTES = 256

_UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_SHORT = 3


class FileType(Enum):
    """A supported file type."""

    JPEG = auto()
    PNG = auto()
    WEBP = auto()
    AVIF = auto()
    HEIF = auto()
    GIF = auto()
    TIFF = auto()


GUARANTEED_PIXELS = {
    FileType.JPEG: 50_000_000,
    FileType.PNG: 100_000_000,
    FileType.WEBP: 50_000_000,
    FileType.AVIF: 24_000_000,
    FileType.HEIF: 32_000_000,
    FileType.GIF: 100_000_000,
    FileType.TIFF: 32_000_000,
}
"""The largest picture that fits the memory limits (see the worker's settings) in the costliest form
of each type: progressive CMYK, lossless, 12 bits with transparency. For larger pictures, decoding
is tried and may fail."""


@dataclass(frozen=True)
class Header:
    """A picture as stored in its file."""

    file_type: FileType
    width: int
    """The width in pixels, before the orientation is applied; at least 1."""
    height: int
    """The height in pixels, before the orientation is applied; at least 1."""
    orientation: int = _UPRIGHT
    """The EXIF orientation, 1 to 8."""
    transparent: bool = False
    """Whether pixels may be transparent."""
    profile: bytes | None = None
    """The ICC profile of the colours; None: sRGB."""
    unusual: bool = False
    """Whether the picture has a rare format: CMYK, or 16 bits with transparency. Always True for
    pictures that `open_with_pillow` opened."""
    progressive: bool = False
    """Whether the decoder must read the whole JPEG before it can output pixels."""


def file_type_of(data: bytes | mmap.mmap) -> FileType:
    """Returns the type of a file from its first bytes, whatever type was declared.

    Raises:
        Unprocessable: NOT_AN_IMAGE.
    """
    first = data[:_NAMED_BYTES]
    if first.startswith(b"\xff\xd8\xff"):
        return FileType.JPEG
    if first.startswith(b"\x89PNG\r\n\x1a\n"):
        return FileType.PNG
    if first.startswith(b"RIFF") and first[8:12] == b"WEBP":
        return FileType.WEBP
    if first.startswith((b"GIF87a", b"GIF89a")):
        return FileType.GIF
    if first.startswith((b"II*\0", b"MM\0*")):
        return FileType.TIFF
    if first[4:8] == b"ftyp":
        return _boxed(first)
    raise Unprocessable(Failure.NOT_AN_IMAGE)


def read_header(file_type: FileType, data: mmap.mmap) -> Header:
    """Reads the header of a JPEG, PNG or WebP file.

    Raises:
        Unprocessable: CORRUPT.
    """
    try:
        return {FileType.JPEG: _jpeg, FileType.PNG: _png, FileType.WEBP: _webp}[file_type](data)
    except (IndexError, struct.error, zlib.error, StopIteration):
        raise Unprocessable(Failure.CORRUPT) from None


def check_size(header: Header) -> None:
    """Checks that a picture is neither empty nor too large to decode.

    Raises:
        Unprocessable: CORRUPT or TOO_MANY_PIXELS.
    """
    if header.width < 1 or header.height < 1:
        raise Unprocessable(Failure.CORRUPT)
    if max(header.width, header.height) > MAX_SIDE or header.width * header.height > MAX_PIXELS:
        raise Unprocessable(Failure.TOO_MANY_PIXELS)


_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1"})


def _boxed(data: bytes) -> FileType:
    """Returns the type of an ISO base media file, which may also be a video, by its brands.

    Raises:
        Unprocessable: NOT_AN_IMAGE.
    """
    end = min(int.from_bytes(data[:4], "big"), _NAMED_BYTES)
    brands = {data[start : start + 4] for start in (8, *range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return FileType.AVIF
    if brands & _HEIF_BRANDS:
        return FileType.HEIF
    raise Unprocessable(Failure.NOT_AN_IMAGE)


# Start of frame: C0 to CF, except DHT, JPG and DAC, which share the range.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_APP1 = 0xE1
_JPEG_APP2 = 0xE2
_JPEG_SCAN = 0xDA
_JPEG_END = 0xD9


def _jpeg(data: mmap.mmap) -> Header:
    """Reads the segments up to the first scan."""
    orientation = _UPRIGHT
    size: tuple[int, int, int] | None = None
    progressive = False
    profile: dict[int, bytes] = {}
    position = 2
    while True:
        if data[position] != 0xFF:
            raise Unprocessable(Failure.CORRUPT)
        # Any number of FF may pad a marker.
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        (length,) = struct.unpack_from(">H", data, position + 1)
        body = position + 3
        if marker == _JPEG_SCAN and size is not None:
            # The scan does not contain all channels, so the decoder must buffer the picture.
            progressive |= data[body] < size[2]
        if marker in (_JPEG_SCAN, _JPEG_END):
            break
        if marker in _JPEG_FRAMES:
            size = struct.unpack_from(">HHB", data, body + 1)
            progressive = marker in _JPEG_PROGRESSIVE
        elif marker == _JPEG_APP1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body + 6 : position + 1 + length])
        elif marker == _JPEG_APP2 and data[body : body + 12] == b"ICC_PROFILE\0":
            # A profile has at most 255 numbered parts.
            profile[data[body + 12]] = data[body + 14 : position + 1 + length]
        position += 1 + length
    if size is None:
        raise Unprocessable(Failure.CORRUPT)
    height, width, components = size
    return Header(
        FileType.JPEG,
        width,
        height,
        orientation,
        profile=b"".join(part for _, part in sorted(profile.items())) or None,
        unusual=components == 4,
        progressive=progressive,
    )


# Colour types with an alpha channel: grey and alpha, RGBA.
_PNG_ALPHA = frozenset({4, 6})


_MAX_PROFILE_BYTES = 4 * 1024 * 1024


def _png(data: mmap.mmap) -> Header:
    width, height, bits, colour_type = struct.unpack_from(">IIBB", data, 16)
    orientation = _UPRIGHT
    profile = None
    transparent = colour_type in _PNG_ALPHA
    position = 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"tRNS":
            transparent = True
        elif name == b"eXIf":
            orientation = _orientation(data[position + 8 : position + 8 + length])
        elif name == b"iCCP":
            # Layout: name, zero byte, compression method (there is only one), compressed profile.
            _, _, packed = data[position + 8 : position + 8 + length].partition(b"\0")
            profile = zlib.decompressobj().decompress(packed[1:], _MAX_PROFILE_BYTES)
        elif name == b"IEND":
            return Header(
                FileType.PNG,
                width,
                height,
                orientation,
                transparent,
                profile,
                unusual=transparent and bits == 16,
            )
        position += 12 + length
    raise Unprocessable(Failure.CORRUPT)


_WEBP_ALPHA_FLAG = 0x10


def _webp(data: mmap.mmap) -> Header:
    chunks = _webp_chunks(data)
    name, content = next(chunks)
    first = content.start
    if name == b"VP8 ":
        if data[first + 3 : first + 6] != b"\x9d\x01\x2a":
            raise Unprocessable(Failure.CORRUPT)
        width, height = struct.unpack_from("<HH", data, first + 6)
        return Header(FileType.WEBP, width & 0x3FFF, height & 0x3FFF)
    if name == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, first)
        if signature != 0x2F:
            raise Unprocessable(Failure.CORRUPT)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Header(FileType.WEBP, width, height, transparent=bool(bits >> 28 & 1))
    if name != b"VP8X":
        raise Unprocessable(Failure.CORRUPT)
    width = int.from_bytes(data[first + 4 : first + 7], "little") + 1
    height = int.from_bytes(data[first + 7 : first + 10], "little") + 1
    orientation = _UPRIGHT
    profile = None
    for name, content in chunks:
        if name == b"EXIF":
            orientation = _orientation(data[content].removeprefix(b"Exif\0\0"))
        elif name == b"ICCP":
            profile = data[content]
    transparent = bool(data[first] & _WEBP_ALPHA_FLAG)
    return Header(FileType.WEBP, width, height, orientation, transparent, profile)


def _webp_chunks(data: mmap.mmap) -> Iterator[tuple[bytes, slice]]:
    """Yields the name and the content range of each chunk."""
    position = 12
    while position < len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        yield name, slice(position + 8, position + 8 + length)
        # Chunks begin at even offsets.
        position += 8 + length + (length & 1)


def _orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block; upright if it has no valid one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return _UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, value_type, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _ORIENTATION_TAG and value_type == _SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass
    return _UPRIGHT
