"""Calls to peers, with mutual TLS, a deadline, budgeted retries, and trace propagation."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from services.chassis import context
from services.chassis.config import Address
from services.chassis.errors import Unavailable
from services.chassis.rpc import tls

# Calls to an unavailable peer are retried, because every internal method is idempotent. The
# throttle is the retry budget: each failure takes one of 20 tokens, each success returns 0.2, and
# gRPC retries only while more than 10 remain.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
    }
)

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def channel(peer: str, address: Address, tls_dir: Path) -> grpc.aio.Channel:
    """Returns a channel to `address`, whose certificate must name the service `peer`."""
    return grpc.aio.secure_channel(
        address,
        tls.channel_credentials(tls_dir),
        options=[
            ("grpc.ssl_target_name_override", peer),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", 16 * 1024 * 1024),
            # Reconnects to a restarted peer within seconds; gRPC's default is up to 2 minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ],
    )


async def call(
    method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
    *,
    within: float = 2.0,
) -> Response:
    """Calls a peer's unary method on behalf of the current call.

    The timeout is `within` seconds, or the time until the current call's deadline if that is less.

    Raises:
        Unavailable: the peer is unavailable, slow or overloaded.
        grpc.aio.AioRpcError: the peer returned any other error.
    """
    try:
        response: Response = await method(
            request, timeout=context.current().remaining(within), metadata=_metadata()
        )
        return response
    except grpc.aio.AioRpcError as error:
        if error.code() in _AWAY:
            raise Unavailable(_service_of(method)) from error
        raise


async def stream(
    method: "grpc.aio.UnaryStreamMultiCallable[Request, Response]",
    request: Request,
    *,
    within: float,
) -> AsyncIterator[Response]:
    """Yields the responses of a peer's streaming method for at most `within` seconds.

    Raises:
        Unavailable: the peer is unavailable, slow or overloaded. Responses yielded before the error
            are valid.
        grpc.aio.AioRpcError: the peer returned any other error.
    """
    responses = method(request, timeout=context.current().remaining(within), metadata=_metadata())
    try:
        async for response in responses:
            yield response
    except grpc.aio.AioRpcError as error:
        if error.code() in _AWAY:
            raise Unavailable(_service_of(method)) from error
        raise
    finally:
        # grpcio does not cancel a stream that its reader abandons.
        responses.cancel()


def _metadata() -> list[tuple[str, str]]:
    return [(context.TRACEPARENT, context.current().traceparent())]


def _service_of(method: Any) -> str:
    """Returns a peer's name for an error message, such as "Bookmark"."""
    path: bytes | str = getattr(method, "_method", "")
    text = path.decode() if isinstance(path, bytes) else path
    return text.split(".")[1].capitalize() if text.count(".") > 1 else "A service"
