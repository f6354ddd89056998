"""Opaque, signed page tokens for keyset paging.

A token contains the last position of a page: an id, or a time and an id. The signature covers the
method and the caller that it was issued to, so it cannot be forged or used for another list.

itsdangerous offers the same with a JSON payload, but a token has 60 characters instead of 28 and
takes 8 us instead of 2.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.chassis.errors import BadPageToken

_ID = struct.Struct(">q")
_TIME_AND_ID = struct.Struct(">qq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAC_BYTES = 12


class PageTokens:
    """Creates and verifies the page tokens of one method."""

    def __init__(self, key: bytes, method: str) -> None:
        self._key = key
        self._method = method.encode()

    def seal(self, last_id: int, caller_id: int) -> str:
        """Returns a token for the page after `last_id`, in a list ordered by id."""
        return self._seal(_ID.pack(last_id), caller_id)

    def open(self, token: str, caller_id: int) -> int:
        """Returns the id after which the page starts.

        Raises:
            BadPageToken: this method did not issue this token to this caller.
        """
        last_id: int = self._open(token, caller_id, _ID)[0]
        return last_id

    def seal_time(self, last_time: datetime, last_id: int, caller_id: int) -> str:
        """Returns a token for the page after a row, in a list ordered by time and then by id.

        The time must be timezone-aware. The token stores it in microseconds.
        """
        microseconds = (last_time - _EPOCH) // _MICROSECOND
        return self._seal(_TIME_AND_ID.pack(microseconds, last_id), caller_id)

    def open_time(self, token: str, caller_id: int) -> tuple[datetime, int]:
        """Returns the time and the id after which the page starts.

        Raises:
            BadPageToken: this method did not issue this token to this caller.
        """
        microseconds, last_id = self._open(token, caller_id, _TIME_AND_ID)
        return _EPOCH + microseconds * _MICROSECOND, last_id

    def _seal(self, position: bytes, caller_id: int) -> str:
        return base64.urlsafe_b64encode(position + self._mac(position, caller_id)).decode()

    def _open(self, token: str, caller_id: int, position_of: struct.Struct) -> tuple[int, ...]:
        try:
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadPageToken from None
        position, mac = raw[: position_of.size], raw[position_of.size :]
        if not hmac.compare_digest(mac, self._mac(position, caller_id)):
            raise BadPageToken
        return position_of.unpack(position)

    def _mac(self, position: bytes, caller_id: int) -> bytes:
        text = b"%s\0%d\0%s" % (self._method, caller_id, position)
        return hmac.digest(self._key, text, hashlib.sha256)[:_MAC_BYTES]


def read_key(path: Path) -> bytes:
    """Returns the secret in a file that contains it as hexadecimal text."""
    return bytes.fromhex(path.read_text().strip())
