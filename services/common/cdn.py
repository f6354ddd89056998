"""URLs under which the CDN serves private media.

One signature is good for all variants of a media item, and its expiry is rounded up to the hour:
all viewers of an hour share one URL, which the CDN and their browsers can then cache. A URL is
good for two to three hours: an answer that carries it may be cached for one, and still gives its
reader another.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.common.config import CdnSettings
from services.common.paging import read_key

_HOUR = 3600

_REMEMBERED = 10_000
"""How many signatures a process keeps; half a kilobyte each, a CloudFront one a whole."""


class UrlSigner(Protocol):
    """Makes URLs that the CDN in use accepts."""

    def sign(self, prefix: str) -> "SignedPrefix":
        """Allows everything below an S3 key prefix, which ends with a slash."""
        ...


class SignedPrefix:
    """The right to read everything below one prefix, for two to three hours."""

    def __init__(self, base: str, query: str) -> None:
        self._base = base
        self._query = query

    def url(self, name: str) -> str:
        """Returns the URL of one object below the prefix."""
        return f"{self._base}{name}?{self._query}"


class EdgeSigner:
    """Signs for the Envoy edge: a JWT over the path prefix."""

    def __init__(self, settings: CdnSettings) -> None:
        self._origin = settings.cdn_url
        try:
            self._key = read_key(settings.cdn_key_file)
        except ValueError:
            raise _wrong_key(settings.cdn_key_file, "hexadecimal text", "edge") from None
        self._remembered = lru_cache(_REMEMBERED)(self._signed)

    def sign(self, prefix: str) -> SignedPrefix:
        return self._remembered(prefix, _expiry())

    def _signed(self, prefix: str, expiry: int) -> SignedPrefix:
        path = f"/media/{prefix}"
        token = jwt.encode({"p": path, "exp": expiry}, self._key, algorithm="HS256")
        return SignedPrefix(self._origin + path, f"token={token}")


class CloudFrontSigner:
    """Signs for CloudFront: a custom policy whose resource is the prefix and a wildcard.

    A signature costs 0.8 ms, 25 times the edge's, which is why it is remembered for its hour.
    """

    def __init__(self, settings: CdnSettings) -> None:
        # Here, because botocore takes a third of a second to import, and the edge needs none of it.
        from botocore.signers import CloudFrontSigner

        self._origin = settings.cdn_url
        sign = _rsa_sha1(settings.cdn_key_file)
        self._cloudfront = CloudFrontSigner(settings.cdn_key_pair_id, sign)
        self._remembered = lru_cache(_REMEMBERED)(self._signed)

    def sign(self, prefix: str) -> SignedPrefix:
        return self._remembered(prefix, _expiry())

    def _signed(self, prefix: str, expiry: int) -> SignedPrefix:
        base = f"{self._origin}/media/{prefix}"
        policy = self._cloudfront.build_policy(base + "*", datetime.fromtimestamp(expiry, UTC))
        signed = self._cloudfront.generate_presigned_url(base, policy=policy)
        return SignedPrefix(base, signed.removeprefix(base + "?"))


def signer(settings: CdnSettings) -> UrlSigner:
    """Returns the signer of the CDN that the settings name.

    Raises:
        SystemExit: the key file does not hold such a signer's key.
    """
    if settings.cdn_signer == "cloudfront":
        return CloudFrontSigner(settings)
    return EdgeSigner(settings)


def _expiry() -> int:
    return (int(time.time()) // _HOUR + 3) * _HOUR


def _rsa_sha1(key_file: Path) -> Callable[[bytes], bytes]:
    """Returns a function that signs as CloudFront wants it: RSA over SHA-1, nothing newer."""
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except ValueError:
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise _wrong_key(key_file, "an RSA private key as PEM", "cloudfront")
    return lambda text: key.sign(text, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303


def _wrong_key(key_file: Path, expected: str, signer: str) -> SystemExit:
    return SystemExit(
        f"PHOTOMESH_CDN_KEY_FILE: {key_file} must hold {expected}, which the signer {signer} needs."
    )
