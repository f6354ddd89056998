"""Certificates, keys, and passwords of one clone, created on its machine and never shared.

Everything is in one folder, readable only by its owner:

    ca/{cert,key}.pem              the certificate authority of this mesh
    <identity>/{ca,cert,key}.pem   one leaf certificate for each process identity
    public/{ca,cert,key}.pem       the gateway's certificate for browsers on localhost
    storage-ca/, storage/          SeaweedFS's own authority and its one certificate
    token/key.pem, jwks.json       the key that signs access tokens (Ed25519); its public half
    cdn.key, page.key              the secrets of media URLs (HS256) and page tokens (hex text)
    credentials.json               passwords of PostgreSQL's roles, keys of the S3 identities
"""

import base64
import datetime as dt
import hashlib
import ipaddress
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.local.private import write
from deploy.processes import DATABASE_ROLES, IDENTITIES

_AUTHORITY_LIFE = dt.timedelta(days=3650)
_LEAF_LIFE = dt.timedelta(days=365)
_RENEW_BEFORE = dt.timedelta(days=30)
# Tolerates clock differences between containers and hosts.
_BACKDATED = dt.timedelta(hours=1)


@dataclass(frozen=True)
class KeyPair:
    """An S3 identity's access key and secret key."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def random(cls, prefix: str) -> Self:
        return cls(f"{prefix}-{secrets.token_hex(8)}", secrets.token_urlsafe(30))


@dataclass(frozen=True)
class Credentials:
    """Passwords and keys of the parts, generated once for each clone."""

    database_superuser: str = field(repr=False)
    # By role.
    database: dict[str, str] = field(repr=False)
    s3_provision: KeyPair
    s3_media: KeyPair
    s3_broker: KeyPair
    s3_edge: KeyPair

    @classmethod
    def random(cls) -> Self:
        return cls(
            database_superuser=secrets.token_urlsafe(24),
            database={role: secrets.token_urlsafe(24) for role in DATABASE_ROLES},
            s3_provision=KeyPair.random("provision"),
            s3_media=KeyPair.random("media"),
            s3_broker=KeyPair.random("broker"),
            s3_edge=KeyPair.random("edge"),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        known = json.loads(path.read_text())
        return cls(
            database_superuser=known["database_superuser"],
            # A role that was added after this clone was created gets its password now.
            database={role: secrets.token_urlsafe(24) for role in DATABASE_ROLES}
            | known["database"],
            s3_provision=KeyPair(**known["s3_provision"]),
            s3_media=KeyPair(**known["s3_media"]),
            s3_broker=KeyPair(**known["s3_broker"]),
            s3_edge=KeyPair(**known["s3_edge"]),
        )


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure(folder: Path, *, now: dt.datetime | None = None) -> Credentials:
    """Creates what is missing, invalid, or within 30 days of expiry, and leaves the rest unchanged.

    Args:
        folder: the folder of all files; created if missing.
        now: the current time, with its zone.
    """
    now = now or dt.datetime.now(dt.UTC)
    authority = _ensure_authority(folder / "ca", now)
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    for identity in IDENTITIES:
        names = [
            x509.DNSName(identity),
            x509.UniformResourceIdentifier(f"spiffe://photomesh/{identity}"),
        ]
        _ensure_leaf(folder / identity, identity, names, both_ways, authority, now)
    # No client usage and no SPIFFE name: it must grant no access inside the mesh.
    localhost = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server_only = [ExtendedKeyUsageOID.SERVER_AUTH]
    _ensure_leaf(folder / "public", "localhost", localhost, server_only, authority, now)

    # A separate authority, so that no other certificate grants access to SeaweedFS's own ports.
    storage = _ensure_authority(folder / "storage-ca", now)
    _ensure_leaf(folder / "storage", "storage", localhost, both_ways, storage, now)

    _ensure_token_key(folder)
    for name in ("cdn.key", "page.key"):
        if not (folder / name).exists():
            write(folder / name, secrets.token_hex(32))
    return _ensure_credentials(folder / "credentials.json")


def _ensure_authority(folder: Path, now: dt.datetime) -> _Authority:
    try:
        authority = _Authority(
            _read_certificate(folder / "cert.pem"), _read_key(folder / "key.pem")
        )
        if _is_valid(authority.certificate, authority.key, now):
            return authority
    except (OSError, ValueError):
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Photomesh local authority")])
    certificate = (
        _builder(name, key, now, _AUTHORITY_LIFE)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / "key.pem", key)
    write(folder / "cert.pem", _pem(certificate))
    return _Authority(certificate, key)


def _ensure_leaf(
    folder: Path,
    common_name: str,
    names: list[x509.GeneralName],
    usages: Iterable[x509.ObjectIdentifier],
    authority: _Authority,
    now: dt.datetime,
) -> None:
    authority_pem = _pem(authority.certificate)
    wanted_names = x509.SubjectAlternativeName(names)
    try:
        certificate = _read_certificate(folder / "cert.pem")
        key = _read_key(folder / "key.pem")
        certificate.verify_directly_issued_by(authority.certificate)
        has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if (
            _is_valid(certificate, key, now)
            and has == wanted_names
            and (folder / "ca.pem").read_text() == authority_pem
        ):
            return
    except (OSError, ValueError, InvalidSignature, x509.ExtensionNotFound):
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, key, now, _LEAF_LIFE)
        .issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(wanted_names, critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    _write_key(folder / "key.pem", key)
    write(folder / "ca.pem", authority_pem)
    write(folder / "cert.pem", _pem(certificate))


def _ensure_token_key(folder: Path) -> None:
    path = folder / "token" / "key.pem"
    if not path.exists():
        _write_key(path, ed25519.Ed25519PrivateKey.generate())
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ValueError(f"{path} is not an Ed25519 key; delete it to create a new one")
    point = _base64url(
        key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )
    # RFC 7638: the required members, in lexical order, without spaces.
    public = {"crv": "Ed25519", "kty": "OKP", "x": point}
    digest = hashlib.sha256(json.dumps(public, separators=(",", ":")).encode()).digest()
    jwk = public | {"alg": "EdDSA", "use": "sig", "kid": _base64url(digest)}
    jwks = json.dumps({"keys": [jwk]})
    if not (folder / "jwks.json").exists() or (folder / "jwks.json").read_text() != jwks:
        write(folder / "jwks.json", jwks)


def _ensure_credentials(path: Path) -> Credentials:
    credentials = Credentials.read(path) if path.exists() else Credentials.random()
    text = json.dumps(asdict(credentials), indent=2)
    if not path.exists() or path.read_text() != text:
        write(path, text)
    return credentials


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_valid(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> bool:
    return (
        certificate.public_key() == key.public_key()
        and certificate.not_valid_before_utc <= now
        and now + _RENEW_BEFORE < certificate.not_valid_after_utc
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _read_certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not an elliptic-curve key")
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write(path, pem.decode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
