"""The checks before every handler, tested on all methods of all contracts.

They cover who may call, and how malformed and huge requests are answered, at what cost.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from photomesh.common.v1 import options_pb2

from deploy.processes import IDENTITIES
from tests.callers import Refusal, as_user, channel_to
from tests.mesh.people import ApiError
from tests.requests import Method, all_methods, fields_of, valid_request

MALFORMED = b"\xff\xff"
FLOOD = 100_000

METHODS = all_methods()


@pytest.fixture(params=METHODS, ids=str)
def method(request) -> Method:
    return request.param


@pytest.fixture(scope="module")
async def channels(mesh) -> AsyncIterator[Callable[[str, str], grpc.aio.Channel]]:
    """Opens channels to processes, each with an identity."""
    open_channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    def channel(process: str, identity: str) -> grpc.aio.Channel:
        key = process, identity
        if key not in open_channels:
            open_channels[key] = channel_to(mesh, process, identity=identity)
        return open_channels[key]

    yield channel
    for each in open_channels.values():
        await each.close()


async def answer_to(
    channel: grpc.aio.Channel,
    method: Method,
    raw: bytes,
    metadata: tuple[tuple[str, str], ...] = as_user(1),
) -> Refusal | None:
    """Sends bytes as the only message of a call. Returns its error, or None."""
    kind = method.descriptor.client_streaming, method.descriptor.server_streaming
    try:
        match kind:
            case False, False:
                await channel.unary_unary(method.path)(raw, metadata=metadata, timeout=60)
            case True, False:
                await channel.stream_unary(method.path)(iter([raw]), metadata=metadata, timeout=60)
            case _:
                stream = channel.unary_stream(method.path)(raw, metadata=metadata, timeout=60)
                try:
                    await stream.read()
                    # A stream that is not refused stays open; an error ends it.
                    if not stream.done():
                        return None
                    await stream.code()
                finally:
                    stream.cancel()
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    return None


async def test_a_caller_that_the_contract_does_not_name_is_refused_before_its_request_is_parsed(
    channels, method
):
    may = method.contract.callers

    refusals = {
        identity: await answer_to(channels(method.process, identity), method, MALFORMED)
        for identity in IDENTITIES
    }

    for identity, refusal in refusals.items():
        if identity in may:
            expected = (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
        else:
            expected = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
        assert (refusal.code, refusal.reason) == expected, identity


@pytest.mark.parametrize("method", [m for m in METHODS if m.is_public], ids=str)
async def test_a_method_needs_a_token_unless_its_contract_says_otherwise(channels, method):
    gateway = channels(method.process, "gateway")

    refusals = [await answer_to(gateway, method, MALFORMED, who) for who in ((), as_user(0))]

    needs_none = method.descriptor.GetOptions().Extensions[options_pb2.without_token]
    expected = (
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
        if needs_none
        else Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    )
    assert refusals == [expected, expected]


async def test_a_nul_in_any_text_is_refused_with_the_name_of_the_field(channels, method):
    channel = channels(method.process, min(method.contract.callers))
    texts = [
        path
        for path, _, field in fields_of(valid_request(method.request))
        if field.type == FieldDescriptor.TYPE_STRING
    ]
    for text in texts:
        request = valid_request(method.request)
        [holder] = [holder for path, holder, _ in fields_of(request) if path == text]
        name = text.rpartition(".")[2]
        setattr(holder, name, "\0" + getattr(holder, name))

        refusal = await answer_to(channel, method, request.SerializeToString())

        assert refusal == Refusal(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", (text,))


def takes_many(field: FieldDescriptor) -> bool:
    """Returns whether a field takes a variable number of items or characters."""
    return field.is_repeated or field.type == FieldDescriptor.TYPE_STRING


def floods(method: Method) -> dict[str, bytes]:
    """Returns requests that fill each text and each list of a method: with 100,000 bytes of items,
    and with about as many as a request may have."""
    requests = {}
    for path, _, field in fields_of(valid_request(method.request)):
        for size in (FLOOD, 65_000) if takes_many(field) else ():
            if field.is_repeated and field.message_type is None:
                # Zeros break the rules of most lists.
                bytes_each = 8 if field.type == FieldDescriptor.TYPE_SFIXED64 else 1
                value = [0] * (size // bytes_each)
            elif field.is_repeated:
                value = [GetMessageClass(field.message_type)()] * (size // 2)
            else:
                value = "\0" * size
            request = valid_request(method.request)
            [holder] = [holder for name, holder, _ in fields_of(request) if name == path]
            name = path.rpartition(".")[2]
            if field.is_repeated:
                del getattr(holder, name)[:]
                getattr(holder, name).extend(value)
            else:
                setattr(holder, name, value)
            requests[f"{path} {size}"] = request.SerializeToString()
    return requests


def cpu_ns(pid: int) -> int:
    """Returns the CPU time of all threads of a process, in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if any(map(takes_many, m.descriptor.input_type.fields))],
    ids=str,
)
async def test_refusing_a_huge_request_costs_no_more_than_a_plain_one(mesh, channels, method):
    requests = floods(method)
    channel = channels(method.process, min(method.contract.callers))
    pid = mesh.pid(method.process)

    async def cost(raw: bytes) -> int:
        """Returns the median CPU time of several calls."""
        costs = []
        for _ in range(7):
            before = cpu_ns(pid)
            refusal = await answer_to(channel, method, raw)
            costs.append(cpu_ns(pid) - before)
            assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
        return sorted(costs)[3]

    plain = await cost(MALFORMED)
    # Without the limits they cost up to ten thousand times as much.
    for path, raw in requests.items():
        assert await cost(raw) < 10 * plain, path


async def test_an_error_lists_at_most_twenty_invalid_fields(person):
    someone = await person().sign_up()

    with pytest.raises(ApiError) as refused:
        await someone.call("GET", "/v1/relationships:batchGet", accountIds=["0"] * 100)

    assert refused.value.status == 400
    assert set(refused.value.fields) == {f"account_ids[{index}]" for index in range(20)}


async def test_the_operator_cannot_act_as_a_person_and_is_in_the_audit_log(mesh, channels):
    """Its certificate only opens the admin services, whatever headers it sends."""
    for method in METHODS:
        if method.is_public:
            refusal = await answer_to(
                channels(method.process, "operator"),
                method,
                valid_request(method.request).SerializeToString(),
            )
            assert refusal.code == grpc.StatusCode.PERMISSION_DENIED
    admin = next(method for method in METHODS if method.path.endswith("/InspectFeed"))
    request = admin.request(account_id=4711)
    await answer_to(channels("feed", "operator"), admin, request.SerializeToString())
    await answer_to(channels("feed", "operator"), admin, MALFORMED)

    log = await asyncio.to_thread(mesh.log("feed").read_text)
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    audited = [event for event in events if event.get("audit")]
    called = [event for event in audited if event["event"] == "operator.called"]
    assert [(event["method"], event["request"]) for event in called][-2:] == [
        (admin.path, {"account_id": 4711}),
        (admin.path, None),
    ]
    refused = {
        event["method"]
        for event in audited
        if event["event"] == "caller.refused" and event["caller"] == "operator"
    }
    assert refused == {m.path for m in METHODS if m.is_public and m.process == "feed"}


@pytest.mark.parametrize("body", ["{}", "", "null", '{"private": null}'])
async def test_an_account_does_not_become_public_by_a_body_without_the_field(person, body):
    someone = await person().sign_up()
    await someone.call("PUT", "/v1/accounts/me/privacy", {"private": True})

    answer = await someone.http.put(
        "/v1/accounts/me/privacy",
        content=body,
        headers={"authorization": f"Bearer {someone.token}", "content-type": "application/json"},
    )

    assert answer.status_code == 400, answer.text
    assert (await someone.call("GET", "/v1/accounts/me/privacy"))["private"] is True
    await someone.call("PUT", "/v1/accounts/me/privacy", {"private": False})
    assert (await someone.call("GET", "/v1/accounts/me/privacy"))["private"] is False


async def test_a_malformed_message_in_the_middle_of_an_upload_ends_it_and_logs_one_line(
    mesh, channels
):
    upload = next(method for method in METHODS if method.path.endswith("/UploadMedia"))
    first: Message = upload.request(size_bytes=10 << 20)
    first.file.data = b"\xff\xd8\xff" + bytes(1 << 20)
    log = mesh.log("media")
    before = log.stat().st_size

    call = channels("media", "gateway").stream_unary(upload.path)(
        iter([first.SerializeToString(), MALFORMED]), metadata=as_user(1), timeout=60
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call

    assert Refusal.of(refused.value).reason == "REQUEST_MALFORMED"
    assert log.stat().st_size - before < 100_000
