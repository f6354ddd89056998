"""Access tokens (Ed25519 JWTs) and refresh tokens (random, stored as hashes)."""

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.account.errors import RefreshTokenInvalid

ISSUER = "photomesh"
AUDIENCE = "photomesh-api"

_IDS = struct.Struct(">qq")
_SECRET_BYTES = 32
_MAC_BYTES = 16


class Tokens:
    """Creates access tokens and refresh tokens, and verifies refresh tokens.

    The gateway verifies access tokens with the public key. A refresh token contains a MAC, so that
    a token that was never issued cannot pass for one that was already used.
    """

    def __init__(self, key_file: Path) -> None:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise SystemExit(f"{key_file} is not an Ed25519 key")
        self._key = key
        self._key_id = key_id(key)
        self._mac_key = hashlib.sha256(
            b"photomesh refresh token" + key.private_bytes_raw()
        ).digest()

    def access_token(self, account_id: int, expire_time: datetime) -> str:
        """Returns a token that authenticates an account until `expire_time`."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(account_id),
            "iat": datetime.now(UTC),
            "exp": expire_time,
        }
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self._key_id})

    def refresh_token(self, token: "RefreshToken") -> str:
        """Returns a refresh token in the form that clients store."""
        raw = _IDS.pack(token.account_id, token.session_id) + token.secret
        return base64.urlsafe_b64encode(raw + self._mac(raw)).decode()

    def open_refresh_token(self, text: str) -> "RefreshToken":
        """Parses a refresh token that was issued; it may be used or expired.

        Raises:
            RefreshTokenInvalid: it was never issued.
        """
        try:
            sealed = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise RefreshTokenInvalid from None
        raw, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
        if len(raw) != _IDS.size + _SECRET_BYTES or not hmac.compare_digest(mac, self._mac(raw)):
            raise RefreshTokenInvalid
        account_id, session_id = _IDS.unpack(raw[: _IDS.size])
        return RefreshToken(account_id, session_id, raw[_IDS.size :])

    def _mac(self, raw: bytes) -> bytes:
        return hmac.digest(self._mac_key, raw, hashlib.sha256)[:_MAC_BYTES]


@dataclass(frozen=True)
class RefreshToken:
    """A parsed refresh token."""

    account_id: int
    session_id: int
    secret: bytes = field(repr=False)
    """32 random bytes. Only their hash is stored."""


def key_id(key: Ed25519PrivateKey) -> str:
    """Returns the id of a key in the JWKS: the JWK thumbprint of RFC 7638."""
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    thumbprint = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
    return base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()


def new_secret() -> bytes:
    """Returns the secret of a new refresh token."""
    return secrets.token_bytes(_SECRET_BYTES)


def hash_secret(secret: bytes) -> bytes:
    """Returns the hash to store. Secrets are random, so one round of SHA-256 is enough."""
    return hashlib.sha256(secret).digest()
