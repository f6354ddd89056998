"""URLs under which the CDN serves private media."""

import time
from typing import Protocol

import jwt

from services.common.config import CdnSettings
from services.common.paging import read_key

_HOUR = 3600


class UrlSigner(Protocol):
    """Makes URLs that the CDN in use accepts."""

    def sign(self, prefix: str) -> "SignedPrefix":
        """Allows everything below an S3 key prefix, which ends with a slash."""
        ...


class SignedPrefix:
    """The right to read everything below one prefix, for two to three hours."""

    def __init__(self, base: str, token: str) -> None:
        self._base = base
        self._token = token

    def url(self, name: str) -> str:
        """Returns the URL of one object below the prefix."""
        return f"{self._base}{name}?token={self._token}"


class EdgeSigner:
    """Signs for the Envoy edge: a JWT over the path prefix.

    The expiry is rounded up to the hour, so that all viewers of an hour share one URL, which the
    edge and their browsers can then cache. A URL is good for two to three hours: an answer that
    carries it may be cached for one, and still gives its reader another.
    """

    def __init__(self, settings: CdnSettings) -> None:
        self._origin = settings.cdn_url
        self._key = read_key(settings.cdn_key_file)

    def sign(self, prefix: str) -> SignedPrefix:
        path = f"/media/{prefix}"
        expiry = (int(time.time()) // _HOUR + 3) * _HOUR
        token = jwt.encode({"p": path, "exp": expiry}, self._key, algorithm="HS256")
        return SignedPrefix(self._origin + path, token)
