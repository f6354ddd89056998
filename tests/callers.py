"""Calling a service of the mesh directly, with the identity of one that may."""

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
    """Returns a channel to a service of the stack; `port`: of a line to it."""
    address = f"127.0.0.1:{port or stack.ports.grpc[service]}"
    return client.channel(service, address, stack.layout.pki / identity)


def pages_of(stack: Stack, *, identity: str = "gateway") -> httpx.AsyncClient:
    """Returns a client of the pages that feed serves as REST."""
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{stack.ports.rest['feed']}",
        verify=client_context(stack.layout.pki / identity),
        timeout=PATIENCE_SECONDS,
    )


def client_context(folder: Path) -> ssl.SSLContext:
    """Returns what a client that is no gRPC client proves an identity with."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    # Certificates are for names, and here everything is an address.
    context.check_hostname = False
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def as_user(user_id: int) -> tuple[tuple[str, str], ...]:
    """Returns the metadata by which the gateway tells who is signed in."""
    return ((USER_ID, str(user_id)),)


@dataclass(frozen=True)
class Refusal:
    """What an error says."""

    code: grpc.StatusCode
    reason: str
    # The fields that something is wrong with.
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refusal":
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in from_call(error).details:
            detail.Unpack(info) or detail.Unpack(bad)
        fields = tuple(violation.field for violation in bad.field_violations)
        return cls(error.code(), info.reason, fields)
