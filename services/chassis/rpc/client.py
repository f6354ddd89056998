"""Calls to peers: balanced over their replicas, with mutual TLS, a deadline, and typed errors.

gRPC itself balances and retries. Measurements with grpcio 1.85 and three replicas, one of them
suspended by SIGSTOP, show its limits:

- Without `grpc.http2.ping_timeout_ms`, the connection to a stalled replica stays in use for a
  minute, whatever the keepalive settings are.
- `perAttemptRecvTimeout` needs an experimental option, applies to all calls of a channel, and ends
  slow attempts even if the retry budget is used up: with 8 concurrent callers, 41 calls failed
  before the connection was closed. `call` sends a backup attempt instead.
- A replica that starts to drain ends the calls that arrive at that moment with CANCELLED. So
  CANCELLED is retried, too.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.chassis import context
from services.chassis.config import Addresses
from services.chassis.errors import STATUS_DETAILS, Unavailable
from services.chassis.rpc import tls

# Calls can be retried on another replica, because every internal method is idempotent. The throttle
# is the retry budget: each failure takes one of 100 tokens, each success returns 0.2, and gRPC
# retries only while more than half remain. So a replica can fail 50 calls at once.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A draining replica reports NOT_SERVING, and gets no new calls.
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.2},
    }
)

_PING_MS = 2_000
"""How long a connection is idle before a ping, and how long the reply to the ping may take. The
server's `min_ping_interval_without_data_ms` must be lower."""

_STALL_SECONDS = 2 * _PING_MS / 1_000
"""After this time the connection to a stalled replica is closed, and gRPC retries its calls."""

_backups = asyncio.Semaphore(32)
"""Limits the concurrent backup attempts of the process, so that they add little load when a peer is
slow because it is overloaded. When one replica stalls, attempts go to healthy ones and end soon, so
they stay below the limit."""

_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class PeerRefused(Exception):
    """A peer returned an error other than that it is unavailable.

    Not a MeshError: if a service does not catch it, the service's caller gets INTERNAL.
    """

    def __init__(self, method: str, error: grpc.aio.AioRpcError) -> None:
        """Decodes the error of a call; `method` is its gRPC path."""
        self.code = error.code()
        self.message = error.details() or ""
        self.reason = ""
        """A name of photomesh.common.v1.ErrorReason without its prefix; "": it has none."""
        self.fields: dict[str, str] = {}
        """The invalid fields, each with its problem."""
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        encoded = dict(error.trailing_metadata()).get(STATUS_DETAILS, b"")
        for detail in status_pb2.Status.FromString(encoded).details:
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(bad):
                self.fields = {each.field: each.description for each in bad.field_violations}
        super().__init__(f"{method}: {self.code.name} ({self.reason}): {self.message}")


def channel(peer: str, addresses: Addresses, tls_dir: Path) -> grpc.aio.Channel:
    """Returns a channel to all replicas of a service. Their certificates must name it: `peer`.

    If the address is a name, it is resolved again when a replica disappears.
    """
    return grpc.aio.secure_channel(
        f"ipv4:{addresses}" if "," in addresses else f"dns:///{addresses}",
        tls.channel_credentials(tls_dir),
        options=[
            ("grpc.ssl_target_name_override", peer),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", 16 * 1024 * 1024),
            # Reconnects to a restarted peer within seconds; gRPC's default is up to 2 minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A deployment can replace all replicas within the default of 30 seconds.
            ("grpc.dns_min_time_between_resolutions_ms", 2_000),
            ("grpc.keepalive_time_ms", _PING_MS),
            ("grpc.keepalive_timeout_ms", _PING_MS),
            ("grpc.http2.ping_timeout_ms", _PING_MS),
            # By default, an idle connection sends two pings and then one a minute.
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )


async def call(
    method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
    *,
    within: float = 2.0,
) -> Response:
    """Calls a peer's unary method, which must be idempotent, for the current call.

    The timeout is `within` seconds, or the time until the current call's deadline if that is less.

    If there is no response after half of the timeout, the replica may have stalled: a second
    attempt goes to the next replica, and the first response is returned. Calls with a timeout
    longer than `_STALL_SECONDS` have no second attempt: gRPC retries them when the connection is
    closed.

    Raises:
        Unavailable: the peer is unavailable, slow or overloaded.
        PeerRefused: the peer returned any other error.
    """
    seconds = context.current().remaining(within)
    with _Outgoing(method):
        first = method(request, timeout=seconds, metadata=_metadata())
        if seconds > _STALL_SECONDS:
            return await first
        with _Backup(first, method, request, after=seconds / 2) as backup:
            try:
                return await first
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if backup.response is None or (task and task.cancelling()):
                    raise
                return backup.response


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
        PeerRefused: the peer returned any other error.
    """
    seconds = context.current().remaining(within)
    with _Outgoing(method):
        responses = method(request, timeout=seconds, metadata=_metadata())
        try:
            async for response in responses:
                yield response
        finally:
            # grpcio does not cancel a stream that its reader abandons.
            responses.cancel()


def _metadata() -> list[tuple[str, str]]:
    return [(context.TRACEPARENT, context.current().traceparent())]


class _Outgoing:
    """One call to a peer, unary or streaming, with all its attempts.

    Converts the errors of gRPC. Add here whatever else happens at the end of every call.
    """

    __slots__ = ("_method",)

    def __init__(self, method: Any) -> None:
        self._method = method

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, grpc.aio.AioRpcError):
            path: bytes | str = self._method._method
            text = path.decode() if isinstance(path, bytes) else path
            if error.code() in _UNAVAILABLE:
                # For example "Thing" of /photomesh.thing.v1.ThingService/GetThing.
                raise Unavailable(text.split(".")[1].capitalize()) from error
            raise PeerRefused(text, error) from error


class _Backup(Generic[Request, Response]):
    """The second attempt of a call, which starts if the first attempt is slow."""

    __slots__ = ("_first", "_method", "_request", "_seconds", "_task", "_timer", "response")

    def __init__(
        self,
        first: "grpc.aio.UnaryUnaryCall[Request, Response]",
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        after: float,
    ) -> None:
        """Starts the attempt after `after` seconds, with a timeout of the same length."""
        self._first = first
        self._method = method
        self._request = request
        self._seconds = after
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(after, self._start)
        self.response: Response | None = None

    def __enter__(self) -> "_Backup[Request, Response]":
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._task:
            self._task.cancel()

    def _start(self) -> None:
        if not _backups.locked():
            self._task = asyncio.create_task(self._attempt())

    async def _attempt(self) -> None:
        async with _backups:
            with contextlib.suppress(grpc.aio.AioRpcError):
                self.response = await self._method(
                    self._request, timeout=self._seconds, metadata=_metadata()
                )
                self._first.cancel()
