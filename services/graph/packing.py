"""Converts ids from PostgreSQL's packed form into protobuf fields, without Python objects.

Converting a million followers to Python integers would take longer than reading them from disk.
"""

import sys
from array import array

from services.chassis.wire import varint


def packed(field: int, ids: bytes) -> bytes:
    """Returns a `repeated sfixed64` field in wire format.

    Args:
        field: the field's number, 1 to 15.
        ids: 8 bytes each, big-endian.
    """
    if not ids:
        return b""
    values = array("q", ids)
    if sys.byteorder == "little":
        values.byteswap()
    return bytes([field << 3 | 2]) + varint(len(ids)) + values.tobytes()
