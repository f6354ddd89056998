"""The access logs of the gateway and the edge contain no secrets, and their lines are short."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import httpx
import jwt
import pytest
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub

from deploy.local.ports import free_ports
from deploy.local.stack import Stack

SECRET = "hunter2-correct-horse"

# The maximum length of a log line, in bytes.
MAX_BYTES = 2_048

# Headers that a log may contain.
HEADERS = (
    "x-request-id", "traceparent", "x-envoy-original-method", "x-envoy-original-path",
    "x-forwarded-for", "user-agent", "referer", "x-b3-traceid", "grpc-timeout",
)  # fmt: skip

PROXIES = ("gateway", "edge")


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("proxies"), ports=free_ports(), ephemeral=True) as stack:
        yield stack


@pytest.fixture
def proxies(stack) -> Stack:
    """A gateway and an edge without services or storage behind them."""
    stack.up(PROXIES)
    return stack


def clients(proxies: Stack) -> Iterator[httpx.Client]:
    for port in (proxies.ports.gateway_http, proxies.ports.edge):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client


def written(proxies: Stack) -> list[str]:
    """Stops both processes, so that Envoy flushes its logs, and returns the lines of both."""
    for name in PROXIES:
        proxies.stop(name)
    lines = [line for name in PROXIES for line in proxies.log(name).read_text().splitlines()]
    assert len(lines) > 100
    return lines


def media_token(proxies: Stack) -> str:
    key = bytes.fromhex((proxies.layout.pki / "cdn.key").read_text())
    claims = {"exp": int(time.time()) + 600, "p": "/media/2026/11/25/7/8/"}
    return jwt.encode(claims, key, algorithm="HS256")


def test_no_secret_is_written(proxies, access_tokens):
    access, media = access_tokens.make(seconds=600), media_token(proxies)
    picture = "/media/2026/11/25/7/8/w2048.0123456789abcdef.avif"
    for client in clients(proxies):
        for headers in (
            {},
            {"authorization": f"Bearer {access}"},
            {"authorization": f"Bearer {SECRET}"},
            {"cookie": SECRET},
        ):
            for path in ("/v1/feed", "/v1/posts/1", "/nowhere", picture, "/media/2026/a.jpg"):
                for query in (
                    {"pageToken": SECRET, "token": media, "access_token": access},
                    {"token": SECRET},
                    {"pageSize": SECRET},
                    {SECRET: SECRET},
                ):
                    client.get(path, params=query, headers=headers)
                client.head(path, params={"pageToken": SECRET}, headers=headers)
                client.get(f"{path}?pageToken=%ff{SECRET}", headers=headers)
                # As from a client that escapes the whole URL.
                client.get(f"{path}%3Ftoken={media}", headers=headers)
            for path in ("/v1/accounts", "/v1/sessions", "/v1/sessions:refresh", "/v1/posts"):
                for body in ({"password": SECRET}, {SECRET: SECRET}, {"username": [SECRET]}):
                    client.post(path, json=body, headers=headers)
                for begin in (b"", b'{"username":', b'{"', b"\xff"):
                    client.post(path, content=begin + SECRET.encode(), headers=headers)
        with (
            grpc.insecure_channel(f"127.0.0.1:{client.base_url.port}") as channel,
            suppress(grpc.RpcError),
        ):
            AccountServiceStub(channel).CreateAccount(
                account_pb.CreateAccountRequest(username=SECRET, password=SECRET),
                metadata=(("authorization", f"Bearer {SECRET}"),),
                timeout=20,
            )

    text = "\n".join(written(proxies))

    assert SECRET not in text
    for token in (access, media):
        # A token without its signature is useless.
        assert token.rpartition(".")[2] not in text


def test_lines_are_short_whatever_the_request(proxies, access_tokens):
    bearer = {"authorization": f"Bearer {access_tokens.make()}"}
    for client in clients(proxies):
        for length in (200, 8_000, 30_000):
            long, other = "a" * length, "b" * (31_000 - length)
            for path in (
                f"/{long}",
                f"/v1/posts/{long}",
                f"/v1/posts/{long}:archive",
                f"/v1/feed?pageToken={long}",
                f"/v1/feed?{long}=1",
                f"/media/{long}",
                f"/media/2026/11/25/7/8/{long}?token={media_token(proxies)}",
                f"/photomesh.feed.v1.FeedService/{long}",
            ):
                for header in HEADERS:
                    client.get(path, headers=bearer | {header: other})
                client.request(other.upper(), path, headers=bearer)

    lines = written(proxies)

    assert max(map(len, lines)) <= MAX_BYTES
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(entries) > 100
    assert any(entry.get("path", "").startswith("/v1/posts/aaa") for entry in entries)
