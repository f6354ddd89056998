"""Reading feeds over REST: warm pages of 20, compared with the minimum for any feed process."""

import asyncio
import random
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx
from google.protobuf.json_format import Parse
from photomesh.account.v1.account_service_pb2 import AccountSummary
from photomesh.feed.v1 import feed_service_pb2 as pb
from photomesh.post.v1.post_service_pb2 import Post, PostState

from deploy.local import proc
from deploy.local.ports import free_ports
from deploy.local.process import ROOT
from deploy.local.stack import Stack
from loadtest import crowds, floor
from services.account.tokens import Tokens
from services.chassis.cache import client as cache
from services.chassis.config import CacheSettings
from services.chassis.rpc import client
from services.chassis.rpc.rest import as_json
from services.domain.cdn import CdnSettings, EdgeSigner
from services.domain.post_cache import CachedPost, Form, PostCache
from services.domain.presented_media import write_media
from services.domain.timelines import CAP, HomeTimelines

_POSTS = 5_000
_AUTHORS = 500
_PAGE = 20
_CONNECTIONS = 32
_WARM_UP_SECONDS = 1.0


@click.command("feed")
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure each rate.")
@click.option("--readers", default=2_000, show_default=True, help="The number of feeds.")
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    help="The number of measurements, of which the median counts.",
)
def feed(seconds: float, readers: int, rounds: int) -> None:
    """Feed pages/s through the gateway, as a ratio to a handler that only returns the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        contracts = Path(folder) / "contracts.binpb"
        contracts.write_bytes(floor.with_floor((ROOT / "gen/photomesh.binpb").read_bytes()))
        with Stack(
            Path(folder),
            ports=free_ports(),
            ephemeral=True,
            environment={"gateway": {"PHOTOMESH_DESCRIPTORS": str(contracts)}},
        ) as stack:
            # Graph and post do not run, so every page that is not warm fails.
            stack.up(["valkey", "feed", "gateway"])
            tokens = _tokens(stack, readers)
            asyncio.run(_fill(stack, range(1, readers + 1)))
            with _floor(stack, _page(stack, tokens[0])) as floor_pid:
                asyncio.run(_compare(stack, floor_pid, tokens, seconds, rounds))


async def _compare(
    stack: Stack, floor_pid: int, tokens: Sequence[str], seconds: float, rounds: int
) -> None:
    await _until_answered(stack)
    pid = stack.pid("feed")
    assert pid is not None  # noqa: S101 -- It is running.
    tls = ssl.create_default_context(cafile=str(stack.layout.pki / "public" / "ca.pem"))
    for protocol, port, context in (
        ("plain", stack.ports.gateway_http, None),
        ("TLS", stack.ports.gateway_https, tls),
    ):
        ours: list[_Rate] = []
        floors: list[_Rate] = []
        # In turns, so that machine load affects both equally.
        for _ in range(rounds):
            ours.append(await _rate(port, context, "/v1/feed", tokens, seconds, pid))
            floors.append(await _rate(port, context, floor.PATH, tokens, seconds, floor_pid))
        rate, least = _Rate.median(ours), _Rate.median(floors)
        click.echo(
            f"feed over REST, {protocol}: {rate}; a handler that only returns the bytes: {least}; "
            f"ratio {rate.per_second / least.per_second:.2f}"
        )


@dataclass(frozen=True)
class _Rate:
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float

    @classmethod
    def median(cls, rates: "Sequence[_Rate]") -> "_Rate":
        return cls(
            median(rate.per_second for rate in rates),
            median(rate.p50_ms for rate in rates),
            median(rate.p99_ms for rate in rates),
            median(rate.cpu_ms for rate in rates),
        )

    def __str__(self) -> str:
        return (
            f"{self.per_second:.0f} pages/s ({self.cpu_ms:.2f} ms of CPU per page); at 70 % of "
            f"that rate, p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"
        )


async def _fill(stack: Stack, reader_ids: Sequence[int]) -> None:
    """Creates warm feeds of 500 posts."""
    rng = random.Random(1)
    newest = crowds.now() << 23
    post_ids = [newest - (n * 60_000 << 23) for n in range(_POSTS)]
    signer = EdgeSigner(
        CdnSettings(
            cdn_url=f"http://127.0.0.1:{stack.ports.edge}",
            cdn_key_file=stack.layout.pki / "cdn.key",
        )
    )
    settings = CacheSettings(valkey_url=stack.valkey_url)
    async with cache.connect(settings) as valkey:
        posts = {
            post_id: CachedPost(1 + n % _AUTHORS, _post(post_id, 1 + n % _AUTHORS, signer))
            for n, post_id in enumerate(post_ids)
        }
        for start in range(0, _POSTS, 500):
            await PostCache(valkey, Form.JSON).put(
                {each: posts[each] for each in post_ids[start : start + 500]}
            )
        timelines = HomeTimelines(valkey)
        for reader_id in reader_ids:
            marker = await timelines.begin_rebuild(reader_id)
            assert marker is not None  # noqa: S101 -- The cache is new.
            mine = sorted(rng.sample(post_ids, CAP), reverse=True)
            await timelines.finish_rebuild(reader_id, marker, mine, whole=False, version=1)


def _page(stack: Stack, token: str) -> bytes:
    """Returns a page as readers receive it."""
    answer = httpx.get(
        f"http://127.0.0.1:{stack.ports.gateway_http}/v1/feed",
        headers={"authorization": f"Bearer {token}"},
    )
    page = Parse(answer.text, pb.GetFeedResponse())
    if len(page.posts) != _PAGE or page.state != pb.FEED_STATE_COMPLETE:
        raise click.ClickException(f"the feed is not warm: {len(page.posts)} posts, {page.state}")
    return answer.content


def _post(post_id: int, author_id: int, signer: EdgeSigner) -> bytes:
    post = Post(
        post_id=post_id,
        author=AccountSummary(account_id=author_id, username=f"author{author_id}"),
        caption="A caption of some sixty characters, as most of them have it. " * 2,
        state=PostState.POST_STATE_PUBLISHED,
    )
    write_media(post.media.add(), crowds.photo(post_id - 1, author_id), signer)
    return as_json(post)


def _tokens(stack: Stack, readers: int) -> list[str]:
    issuer = Tokens(stack.layout.pki / "token" / "key.pem")
    expiry = datetime.now(UTC) + timedelta(hours=1)
    # Some hundred tokens suffice: the gateway validates each again.
    return [issuer.access_token(reader_id, expiry) for reader_id in range(1, min(readers, 500) + 1)]


@contextmanager
def _floor(stack: Stack, answer: bytes) -> Iterator[int]:
    """Runs the handler in place of account, which this benchmark does not use; yields its pid."""
    file = stack.layout.data / "answer"
    file.write_bytes(answer)
    address, tls_dir = stack.ports.address("account"), str(stack.layout.pki / "account")
    command = [sys.executable, "-m", "loadtest.floor", address, tls_dir, str(file)]
    with subprocess.Popen(command) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


async def _until_answered(stack: Stack) -> None:
    address = stack.ports.address("account")
    async with client.channel("account", address, stack.layout.pki / "gateway") as channel:
        call: Any = channel.unary_unary(floor.METHOD)
        await call(b"", wait_for_ready=True, timeout=20)


# -- Load ----------------------------------------------------------------------------------


async def _rate(
    port: int,
    tls: ssl.SSLContext | None,
    path: str,
    tokens: Sequence[str],
    seconds: float,
    pid: int,
) -> _Rate:
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        for token in tokens
    ]
    connections = [await _Connection.open(port, tls) for _ in range(_CONNECTIONS)]
    try:
        await _closed_loop(connections, requests, _WARM_UP_SECONDS)
        used = proc.cpu_seconds(pid)
        count = await _closed_loop(connections, requests, seconds)
        used = proc.cpu_seconds(pid) - used
        latencies = await _open_loop(connections, requests, 0.7 * count / seconds, seconds)
    finally:
        for connection in connections:
            connection.close()
    latencies.sort()
    return _Rate(
        count / seconds,
        1000 * latencies[len(latencies) // 2],
        1000 * latencies[len(latencies) * 99 // 100],
        1000 * used / count,
    )


class _Connection:
    """One persistent connection, with one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext | None) -> "_Connection":
        return cls(
            *await asyncio.open_connection(
                "127.0.0.1",
                port,
                ssl=tls,
                server_hostname="localhost" if tls else None,
                limit=1 << 20,
            )
        )

    async def ask(self, request: bytes) -> None:
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        _, _, rest = head.lower().partition(b"content-length:")
        if not head.startswith(b"HTTP/1.1 200") or not rest:
            raise click.ClickException(f"the gateway returned {head[:200]!r}")
        await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))

    def close(self) -> None:
        self._writer.close()


async def _closed_loop(
    connections: Sequence[_Connection], requests: Sequence[bytes], seconds: float
) -> int:
    """Returns the number of responses on connections that send the next request at once."""
    deadline = time.perf_counter() + seconds

    async def one(number: int) -> int:
        count = 0
        while time.perf_counter() < deadline:
            await connections[number].ask(requests[(number + count * 37) % len(requests)])
            count += 1
        return count

    return sum(await asyncio.gather(*(one(number) for number in range(len(connections)))))


async def _open_loop(
    connections: Sequence[_Connection], requests: Sequence[bytes], rate: float, seconds: float
) -> list[float]:
    """Returns the latencies of requests sent at a steady rate, regardless of the responses.

    Each latency counts from the scheduled time, so that it includes queueing.
    """
    idle: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
    for connection in connections:
        idle.put_nowait(connection)
    latencies: list[float] = []

    async def one(number: int, due: float) -> None:
        connection = await idle.get()
        await connection.ask(requests[number % len(requests)])
        latencies.append(time.perf_counter() - due)
        idle.put_nowait(connection)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(one(number, due))
    return latencies
