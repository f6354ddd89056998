"""Turns ids as PostgreSQL packs them into fields as protobuf does, none of them a Python object.

A million followers as Python integers would take longer than to read them from the disk.
"""

import sys
from array import array


def packed(field: int, ids: bytes) -> bytes:
    """Returns a `repeated sfixed64` field on the wire.

    Takes the field's number, 1 to 15, and the ids, 8 bytes each, most significant first.
    """
    if not ids:
        return b""
    values = array("q", ids)
    if sys.byteorder == "little":
        values.byteswap()
    return bytes([field << 3 | 2]) + _varint(len(ids)) + values.tobytes()


def _varint(number: int) -> bytes:
    septets = []
    while number > 127:
        septets.append(number & 127 | 128)
        number >>= 7
    return bytes([*septets, number])
