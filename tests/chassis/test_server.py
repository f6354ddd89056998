"""A server serves the methods of its contracts to the callers that they name."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from photomesh.common.v1 import options_pb2
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceServicer

from deploy.local import pki
from services.chassis.errors import RequestIdReused
from services.chassis.rpc import tls
from services.chassis.rpc.client import channel
from services.chassis.rpc.server import Service, register
from tests.callers import Refusal, as_user
from tests.eventually import PATIENCE_SECONDS

NAME = "tests.ExampleService"
NOT_ALLOWED = Refusal(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
MALFORMED = b"\xff\xff"


def _contract() -> type[Message]:
    """Adds a contract with a method of each type, of which CountTo needs no token, and one that
    names no callers. Returns the type of all requests and responses: a non-negative number."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/example_service.proto",
        package="tests",
        syntax="proto3",
        dependency=["buf/validate/validate.proto", "photomesh/common/v1/options.proto"],
    )
    number = file.message_type.add(name="Number")
    value = number.field.add(name="value", number=1, type="TYPE_INT64", label="LABEL_OPTIONAL")
    value.options.Extensions[validate_pb2.field].int64.gte = 0
    service = file.service.add(name="ExampleService")
    for name in ("Double", "CountTo", "Add", "AddEach", "WithoutCallers"):
        method = service.method.add(
            name=name,
            input_type=".tests.Number",
            output_type=".tests.Number",
            client_streaming=name.startswith("Add"),
            server_streaming=name in ("CountTo", "AddEach"),
        )
        if name != "WithoutCallers":
            method.options.Extensions[options_pb2.callers].extend(["feed", "gateway"])
        if name == "CountTo":
            method.options.Extensions[options_pb2.without_token] = True
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("tests.Number"))


Number = _contract()


def raw(value: int) -> bytes:
    return Number(value=value).SerializeToString()


class Example:
    """Implements the contract."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def Double(self, request: Message, _: object) -> Message:
        return Number(value=2 * request.value)

    async def CountTo(self, request: Message, _: object) -> AsyncIterator[Message]:
        for value in range(request.value):
            yield Number(value=value)

    async def Add(self, requests: AsyncIterator[Message], _: object) -> bytes:
        return raw(sum([request.value async for request in requests]))

    async def AddEach(
        self, requests: AsyncIterator[Message], _: object
    ) -> AsyncIterator[Message | bytes]:
        value = 0
        try:
            async for request in requests:
                if request.value == 4711:
                    raise RequestIdReused
                value += request.value
                yield raw(value) if value % 2 else Number(value=value)
        finally:
            self.ended.set()

    async def WithoutCallers(self, request: Message, _: object) -> Message:
        raise AssertionError("the call reached the handler")


@pytest.fixture
def example() -> Example:
    return Example()


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    pki.ensure(folder)
    return folder


@pytest.fixture
def peer(example, identities) -> Callable:
    """Serves the contract, and yields a channel to it."""

    @asynccontextmanager
    async def serving(identity: str = "feed") -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server()
        register(Service(NAME, example), server)
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(identities / "post"))
        await server.start()
        try:
            async with channel("post", f"127.0.0.1:{port}", identities / identity) as peer:
                yield peer
        finally:
            await server.stop(0)

    return serving


def call(peer: grpc.aio.Channel, name: str, *requests: bytes) -> grpc.aio.Call:
    """Calls a method of the contract; AddEach without requests: they are written later."""
    path = f"/{NAME}/{name}"
    match name:
        case "CountTo":
            return peer.unary_stream(path)(*requests, timeout=PATIENCE_SECONDS)
        case "Add":
            return peer.stream_unary(path)(iter(requests), timeout=PATIENCE_SECONDS)
        case "AddEach":
            requests = iter(requests) if requests else None
            return peer.stream_stream(path)(requests, timeout=PATIENCE_SECONDS)
    return peer.unary_unary(path)(*requests, timeout=PATIENCE_SECONDS)


async def test_methods_return_messages_or_serialized_messages(peer):
    async with peer() as example:
        assert await call(example, "Double", raw(1)) == raw(2)
        assert [each async for each in call(example, "CountTo", raw(3))] == [raw(0), raw(1), raw(2)]
        assert await call(example, "Add", raw(1), raw(2)) == raw(3)
        assert [each async for each in call(example, "AddEach", raw(1), raw(1), raw(3))] == [
            raw(1),
            raw(2),
            raw(5),
        ]


async def outcome(call: grpc.aio.Call) -> tuple[list[bytes], Refusal]:
    """Returns the responses that come before the error, and the error."""
    responses: list[bytes] = []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await received(call, responses)
    return responses, Refusal.of(refused.value)


async def received(call: grpc.aio.Call, responses: list[bytes]) -> None:
    if isinstance(call, grpc.aio.UnaryUnaryCall | grpc.aio.StreamUnaryCall):
        responses.append(await call)
    else:
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)


METHODS = pytest.mark.parametrize("name", ["Double", "CountTo", "Add", "AddEach"])


@METHODS
@pytest.mark.parametrize(
    ("first", "reason", "fields"),
    [(MALFORMED, "REQUEST_MALFORMED", ()), (raw(-1), "FIELD_INVALID", ("value",))],
)
async def test_an_invalid_first_request_is_refused(peer, name, first, reason, fields):
    async with peer() as example:
        refused = await outcome(call(example, name, first))

    assert refused == ([], Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, fields))


@METHODS
async def test_other_callers_are_refused_before_the_request_is_parsed(peer, name):
    async with peer("account") as example:
        assert await outcome(call(example, name, MALFORMED)) == ([], NOT_ALLOWED)


async def test_methods_that_need_no_token_can_be_called_without_a_user(peer):
    missing = Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    async with peer("gateway") as example:
        assert [each async for each in call(example, "CountTo", raw(1))] == [raw(0)]
        for name in ("Double", "Add", "AddEach"):
            assert await outcome(call(example, name, MALFORMED)) == ([], missing)
        double = example.unary_unary(f"/{NAME}/Double")
        assert await double(raw(1), metadata=as_user(7)) == raw(2)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (MALFORMED, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")),
        (raw(4711), Refusal(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", ("request_id",))),
    ],
)
async def test_an_error_ends_a_stream_that_has_begun(peer, example, second, expected):
    async with peer() as channel:
        stream = call(channel, "AddEach")
        await stream.write(raw(1))
        assert await stream.read() == raw(1)
        await stream.write(second)
        assert await outcome(stream) == ([], expected)

    assert example.ended.is_set()


@pytest.mark.parametrize("name", ["Add", "AddEach"])
async def test_the_gateways_timeout_ends_a_call_whose_client_waits_longer(peer, name):
    async with peer() as channel:
        to_method = channel.stream_unary if name == "Add" else channel.stream_stream
        stream = to_method(f"/{NAME}/{name}")(
            timeout=3600, metadata=(("x-envoy-expected-rq-timeout-ms", "100"),)
        )
        refused = await outcome(stream)

    assert refused == ([], Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"))


async def test_a_handler_ends_when_its_caller_disconnects(peer, example):
    async with peer() as channel:
        stream = call(channel, "AddEach")
        await stream.write(raw(1))
        assert await stream.read() == raw(1)
        stream.cancel()

        await asyncio.wait_for(example.ended.wait(), PATIENCE_SECONDS)


@pytest.mark.parametrize("identity", ["gateway", "operator", "feed"])
async def test_a_method_that_names_no_callers_refuses_all(peer, identity):
    async with peer(identity) as example:
        assert await outcome(call(example, "WithoutCallers", raw(1))) == ([], NOT_ALLOWED)


@pytest.mark.parametrize("path", [f"/{NAME}/Unknown", "/tests.UnknownService/Double"])
async def test_an_unknown_method_is_not_implemented(peer, path):
    async with peer() as example:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await example.unary_unary(path)(b"")

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_service_without_a_contract_is_not_served(example):
    with pytest.raises(TypeError, match=r"No imported contract describes tests\.UnknownService"):
        register(Service("tests.UnknownService", example), grpc.aio.server())


class Partial(DeadLetterServiceServicer):
    """Implements one method of its contract."""

    async def ListDeadLetters(self, request: object, context: object) -> bytes:
        return b""


@pytest.mark.parametrize("servicer", [Partial(), object()])
def test_a_servicer_without_a_method_of_its_contract_is_not_served(servicer):
    name = type(servicer).__name__
    with pytest.raises(TypeError, match=rf"{name} does not implement \w+DeadLetter"):
        register(Service("photomesh.common.v1.DeadLetterService", servicer), grpc.aio.server())
