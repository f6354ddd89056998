"""The gRPC server of every process: mutual TLS, health, reflection, and the methods of contracts.

Each method is wrapped in the interceptors once, at startup. They parse requests instead of gRPC, so
that the caller is checked before its bytes are parsed, and malformed bytes get the same error
details as any other invalid request.
"""

import asyncio
import functools
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import uvloop
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from services.chassis import context
from services.chassis.config import MeshSettings
from services.chassis.contracts import contracts
from services.chassis.errors import STATUS_DETAILS, MeshError
from services.chassis.rpc import Context, requests, tls
from services.chassis.rpc.interceptors import Call, intercepted
from services.chassis.rpc.methods import Method
from services.chassis.rpc.rest import RestServer
from services.chassis.telemetry import logs

_GRPC_SERVICES = ("grpc.health.v1.Health", reflection.SERVICE_NAME)
"""Services without interceptors. Any identity may call them; they disclose no secrets."""

_MAX_MESSAGE_BYTES = 1 << 20
"""The maximum size of a message that gRPC reads into memory. gRPC rejects larger messages itself; a
request between `requests.MAX_REQUEST_BYTES` and this is rejected with a reason."""

_MAX_CHUNK_BYTES = 8 << 20
"""The same limit for a server with client-streaming methods, which receive files."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_log = logs.logger(__name__)


@dataclass(frozen=True)
class Service:
    """A proto service that a process serves. Its contract names the allowed callers."""

    name: str
    """The full name, such as "photomesh.bookmark.v1.BookmarkService"."""
    servicer: object
    """Implements each method of the contract as a coroutine or, for streamed responses, as an
    asynchronous generator. They return or yield messages, or serialized messages as bytes."""


@dataclass(frozen=True)
class Worker:
    """A background task that runs for the lifetime of the process."""

    name: str
    """The name in grpc.health.v1, such as "consumer"."""
    run: Callable[[Callable[[], None]], Awaitable[None]]
    """Runs until it is cancelled. Calls its argument, from any thread, when the worker is ready;
    then the health service reports the worker as SERVING."""


async def serve(
    settings: MeshSettings,
    services: Sequence[Service],
    workers: Sequence[Worker] = (),
    *,
    describes: Sequence[str] = (),
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
        describes: the names of services that other processes serve, and that reflection also
            describes.
        rest: the REST server, if any.
        before_drain: called before draining, to end calls that do not end on their own.
    """
    names = [*(service.name for service in services), *describes]
    pool = contracts()
    takes_files = any(
        method.client_streaming for name in names for method in pool.FindServiceByName(name).methods
    )
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            (
                "grpc.max_receive_message_length",
                _MAX_CHUNK_BYTES if takes_files else _MAX_MESSAGE_BYTES,
            ),
            # Limits how many bytes of a stream gRPC buffers when its handler reads slowly. By
            # default the buffer grows with the bandwidth, to many MiB per uploading client.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 1 << 20),
            # Detects a dead peer within 30 seconds. The last option's default is a minute.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),
            # Callers ping after 2 seconds of silence (client.py).
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ],
    )
    for service in services:
        register(service, server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([*names, *_GRPC_SERVICES], server, pool)
    if server.add_secure_port(settings.listen, tls.server_credentials(settings.tls_dir)) == 0:
        raise SystemExit(f"Cannot listen on {settings.listen}: is the port in use?")
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
    # Cancels workers after the server stops, so that the relay publishes the events of the last
    # calls.
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        await task
        raise RuntimeError("a worker ended before it was cancelled")


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


def register(service: Service, server: grpc.aio.Server) -> None:
    """Adds a service's methods to a server, each with its interceptors.

    Raises:
        TypeError: no imported contract describes the service, or the servicer lacks a method.
    """
    try:
        contract = descriptor_pool.Default().FindServiceByName(service.name)
    except KeyError:
        raise TypeError(f"No imported contract describes {service.name}.") from None
    handlers = {}
    for method in contract.methods:
        handler = getattr(service.servicer, method.name, None)
        # The generated base class defines every method of the contract without implementing it.
        if handler is None or handler.__module__.endswith("_pb2_grpc"):
            raise TypeError(f"{type(service.servicer).__name__} does not implement {method.name}.")
        handlers[method.name] = _grpc_handler(method, handler)
    server.add_registered_method_handlers(service.name, handlers)


# The keys say whether the requests and the responses are streams.
_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _grpc_handler(
    descriptor: MethodDescriptor, handler: Callable[..., Any]
) -> "grpc.RpcMethodHandler[Any, Any]":
    """Returns the handler that gRPC calls for a method."""
    method = Method.of(descriptor)
    read = functools.partial(
        requests.read_stream if descriptor.client_streaming else requests.read,
        parse=GetMessageClass(descriptor.input_type).FromString,
    )

    def respond(call: Call) -> Any:
        return handler(call.request, call.servicer)

    async def respond_in_stream(call: Call) -> None:
        # Closes the handler as soon as the caller disconnects, which frees its resources.
        async with aclosing(handler(call.request, call.servicer)) as responses:
            async for response in responses:
                await call.servicer.write(response)

    proceed = intercepted(respond_in_stream if descriptor.server_streaming else respond)

    async def handle(received: Any, servicer: Context) -> Any:
        call = Call(
            method,
            metadata=dict(servicer.invocation_metadata() or ()),
            caller=tls.peer_identity(servicer),
            peer=servicer.peer,
            seconds=servicer.time_remaining(),
            received=received,
            read=read,
            servicer=servicer,
        )
        try:
            return await proceed(call)
        except MeshError as error:
            details = error.to_status(context.current().trace_id).SerializeToString()
            await servicer.abort(error.code, error.message, ((STATUS_DETAILS, details),))

    to_handler = _HANDLERS[bool(descriptor.client_streaming), bool(descriptor.server_streaming)]
    # Without a deserializer, gRPC passes the raw bytes.
    return to_handler(handle, response_serializer=_serialized)


def _serialized(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()
