"""Mutual TLS: every process proves who it is, in both directions."""

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
    """Returns credentials that show `folder`'s certificate and insist on one from the peer."""
    ca, key, cert = _read(folder)
    return grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)


def channel_credentials(folder: Path) -> grpc.ChannelCredentials:
    """Returns credentials that show `folder`'s certificate and trust only the mesh's CA."""
    ca, key, cert = _read(folder)
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_context(folder: Path, *, protocol: str) -> ssl.SSLContext:
    """Returns the same for servers of another protocol, which is named as ALPN does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([protocol])
    return context


def peer_identity(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Returns the identity that the peer's certificate proves, such as "gateway"; "" if none."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return _identity(name.decode() for name in names)


def certified_identity(certificate: Mapping[str, Any]) -> str:
    """Returns the same of a certificate as `ssl.SSLSocket.getpeercert` tells it."""
    return _identity(name for _, name in certificate.get("subjectAltName", ()))


def _identity(names: Iterable[str]) -> str:
    for name in names:
        if name.startswith(_SPIFFE):
            return name.removeprefix(_SPIFFE)
    return ""
