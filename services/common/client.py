"""Calling a peer: mutual TLS, a deadline, retries with a budget, and the trace."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from services.common import context, tls
from services.common.config import Address
from services.common.errors import Unavailable

# Every internal method is idempotent, so a peer that is away for a moment is asked again. The
# throttle is the budget: when more than half the calls fail, nothing is retried.
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
    """Returns a channel to the service `peer`, which must prove to be that at `address`."""
    return grpc.aio.secure_channel(
        address,
        tls.channel_credentials(tls_dir),
        options=[
            ("grpc.ssl_target_name_override", peer),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", 16 * 1024 * 1024),
            # A restarted peer is found again at once, not after gRPC's default of minutes.
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
    """Calls a peer's unary method on behalf of the call at hand.

    Takes at most `within` seconds, and never longer than the caller itself waits.

    Raises:
        Unavailable: the peer is away, slow or overloaded.
        grpc.aio.AioRpcError: any other failure of the peer's.
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
    """Yields what a peer's streaming method sends, for at most `within` seconds.

    Raises:
        Unavailable: the peer is away, slow or overloaded; what was yielded before holds.
        grpc.aio.AioRpcError: any other failure of the peer's.
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
        # grpcio never ends a stream that its reader abandons.
        responses.cancel()


def _metadata() -> list[tuple[str, str]]:
    return [(context.TRACEPARENT, context.current().traceparent())]


def _service_of(method: Any) -> str:
    """Returns a peer's name for an error message, such as "post"."""
    path: bytes | str = getattr(method, "_method", "")
    text = path.decode() if isinstance(path, bytes) else path
    return text.split(".")[1].capitalize() if text.count(".") > 1 else "A service"
