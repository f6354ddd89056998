"""PNG files made by hand: larger than Pillow allows, or with a wrong header."""

import struct
import zlib

GREY, RGB, RGBA = 0, 2, 6
_CHANNELS = {GREY: 1, RGB: 3, RGBA: 4}


def png(
    width: int, height: int, *, colours: int, bits: int = 8, rows: bytes | None = None
) -> bytes:
    """Returns a black (and transparent) picture. With `rows`, the header may differ from it."""
    if rows is None:
        # Each row begins with its filter.
        rows = bytes((1 + (width * _CHANNELS[colours] * bits + 7) // 8) * height)
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows, 1)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
