"""What a file's header tells before anything of it is decoded.

Only what decides how to decode is read: the real type, the dimensions, the orientation, and
whether there is transparency. The bytes may be anything, so nothing in them is believed.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from services.media.pipeline.outputs import Failure, Unprocessable

MOST_PIXELS = 100_000_000
MOST_SIDE = 30_000

_UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_SHORT = 3


class Kind(Enum):
    """What is understood."""

    JPEG = auto()
    PNG = auto()
    WEBP = auto()


@dataclass(frozen=True)
class Header:
    """A picture as it lies in its file."""

    kind: Kind
    width: int
    """In pixels, before the orientation is applied; at least 1."""
    height: int
    orientation: int = _UPRIGHT
    """1 to 8, as EXIF counts."""
    transparent: bool = False
    """Whether there may be pixels that are not opaque."""


def read_header(data: bytes) -> Header:
    """Reads the header of a JPEG, PNG or WebP file.

    Raises:
        Unprocessable: NOT_AN_IMAGE, CORRUPT, or TOO_MANY_PIXELS.
    """
    try:
        header = _read(data)
    except (IndexError, struct.error):
        raise Unprocessable(Failure.CORRUPT) from None
    if header.width < 1 or header.height < 1:
        raise Unprocessable(Failure.CORRUPT)
    if max(header.width, header.height) > MOST_SIDE or header.width * header.height > MOST_PIXELS:
        raise Unprocessable(Failure.TOO_MANY_PIXELS)
    return header


def _read(data: bytes) -> Header:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    raise Unprocessable(Failure.NOT_AN_IMAGE)


# Start of frame: C0 to CF, but for DHT, JPG and DAC, which share the range.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_APP1 = 0xE1
_JPEG_SCAN = 0xDA
_JPEG_END = 0xD9


def _jpeg(data: bytes) -> Header:
    """Walks the segments up to the first scan."""
    orientation = _UPRIGHT
    size: tuple[int, int] | None = None
    position = 2
    while True:
        if data[position] != 0xFF:
            raise Unprocessable(Failure.CORRUPT)
        # Any number of FF may pad a marker.
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        if marker in (_JPEG_SCAN, _JPEG_END):
            break
        (length,) = struct.unpack_from(">H", data, position + 1)
        body = position + 3
        if marker in _JPEG_FRAMES:
            size = struct.unpack_from(">HH", data, body + 1)
        elif marker == _JPEG_APP1 and data.startswith(b"Exif\0\0", body):
            orientation = _orientation(data[body + 6 : position + 1 + length])
        position += 1 + length
    if size is None:
        raise Unprocessable(Failure.CORRUPT)
    height, width = size
    return Header(Kind.JPEG, width, height, orientation)


# Colour types with an alpha channel: grey and alpha, RGBA.
_PNG_ALPHA = frozenset({4, 6})


def _png(data: bytes) -> Header:
    width, height, _, colour_type = struct.unpack_from(">IIBB", data, 16)
    orientation = _UPRIGHT
    transparent = colour_type in _PNG_ALPHA
    position = 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"tRNS":
            transparent = True
        elif name == b"eXIf":
            orientation = _orientation(data[position + 8 : position + 8 + length])
        elif name == b"IEND":
            return Header(Kind.PNG, width, height, orientation, transparent)
        position += 12 + length
    raise Unprocessable(Failure.CORRUPT)


_WEBP_ALPHA_FLAG = 0x10


def _webp(data: bytes) -> Header:
    chunks = _webp_chunks(data)
    name, first = next(chunks)
    if name == b"VP8 ":
        if data[first + 3 : first + 6] != b"\x9d\x01\x2a":
            raise Unprocessable(Failure.CORRUPT)
        width, height = struct.unpack_from("<HH", data, first + 6)
        return Header(Kind.WEBP, width & 0x3FFF, height & 0x3FFF)
    if name == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, first)
        if signature != 0x2F:
            raise Unprocessable(Failure.CORRUPT)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Header(Kind.WEBP, width, height, transparent=bool(bits >> 28 & 1))
    if name != b"VP8X":
        raise Unprocessable(Failure.CORRUPT)
    width = int.from_bytes(data[first + 4 : first + 7], "little") + 1
    height = int.from_bytes(data[first + 7 : first + 10], "little") + 1
    orientation = _UPRIGHT
    for name, start in chunks:
        if name == b"EXIF":
            orientation = _orientation(data[start:].removeprefix(b"Exif\0\0"))
    return Header(Kind.WEBP, width, height, orientation, bool(data[first] & _WEBP_ALPHA_FLAG))


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields each chunk's name and where its content begins."""
    position = 12
    while position < len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        yield name, position + 8
        # Chunks begin at even offsets.
        position += 8 + length + (length & 1)


def _orientation(exif: bytes) -> int:
    """Returns the orientation in an EXIF block; upright when it tells none that can be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return _UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _ORIENTATION_TAG and kind == _SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass
    return _UPRIGHT
