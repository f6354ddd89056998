"""The REST server of a service, over real connections."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from photomesh.feed.v1.feed_service_pb2 import GetFeedRequest

from deploy.local import pki
from deploy.local.ports import free_ports
from services.chassis import context
from services.chassis.errors import BadPageToken, Unavailable
from services.chassis.rpc.rest import RestMethod, RestServer
from tests.callers import client_context
from tests.eventually import PATIENCE_SECONDS, eventually


@pytest.fixture(scope="module")
def identities(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    pki.ensure(folder)
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports().rest["feed"]


class Served:
    """A server with one method, and how to reach it."""

    def __init__(self, port: int, identities: Path, answer: Callable) -> None:
        self.port = port
        self.identities = identities
        self.server = RestServer(
            f"127.0.0.1:{self.port}",
            identities / "feed",
            [RestMethod("photomesh.feed.v1.FeedService.GetFeed", answer)],
        )

    def client(self, identity: str = "gateway", **options) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            verify=client_context(self.identities / identity),
            timeout=PATIENCE_SECONDS,
            headers={"x-photomesh-user-id": "42"},
            **options,
        )

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=client_context(self.identities / "gateway")
        )


@pytest.fixture
def serve(port, identities):
    @asynccontextmanager
    async def serving(answer: Callable) -> AsyncIterator[Served]:
        served = Served(port, identities, answer)
        await served.server.start()
        try:
            yield served
        finally:
            await served.server.stop(0)

    return serving


async def test_a_taken_port_is_reported(serve, identities):
    async with serve(echo) as served:
        other = RestServer(f"127.0.0.1:{served.port}", identities / "feed", [])
        with pytest.raises(SystemExit, match=f"Cannot listen on 127.0.0.1:{served.port}"):
            await other.start()


async def echo(request: GetFeedRequest) -> bytes:
    call = context.current()
    return json.dumps(
        {
            "size": request.page_size,
            "token": request.page_token,
            "user": call.user_id,
            "trace": call.trace_id,
        }
    ).encode()


@pytest.mark.parametrize(
    "query", ["pageSize=7&pageToken=a%3D", "page_token=a=&page_size=7", "pageSize=7&pageToken=a=&"]
)
async def test_a_query_becomes_a_request_by_either_name(serve, query):
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"Traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with serve(echo) as served, served.client() as client:
        answer = await client.get(f"/v1/feed?{query}", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"size": 7, "token": "a=", "user": 42, "trace": trace}


async def test_one_connection_serves_many_independent_requests(serve):
    async with serve(echo) as served, served.client() as client:
        for user in range(1, 30):
            headers = {"X-Photomesh-User-Id": str(user)}
            echoed = (await client.get(f"/v1/feed?pageSize={user}", headers=headers)).json()
            assert (echoed["size"], echoed["user"]) == (user, user)
        assert len(client._transport._pool.connections) == 1


@pytest.mark.parametrize("identity", ["post", "operator"])
async def test_only_the_gateway_may_call(serve, identity):
    async with serve(echo) as served, served.client(identity) as client:
        with pytest.raises(httpx.TransportError):
            await client.get("/v1/feed")


async def test_a_call_without_a_user_is_refused_before_the_query_is_parsed(serve):
    async with serve(echo) as served, served.client() as client:
        answer = await client.get("/v1/feed?colour=red", headers={"x-photomesh-user-id": ""})
    assert answer.status_code == 401
    assert answer.json()["details"][0]["reason"] == "TOKEN_MISSING"


async def test_a_client_without_a_certificate_is_refused(serve, identities):
    tls = ssl.create_default_context(cafile=str(identities / "gateway/ca.pem"))
    tls.check_hostname = False
    async with serve(echo) as served:
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(verify=tls, timeout=PATIENCE_SECONDS) as client:
                await client.get(f"https://127.0.0.1:{served.port}/v1/feed")


async def refused(request: GetFeedRequest) -> bytes:
    match request.page_token:
        case "bad":
            raise BadPageToken
        case "unavailable":
            raise Unavailable("The cache")
        case "slow":
            # Until the deadline cancels it.
            await asyncio.Event().wait()
    raise RuntimeError("something secret")


@pytest.mark.parametrize(
    ("query", "status", "code", "reason"),
    [
        ("pageToken=bad", 400, 3, "BAD_PAGE_TOKEN"),
        ("pageToken=unavailable", 503, 14, "UNAVAILABLE"),
        ("pageToken=slow", 504, 4, "DEADLINE_EXCEEDED"),
        ("pageToken=secret", 500, 13, "INTERNAL"),
        ("pageSize=101", 400, 3, "FIELD_INVALID"),
        ("pageSize=many", 400, 3, "FIELD_INVALID"),
        ("colour=red", 400, 3, "FIELD_INVALID"),
        (f"pageToken={quote('é' * 300)}", 400, 3, "FIELD_INVALID"),
    ],
)
async def test_errors_have_the_format_of_the_gateway(serve, query, status, code, reason):
    # Other cases get a long deadline, because the machine may be busy.
    milliseconds = "100" if reason == "DEADLINE_EXCEEDED" else "100000"
    async with serve(refused) as served, served.client() as client:
        answer = await client.get(
            f"/v1/feed?{query}", headers={"x-envoy-expected-rq-timeout-ms": milliseconds}
        )
        assert answer.status_code == status
        error = answer.json()
        assert error["code"] == code
        assert error["details"][0] == {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": "photomesh",
            "metadata": {"traceId": error["details"][0]["metadata"]["traceId"]},
        }
        assert "secret" not in answer.text
        # The connection stays open.
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [("GET", "/v1/feeds", 404), ("GET", "/", 404), ("POST", "/v1/feed", 405)],
)
async def test_unknown_paths_and_verbs_are_refused(serve, verb, path, status):
    async with serve(echo) as served, served.client() as client:
        assert (await client.request(verb, path, content=b"{}")).status_code == status


async def test_a_body_is_ignored(serve):
    # A client's body must not close the connection, which the gateway would count as a failure.
    async with serve(echo) as served, served.client() as client:
        for _ in range(2):
            answer = await client.request("GET", "/v1/feed?pageSize=7", content=b"a" * 2_000_000)
            assert answer.json()["size"] == 7
        assert len(client._transport._pool.connections) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\x04\x05\x06\x07",
        b"GET /v1/feed HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/feed HTTP/1.1\r\nx: " + b"a" * 2_000_000 + b"\r\n\r\n",
        b"GET /v1/feed HTTP/1.1\r\n" + b"x: a\r\n" * 100_000,
        # A pipelined request.
        b"GET /v1/feed HTTP/1.1\r\n\r\nGET /v1/feed HTTP/1.1\r\n\r\n",
    ],
)
async def test_malformed_requests_close_the_connection(serve, sent):
    async with serve(refused) as served:
        reader, writer = await served.raw()
        writer.write(sent)
        try:
            answer = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        except ConnectionError:
            answer = b""
        assert answer == b""
        writer.close()


async def test_a_disconnect_cancels_the_call(serve):
    called, ended = asyncio.Event(), asyncio.Event()

    async def patient(_: GetFeedRequest) -> bytes:
        called.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with serve(patient) as served, served.client() as client:
        call = asyncio.create_task(client.get("/v1/feed"))
        await asyncio.wait_for(called.wait(), PATIENCE_SECONDS)
        call.cancel()
        await asyncio.wait_for(ended.wait(), PATIENCE_SECONDS)


async def test_a_stopping_server_completes_its_calls(serve):
    called, may_answer = asyncio.Event(), asyncio.Event()

    async def patient(_: GetFeedRequest) -> bytes:
        called.set()
        await may_answer.wait()
        return b"{}"

    async with serve(patient) as served, served.client() as busy, served.client() as idle:
        assert (await idle.get("/healthz")).status_code == 200
        call = asyncio.create_task(busy.get("/v1/feed"))
        await called.wait()
        stopping = asyncio.create_task(served.server.stop(PATIENCE_SECONDS))

        async def is_closed() -> bool:
            try:
                await idle.get("/healthz")
            except httpx.TransportError:
                return True
            return False

        await eventually(is_closed)
        assert not stopping.done()
        may_answer.set()
        answer = await call
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        await asyncio.wait_for(stopping, PATIENCE_SECONDS)


async def test_a_stopping_server_does_not_wait_forever(serve):
    called = asyncio.Event()

    async def never(_: GetFeedRequest) -> bytes:
        called.set()
        await asyncio.Event().wait()
        return b""

    async with serve(never) as served, served.client() as client:
        call = asyncio.create_task(client.get("/v1/feed"))
        await called.wait()
        await served.server.stop(0.1)
        with pytest.raises(httpx.TransportError):
            await call
