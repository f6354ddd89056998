"""Readiness checks: one cheap request in each part's own protocol."""

import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_TIMEOUT_SECONDS = 1.0


class NotReady(Exception):
    """The part responds, but is not ready yet."""


class Readiness(Protocol):
    """A check that returns if the part is ready and raises otherwise."""

    def check(self) -> None:
        """Checks once, within about a second.

        Raises:
            OSError: nothing responds.
            NotReady: the part responds, but is not ready.
        """


@dataclass(frozen=True)
class Running:
    """No check: the process serves no requests, and is ready while it runs."""

    def check(self) -> None:
        pass


@dataclass(frozen=True)
class PostgresReady:
    """Logs in and runs a query."""

    url: str

    def check(self) -> None:
        # Imported here because commands that only read pid files do not need it.
        import psycopg

        try:
            with psycopg.connect(self.url, connect_timeout=1, autocommit=True) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            raise NotReady(str(error)) from error


@dataclass(frozen=True)
class ValkeyReady:
    """PING. While Valkey loads its snapshot, it responds -LOADING."""

    port: int

    def check(self) -> None:
        with _connect(self.port) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
        if not answer.startswith(b"+PONG"):
            raise NotReady(answer.decode(errors="replace").strip())


@dataclass(frozen=True)
class KafkaReady:
    """Requests metadata without topics, which lists the brokers."""

    port: int

    def check(self) -> None:
        metadata, version, correlation, no_client = 3, 1, 1, -1
        request = struct.pack(">hhihi", metadata, version, correlation, no_client, 0)
        with _connect(self.port) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _receive(connection, 4))
            answer = _receive(connection, size)
        _, brokers = struct.unpack_from(">ii", answer)
        if brokers < 1:
            raise NotReady("its metadata lists no broker")


@dataclass(frozen=True)
class HttpReady:
    """GET returns 200."""

    port: int
    path: str

    def check(self) -> None:
        with _connect(self.port) as connection:
            request = f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            status = connection.makefile("rb").readline().decode(errors="replace").strip()
        if status.split(" ")[1:2] != ["200"]:
            raise NotReady(status or "it closed the connection")


@dataclass(frozen=True)
class GrpcReady:
    """grpc.health.v1 reports SERVING over mTLS, called as the operator."""

    port: int
    # The name that the server's certificate must contain.
    identity: str
    operator: Path
    # Workers in the same process that must be ready too, such as "consumer".
    workers: tuple[str, ...] = ()

    def check(self) -> None:
        # A plain socket detects a refused connection much faster than a channel.
        _connect(self.port).close()

        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        credentials = grpc.ssl_channel_credentials(
            root_certificates=(self.operator / "ca.pem").read_bytes(),
            private_key=(self.operator / "key.pem").read_bytes(),
            certificate_chain=(self.operator / "cert.pem").read_bytes(),
        )
        options = (
            ("grpc.ssl_target_name_override", self.identity),
            ("grpc.enable_http_proxy", 0),
        )
        address = f"127.0.0.1:{self.port}"
        with grpc.secure_channel(address, credentials, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", *self.workers):
                try:
                    # This stub's published types have no methods.
                    answer = stub.Check(  # type: ignore[attr-defined]
                        health_pb2.HealthCheckRequest(service=name), timeout=_TIMEOUT_SECONDS
                    )
                except grpc.RpcError as error:
                    raise NotReady(str(error)) from error
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                    raise NotReady(f"{name or self.identity} is {status}")


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise NotReady("it closed the connection")
        received += piece
    return received
