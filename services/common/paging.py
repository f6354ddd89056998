"""Opaque, signed page tokens for keyset paging.

A token holds the last id of a page and is good only for the method and the caller that it was
given to: nobody can make one up, nor carry one to another list.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from pathlib import Path

from services.common.errors import BadPageToken

_POSITION = struct.Struct(">q")
_MAC_BYTES = 12


class PageTokens:
    """Makes and opens the page tokens of one method."""

    def __init__(self, key: bytes, method: str) -> None:
        self._key = key
        self._method = method.encode()

    def seal(self, last_id: int, caller_id: int) -> str:
        """Returns a token that goes on behind `last_id`."""
        position = _POSITION.pack(last_id)
        return base64.urlsafe_b64encode(position + self._mac(position, caller_id)).decode()

    def open(self, token: str, caller_id: int) -> int:
        """Returns the id that the page goes on behind.

        Raises:
            BadPageToken: this method did not give the caller this token.
        """
        try:
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadPageToken from None
        position, mac = raw[: _POSITION.size], raw[_POSITION.size :]
        if not hmac.compare_digest(mac, self._mac(position, caller_id)):
            raise BadPageToken
        last_id: int = _POSITION.unpack(position)[0]
        return last_id

    def _mac(self, position: bytes, caller_id: int) -> bytes:
        text = b"%s\0%d\0%s" % (self._method, caller_id, position)
        return hmac.digest(self._key, text, hashlib.sha256)[:_MAC_BYTES]


def read_key(path: Path) -> bytes:
    """Returns the secret that a file holds as hexadecimal text."""
    return bytes.fromhex(path.read_text().strip())
