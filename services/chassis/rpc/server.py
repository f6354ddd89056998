"""The gRPC server of every process: mutual TLS, health, reflection, and one interceptor.

For every method, the interceptor identifies the caller, rejects callers that the contract does not
name, sets the user and the deadline, parses and validates the request, and encodes errors, in this
order. The interceptor, not gRPC, parses requests, so that the caller is checked before its bytes
are parsed and malformed bytes return the same error details as any other invalid request.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import uvloop
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from services.chassis import context
from services.chassis.config import MeshSettings
from services.chassis.contracts import contracts
from services.chassis.errors import CallerNotAllowed
from services.chassis.rpc import calls, tls
from services.chassis.rpc.callers import OPERATOR, callers_of
from services.chassis.rpc.rest import RestServer
from services.chassis.telemetry import logs, redaction

_UNGUARDED = ("grpc.health.v1.Health", reflection.SERVICE_NAME)
"""Services that any certificate of the mesh may call. They disclose no secrets."""

_MOST_MESSAGE_BYTES = 1 << 20
"""The largest message that gRPC reads into memory. The interceptor rejects a request that is larger
than `calls.MOST_REQUEST_BYTES` with a reason; gRPC itself rejects one that is larger than this."""

_MOST_CHUNK_BYTES = 8 << 20
"""The same limit for a server that has client-streaming methods, which receive files."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_log = logs.logger(__name__)
_audit = logs.audit(__name__)

Servicer = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Service:
    """A proto service that a process serves. Its contract names the allowed callers."""

    name: str
    """The full name, such as "photomesh.account.v1.AccountService"."""
    add_to: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True)
class Worker:
    """A background task that runs for the lifetime of the process."""

    name: str
    """The name in grpc.health.v1, such as "consumer"."""
    run: Callable[[Callable[[], None]], Awaitable[None]]
    """Runs until it is cancelled. It calls its argument, from the event loop or from any thread,
    to report to the health service that the worker is ready."""


async def serve(
    settings: MeshSettings,
    services: Sequence[Service],
    workers: Sequence[Worker] = (),
    *,
    rest: RestServer | None = None,
    before_drain: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    While it drains, health reports NOT_SERVING and calls in progress may finish.

    A worker that ends or fails ends the process, so that the supervisor restarts it.

    Args:
        settings: the address, the certificates and the drain time.
        services: the gRPC services.
        workers: the background tasks.
        rest: a REST server to run next to gRPC.
        before_drain: called before draining, to end calls that do not end by themselves.
    """
    names = [service.name for service in services]
    pool = contracts()
    takes_files = any(
        method.client_streaming for name in names for method in pool.FindServiceByName(name).methods
    )
    server = grpc.aio.server(
        interceptors=[Interceptor()],
        options=[
            ("grpc.so_reuseport", 0),
            (
                "grpc.max_receive_message_length",
                _MOST_CHUNK_BYTES if takes_files else _MOST_MESSAGE_BYTES,
            ),
            # Limits how many bytes of a stream gRPC buffers when its handler reads slowly. By
            # default the buffer grows with the bandwidth, to many MiB per uploading client.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 1 << 20),
            # Detects a dead peer within 30 seconds.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Callers ping after 2 seconds of silence (client.py).
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ],
    )
    for service in services:
        service.add_to(server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, *_UNGUARDED], server, pool)
    if server.add_secure_port(settings.listen, tls.server_credentials(settings.tls_dir)) == 0:
        raise SystemExit(f"Cannot listen on {settings.listen}: is the port taken?")
    await server.start()
    if rest:
        await rest.start()
    for name in ("", *names):
        await health.set(name, _SERVING)
    _log.info("server.started", address=settings.listen)

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    tasks = [asyncio.create_task(_run_worker(worker, health)) for worker in workers]
    for task in tasks:
        task.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    ended = [task for task in tasks if task.done()]

    await health.enter_graceful_shutdown()
    before_drain()
    await asyncio.gather(
        server.stop(settings.drain_seconds), *([rest.stop(settings.drain_seconds)] if rest else [])
    )
    # After the server has stopped, so that the relay still publishes the events of the last calls.
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        await task
        raise RuntimeError("a worker ended by itself")


async def _run_worker(worker: Worker, health: HealthServicer) -> None:
    loop = asyncio.get_running_loop()

    def ready() -> None:
        asyncio.run_coroutine_threadsafe(health.set(worker.name, _SERVING), loop)

    await health.set(worker.name, _NOT_SERVING)
    await worker.run(ready)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
    """Runs a process's `main` on uvloop, then exits; the exit status is 1 if `main` failed."""
    try:
        uvloop.run(main())
    except SystemExit:
        raise
    except BaseException:
        _log.critical("process.failed", exc_info=True)
        sys.exit(1)
    sys.exit(0)


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every method in a guard, except those of health and reflection."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], "Awaitable[grpc.RpcMethodHandler[Any, Any] | None]"
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        service = method[1 : method.rfind("/")]
        if handler is None or service in _UNGUARDED:
            return handler
        metadata = dict(handler_call_details.invocation_metadata)
        guard = _Guard(method, metadata, handler.request_deserializer)
        serializer = handler.response_serializer
        # Without a deserializer, gRPC passes the raw bytes to the guard.
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                guard.unary(handler.unary_unary), response_serializer=serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                guard.stream(handler.unary_stream), response_serializer=serializer
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                guard.upload(handler.stream_unary), response_serializer=serializer
            )
        raise NotImplementedError(f"{method}: bidirectional streams have no guard yet")


class _Guard:
    """Wraps the handler of one call."""

    def __init__(self, method: str, metadata: dict[str, Any], parse: Any) -> None:
        self._method = method
        self._metadata = metadata
        self._parse = parse
        self._caller = ""

    def unary(self, handler: Any) -> Any:
        async def guarded(raw: bytes, servicer: Servicer) -> Any:
            try:
                call = self._admit(servicer)
                request = self._read(raw, servicer)
                async with asyncio.timeout(call.remaining(calls.MOST_SECONDS)):
                    return await handler(request, servicer)
            except Exception as error:
                await self._abort(error, servicer)

        return guarded

    def upload(self, handler: Any) -> Any:
        """Guards a client stream, which has no time limit except its caller's deadline, if any.

        Only the first message is validated: the others carry nothing but bytes.
        """

        async def guarded(raws: AsyncIterator[bytes], servicer: Servicer) -> Any:
            try:
                call = self._admit(servicer)
                async with asyncio.timeout_at(call.deadline):
                    return await handler(self._first_valid(raws), servicer)
            except Exception as error:
                await self._abort(error, servicer)

        return guarded

    async def _first_valid(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        seen = False
        async for raw in raws:
            request = calls.decode(raw, self._parse)
            if not seen:
                calls.validate(request)
                seen = True
            yield request

    def stream(self, handler: Any) -> Any:
        async def guarded(raw: bytes, servicer: Servicer) -> AsyncIterator[Any]:
            try:
                self._admit(servicer)
                request = self._read(raw, servicer)
                # Closes the handler as soon as the caller disconnects, which frees its resources.
                async with aclosing(handler(request, servicer)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                await self._abort(error, servicer)

        return guarded

    def _admit(self, servicer: Servicer) -> context.CallContext:
        """Authorizes the caller and enters the call context."""
        self._caller = caller = tls.peer_identity(servicer)
        call = calls.enter(self._metadata, caller=caller, seconds=servicer.time_remaining())
        if caller not in callers_of(self._method):
            _audit.warning(
                "caller.refused", caller=caller, method=self._method, peer=servicer.peer()
            )
            raise CallerNotAllowed(caller, self._method)
        return call

    def _read(self, raw: bytes, servicer: Servicer) -> Message:
        """Returns the request. Writes an operator's request to the audit log, even if invalid."""
        request = None
        try:
            request = calls.read(raw, self._parse)
            return request
        finally:
            if self._caller == OPERATOR:
                _audit.info(
                    "operator.called",
                    method=self._method,
                    peer=servicer.peer(),
                    request=None if request is None else redaction.printable(request),
                )

    async def _abort(self, error: Exception, servicer: Servicer) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        told = calls.refusal(error, self._method)
        details = told.to_status(context.current().trace_id).SerializeToString()
        await servicer.abort(told.code, told.message, (("grpc-status-details-bin", details),))
