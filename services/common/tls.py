"""Mutual TLS: every process proves who it is, in both directions."""

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


def peer_identity(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Returns the identity that the peer's certificate proves, such as "gateway"; "" if none."""
    for name in context.auth_context().get("x509_subject_alternative_name", ()):
        text = name.decode()
        if text.startswith(_SPIFFE):
            return text.removeprefix(_SPIFFE)
    return ""
