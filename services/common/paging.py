"""Opaque, signed page tokens for keyset paging.

A token holds the last position of a page, an id or a time with an id, and is good only for the
method and the caller that it was given to: nobody can make one up, nor carry one to another list.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.common.errors import BadPageToken

_ID = struct.Struct(">q")
_TIME_AND_ID = struct.Struct(">qq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAC_BYTES = 12


class PageTokens:
    """Makes and opens the page tokens of one method."""

    def __init__(self, key: bytes, method: str) -> None:
        self._key = key
        self._method = method.encode()

    def seal(self, last_id: int, caller_id: int) -> str:
        """Returns a token that goes on behind `last_id`, in a list ordered by id."""
        return self._seal(_ID.pack(last_id), caller_id)

    def open(self, token: str, caller_id: int) -> int:
        """Returns the id that the page goes on behind.

        Raises:
            BadPageToken: this method did not give the caller this token.
        """
        last_id: int = self._open(token, caller_id, _ID)[0]
        return last_id

    def seal_time(self, last_time: datetime, last_id: int, caller_id: int) -> str:
        """Returns a token that goes on behind a row, in a list ordered by time and then by id.

        The time must know its zone; it is kept to the microsecond.
        """
        microseconds = (last_time - _EPOCH) // _MICROSECOND
        return self._seal(_TIME_AND_ID.pack(microseconds, last_id), caller_id)

    def open_time(self, token: str, caller_id: int) -> tuple[datetime, int]:
        """Returns the time and the id that the page goes on behind.

        Raises:
            BadPageToken: this method did not give the caller this token.
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
    """Returns the secret that a file holds as hexadecimal text."""
    return bytes.fromhex(path.read_text().strip())
