"""`python -m loadtest.floor ADDRESS TLS_DIR ANSWER_FILE`: the minimum for a grpcio process.

A grpcio asyncio server whose only method returns the bytes of a file, with the same mutual TLS and
event loop, behind the same gateway, which transcodes it to REST like any method. What the feed
takes beyond this floor is its own cost.
"""

import asyncio
import signal
import sys
from pathlib import Path

import grpc
import uvloop
from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]
from google.api.httpbody_pb2 import HttpBody  # type: ignore[import-untyped]
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from services.chassis.rpc.tls import server_credentials

PATH = "/floor"
"""The REST path at the gateway."""

METHOD = "/photomesh.account.floor.FloorService/GetFloor"
"""The gateway routes it to the process `account`."""


def with_floor(contracts: bytes) -> bytes:
    """Adds the method to a FileDescriptorSet for a gateway's configuration."""
    image = FileDescriptorSet.FromString(contracts)
    service, _, method = METHOD[1:].partition("/")
    package, _, service = service.rpartition(".")
    file = FileDescriptorProto(
        name="floor.proto",
        package=package,
        syntax="proto3",
        dependency=["google/api/annotations.proto", "google/api/httpbody.proto"],
    )
    file.message_type.add(name="GetFloorRequest")
    added = file.service.add(name=service).method.add(
        name=method,
        input_type=f".{package}.GetFloorRequest",
        output_type=".google.api.HttpBody",
    )
    added.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(get=PATH))
    image.file.append(file)
    return image.SerializeToString()


async def main(address: str, tls_dir: Path, answer: bytes) -> None:
    page: bytes = HttpBody(content_type="application/json", data=answer).SerializeToString()

    async def get_floor(request: bytes, context: object) -> bytes:
        return page

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service, _, method = METHOD[1:].partition("/")
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service, {method: grpc.unary_unary_rpc_method_handler(get_floor)}
            ),
        )
    )
    if not server.add_secure_port(address, server_credentials(tls_dir)):
        raise SystemExit(f"cannot listen on {address}")
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    await server.stop(1.0)


if __name__ == "__main__":
    _, address, tls_dir, answer_file = sys.argv
    uvloop.run(main(address, Path(tls_dir), Path(answer_file).read_bytes()))
