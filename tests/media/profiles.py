"""ICC profiles made by hand: a wide gamut for screens, a grey one, and one for CMYK."""

import struct

DISPLAY = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""Red, green and blue of Display P3, as X, Y, Z."""

_WHITE = (0.9642, 1.0, 0.8249)


def screen(gamma: float = 2.2) -> bytes:
    """Returns the profile of a screen with a wider gamut than sRGB."""
    curve = b"curv" + struct.pack(">4xIHxx", 1, round(gamma * 256))
    colorants = {
        name: _xyz(value) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), DISPLAY, strict=True)
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", b"RGB ", b"XYZ ", colorants | curves)


def grey(gamma: float = 1.0) -> bytes:
    """Returns the profile of a grey picture."""
    curve = b"curv" + struct.pack(">4xIHxx", 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def press() -> bytes:
    """Returns a CMYK profile whose colours differ from a naive conversion."""
    ramp = bytes(range(256))
    # The corners of the CMYK space in turn, as L, a, b: more ink is darker.
    corners = b"".join(
        bytes((round(255 * (1 - k) * (4 - c - m - y) / 4), 128 + 40 * (m - c), 128 + 40 * (y - c)))
        for c in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
    )
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + struct.pack(">4xBBBx", 4, 3, 2) + matrix + ramp * 4 + corners + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _xyz(value: tuple[float, float, float]) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *(round(each * 65536) for each in value))


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"Made by a test\0"
    description = b"desc" + struct.pack(">4xI", len(name)) + name + bytes(78)
    tags = {b"desc": description, b"wtpt": _xyz(_WHITE), b"cprt": b"text\0\0\0\0None\0"} | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    length = start + len(body)
    header = struct.pack(">I4xI", length, 0x02400000) + device + space + connection + bytes(12)
    header += b"acsp" + bytes(24) + struct.pack(">II3i", 0, 0, 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body
