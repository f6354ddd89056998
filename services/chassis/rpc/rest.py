"""An HTTP/1.1 server behind the gateway, for REST methods that respond with prebuilt JSON.

For most methods, the gateway transcodes REST to gRPC and the responses to JSON. For a frequent read
that is assembled from prebuilt JSON, transcoding costs more than the response itself (`make bench`
measures how much). The gateway therefore forwards well-formed requests for such a method here
unchanged, and all others to the equivalent gRPC method, which rejects malformed requests like any
other method.

httptools, which wraps the parser of Node.js, parses HTTP. The rest of the server is our own,
because the methods themselves cost little more than a server does: a request for 40 KB costs 13 us
of CPU here, 21 us in aiohttp 3.14's low-level server, 23 us with its router, and 23 us in uvicorn
0.54 with httptools, which also does not pass the client's identity to the application.
"""

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

import grpc
import httptools
from google.api import annotations_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pool
from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis import context
from services.chassis.config import Address
from services.chassis.errors import FieldInvalid, MeshError
from services.chassis.rpc import requests, tls
from services.chassis.rpc.interceptors import Call, intercepted
from services.chassis.rpc.methods import GATEWAY, Method
from services.chassis.telemetry import logs

HEALTH_PATH = b"/healthz"
"""Returns 200 while the server accepts calls, and 503 while it drains."""

_MAX_HEAD_BYTES = 64 * 1024
"""The maximum size of the request line and headers. The gateway accepts half of this, and adds its
own headers. Request bodies are ignored; the gateway limits how long they may take to arrive."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Detects a dead gateway within a minute."""

_QUERIES = 1_024
"""How many parsed queries are cached. Most requests are for one of a few first pages."""

# The mapping of google.rpc.Code, which Envoy also uses.
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: b"400 Bad Request",
    grpc.StatusCode.FAILED_PRECONDITION: b"400 Bad Request",
    grpc.StatusCode.OUT_OF_RANGE: b"400 Bad Request",
    grpc.StatusCode.UNAUTHENTICATED: b"401 Unauthorized",
    grpc.StatusCode.PERMISSION_DENIED: b"403 Forbidden",
    grpc.StatusCode.NOT_FOUND: b"404 Not Found",
    grpc.StatusCode.ALREADY_EXISTS: b"409 Conflict",
    grpc.StatusCode.ABORTED: b"409 Conflict",
    grpc.StatusCode.RESOURCE_EXHAUSTED: b"429 Too Many Requests",
    grpc.StatusCode.UNAVAILABLE: b"503 Service Unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: b"504 Gateway Timeout",
}
_OK = b"200 OK"
_FAILED = b"500 Internal Server Error"

_log = logs.logger(__name__)
_audit = logs.audit(__name__)


@dataclass(frozen=True)
class RestMethod:
    """A method that the gateway also calls with GET and a query, at the path in its contract."""

    name: str
    """The full name of the method, such as "photomesh.bookmark.v1.BookmarkService.GetBookmark"."""
    respond: Callable[[Any], Awaitable[bytes]]
    """Takes a valid request and returns JSON. Raises the errors of the gRPC method."""


class RestServer:
    """Serves methods to the gateway, over mutual TLS."""

    def __init__(self, listen: Address, tls_dir: Path, methods: Sequence[RestMethod]) -> None:
        self._listen = listen
        self._tls_dir = tls_dir
        endpoints = map(_Endpoint, methods)
        self._endpoints = {endpoint.path: endpoint for endpoint in endpoints}
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Starts listening.

        Raises:
            SystemExit: the address cannot be bound.
        """
        host, _, port = self._listen.rpartition(":")
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self._endpoints, self._connections),
                host,
                int(port),
                ssl=tls.server_context(self._tls_dir, protocol="http/1.1"),
                backlog=1_024,
            )
        except OSError as error:
            raise SystemExit(f"Cannot listen on {self._listen}: is the port in use?") from error

    async def stop(self, grace: float) -> None:
        """Stops accepting calls, and aborts calls that take longer than `grace` seconds."""
        if self._server:
            self._server.close()
        ended = [connection.drain() for connection in self._connections]
        if ended:
            await asyncio.wait(ended, timeout=grace)
        for connection in tuple(self._connections):
            connection.abort()


class _Endpoint:
    """Handles the calls of one method."""

    def __init__(self, method: RestMethod) -> None:
        contract = descriptor_pool.Default().FindMethodByName(method.name)
        self.path: bytes = contract.GetOptions().Extensions[annotations_pb2.http].get.encode()
        self._method = Method.of(contract)
        self._request = GetMessageClass(contract.input_type)
        self._read = functools.lru_cache(_QUERIES)(self._parse)
        self._proceed = intercepted(lambda call: method.respond(call.request))

    async def respond(self, query: bytes, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
        """Returns an HTTP status and a JSON body."""
        call = Call(
            self._method,
            metadata=headers,
            # Checked when the connection was made.
            caller=GATEWAY,
            peer=lambda: GATEWAY,
            seconds=None,
            received=query,
            read=self._read,
        )
        try:
            return _OK, await self._proceed(call)
        except MeshError as error:
            status = error.to_status(context.current().trace_id)
            return _HTTP_STATUS.get(error.code, _FAILED), as_json(status)

    def _parse(self, query: bytes) -> Message:
        """Returns the parsed request. It is cached and shared, so callers must not modify it."""
        try:
            request = ParseDict(dict(parse_qsl(query.decode())), self._request())
        except (ValueError, ParseError) as error:
            raise FieldInvalid({"query": str(error)[:200]}) from None
        requests.validate(request)
        return request


def as_json(message: Message) -> bytes:
    """Returns a message as JSON in the gateway's format."""
    text = MessageToJson(
        message, always_print_fields_with_no_presence=True, indent=None, ensure_ascii=False
    )
    return text.encode()


class _Connection(asyncio.Protocol):
    """One connection from the gateway, which does not pipeline requests."""

    def __init__(
        self, endpoints: Mapping[bytes, _Endpoint], connections: "set[_Connection]"
    ) -> None:
        self._endpoints = endpoints
        self._connections = connections
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._responding: asyncio.Task[None] | None = None
        self._draining = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def drain(self) -> "asyncio.Future[None]":
        """Closes the connection after the current call; the future resolves when it is closed."""
        self._draining = True
        if self._responding is None:
            self._transport.close()
        return self._ended

    def abort(self) -> None:
        """Closes the connection immediately."""
        self._transport.abort()

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is not a subclass of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        caller = tls.certified_identity(transport.get_extra_info("peercert"))
        # Only the gateway may connect, because requests name the signed-in user.
        if caller != GATEWAY:
            _audit.warning("caller.refused", caller=caller, method="REST")
            self.abort()
        self._connections.add(self)
        for option in _KEEPALIVE:
            transport.get_extra_info("socket").setsockopt(*option)

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)
        if self._responding:
            self._responding.cancel()
        self._ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            _log.warning("request.malformed", error=str(error))
            self.abort()

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._responding:
            raise httptools.HttpParserError("a request arrived before the response to the last one")

    def on_url(self, part: bytes) -> None:
        self._count(part)
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value)
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_message_complete(self) -> None:
        path, _, query = self._url.partition(b"?")
        if self._parser.get_method() != b"GET":
            self._send(b"405 Method Not Allowed", b"")
        elif endpoint := self._endpoints.get(path):
            self._responding = asyncio.create_task(self._respond(endpoint, query))
        elif path == HEALTH_PATH:
            self._send(b"503 Service Unavailable" if self._draining else _OK, b"")
        else:
            self._send(b"404 Not Found", b"")

    def _count(self, *parts: bytes) -> None:
        self._head_bytes += sum(map(len, parts))
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the request line and headers are too large")

    async def _respond(self, endpoint: _Endpoint, query: bytes) -> None:
        status, body = await endpoint.respond(query, self._headers)
        self._responding = None
        self._send(status, body)

    def _send(self, status: bytes, body: bytes) -> None:
        closing = self._draining or not self._parser.should_keep_alive()
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n" % (
            status,
            len(body),
            b"connection: close\r\n" if closing else b"",
        )
        self._transport.writelines((head, body))
        if closing:
            self._transport.close()
        self._url = b""
        self._headers = {}
        self._head_bytes = 0
