"""A server serves what its contracts describe, to whom they name."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import Int64Value
from photomesh.common.v1 import options_pb2
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceServicer

from deploy.local import pki
from services.chassis.rpc import tls
from services.chassis.rpc.client import channel
from services.chassis.rpc.server import Service, register
from tests.callers import Refusal

NAME = "tests.ExampleService"
NOT_ALLOWED = Refusal(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")


@pytest.fixture(scope="module", autouse=True)
def contract() -> None:
    """A contract with a method of each type, and one that names no callers."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/example_service.proto",
        package="tests",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto", "photomesh/common/v1/options.proto"],
    )
    service = file.service.add(name="ExampleService")
    for name in ("Double", "CountTo", "Add", "ForNobody"):
        method = service.method.add(
            name=name,
            input_type=".google.protobuf.Int64Value",
            output_type=".google.protobuf.Int64Value",
            client_streaming=name == "Add",
            server_streaming=name == "CountTo",
        )
        if name != "ForNobody":
            method.options.Extensions[options_pb2.callers].append("feed")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


class Example:
    """Implements the contract."""

    async def Double(self, request: Int64Value, context: object) -> Int64Value:
        return Int64Value(value=2 * request.value)

    async def CountTo(self, request: Int64Value, context: object) -> AsyncIterator[Int64Value]:
        for value in range(request.value):
            yield Int64Value(value=value)

    async def Add(self, requests: AsyncIterator[Int64Value], context: object) -> bytes:
        value = sum([request.value async for request in requests])
        return Int64Value(value=value).SerializeToString()

    async def ForNobody(self, request: Int64Value, context: object) -> Int64Value:
        raise AssertionError("the call reached the handler")


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Callable:
    """Serves the contract, and gives a channel to it."""
    folder = tmp_path_factory.mktemp("pki")
    pki.ensure(folder)

    @asynccontextmanager
    async def serving(*, identity: str = "feed") -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server()
        register(Service(NAME, Example()), server)
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(folder / "post"))
        await server.start()
        try:
            async with channel("post", f"127.0.0.1:{port}", folder / identity) as peer:
                yield peer
        finally:
            await server.stop(0)

    return serving


async def test_methods_return_messages_or_serialized_messages(peer):
    one, two = (Int64Value(value=value).SerializeToString() for value in (1, 2))
    async with peer() as example:
        doubled = await example.unary_unary(f"/{NAME}/Double")(one)
        counted = [each async for each in example.unary_stream(f"/{NAME}/CountTo")(two)]
        added = await example.stream_unary(f"/{NAME}/Add")(iter([one, one]))

    assert doubled == added == two
    assert counted == [b"", one]


@pytest.mark.parametrize("identity", ["gateway", "operator", "feed"])
async def test_a_method_that_names_no_callers_is_served_to_nobody(peer, identity):
    async with peer(identity=identity) as example:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await example.unary_unary(f"/{NAME}/ForNobody")(b"")

    assert Refusal.of(refused.value) == NOT_ALLOWED


@pytest.mark.parametrize("path", [f"/{NAME}/Unknown", "/tests.UnknownService/Double"])
async def test_an_unknown_method_is_not_implemented(peer, path):
    async with peer() as example:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await example.unary_unary(path)(b"")

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_service_without_a_contract_is_not_served():
    with pytest.raises(TypeError, match=r"No imported contract describes tests\.UnknownService"):
        register(Service("tests.UnknownService", Example()), grpc.aio.server())


class Partial(DeadLetterServiceServicer):
    """Implements one method of its contract."""

    async def ListDeadLetters(self, request: object, context: object) -> bytes:
        return b""


@pytest.mark.parametrize("servicer", [Partial(), object()])
async def test_a_servicer_that_lacks_a_method_of_its_contract_is_not_served(servicer):
    name = type(servicer).__name__
    with pytest.raises(TypeError, match=rf"{name} does not implement \w+DeadLetter"):
        register(Service("photomesh.common.v1.DeadLetterService", servicer), grpc.aio.server())
