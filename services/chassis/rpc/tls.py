"""Mutual TLS: both peers of every connection authenticate with a certificate."""

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc

_SPIFFE = "spiffe://photomesh/"


def _read(folder: Path) -> tuple[bytes, bytes, bytes]:
    return (
        (folder / "ca.pem").read_bytes(),
        (folder / "key.pem").read_bytes(),
        (folder / "cert.pem").read_bytes(),
    )


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """Returns server credentials from `folder` that require a client certificate."""
    ca, key, cert = _read(folder)
    return grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)


def channel_credentials(folder: Path) -> grpc.ChannelCredentials:
    """Returns client credentials from `folder` that trust only the mesh's CA."""
    ca, key, cert = _read(folder)
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_context(folder: Path, *, protocol: str) -> ssl.SSLContext:
    """Returns the same as `server_credentials` for the protocol with this ALPN name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([protocol])
    return context


def peer_identity(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Returns the identity in the peer's certificate, such as "gateway"; "" if it has none."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return _identity(name.decode() for name in names)


def certified_identity(certificate: Mapping[str, Any]) -> str:
    """Returns the identity in a certificate in the format of `ssl.SSLSocket.getpeercert`."""
    return _identity(name for _, name in certificate.get("subjectAltName", ()))


def _identity(names: Iterable[str]) -> str:
    for name in names:
        if name.startswith(_SPIFFE):
            return name.removeprefix(_SPIFFE)
    return ""
