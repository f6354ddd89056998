"""Calls services of the mesh directly, with the identity of an allowed caller."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status.rpc_status import from_call

from deploy.local.stack import Stack
from services.chassis.context import USER_ID
from services.chassis.rpc import client
from tests.eventually import PATIENCE_SECONDS


def channel_to(
    stack: Stack, service: str, *, identity: str, port: int | None = None
) -> grpc.aio.Channel:
    """Returns a channel to a service of the stack; `port`: that of a `Line` to it."""
    address = f"127.0.0.1:{port or stack.ports.grpc[service]}"
    return client.channel(service, address, stack.layout.pki / identity)


def pages_of(stack: Stack, *, identity: str = "gateway") -> httpx.AsyncClient:
    """Returns a client of the feed pages that feed itself serves over REST."""
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{stack.ports.rest['feed']}",
        verify=client_context(stack.layout.pki / identity),
        timeout=PATIENCE_SECONDS,
    )


def client_context(folder: Path) -> ssl.SSLContext:
    """Returns the TLS context with which an HTTP client proves an identity."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    # Certificates name hosts, but tests connect to addresses.
    context.check_hostname = False
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def as_user(user_id: int) -> tuple[tuple[str, str], ...]:
    """Returns the metadata with which the gateway names the signed-in user."""
    return ((USER_ID, str(user_id)),)


@dataclass(frozen=True)
class Refusal:
    """The code, reason and fields of an error."""

    code: grpc.StatusCode
    reason: str
    # The names of the invalid fields.
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refusal":
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in from_call(error).details:
            detail.Unpack(info) or detail.Unpack(bad)
        fields = tuple(violation.field for violation in bad.field_violations)
        return cls(error.code(), info.reason, fields)
