"""The CDN edge: the rate of cache hits, and the number of requests to the origin."""

import asyncio
import json
import secrets
import tempfile
import time
import urllib.request
from pathlib import Path

import click
import jwt

from deploy.local.addresses import MEDIA_BUCKET
from deploy.local.ports import free_ports
from deploy.local.stack import Stack

_BYTES = 200 * 1024
_CONNECTIONS = 16


@click.command("edge")
@click.option("--seconds", default=10.0, show_default=True, help="How long to measure.")
def edge(seconds: float) -> None:
    """Hits/s at 200 KB, compared with S3 itself, and the number of requests to the origin."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        stack.up(["provision-storage", "edge"])
        asyncio.run(_measure(stack, seconds))


async def _measure(stack: Stack, seconds: float) -> None:
    key = f"2026/01/01/1/{secrets.randbelow(1 << 60)}/w1080.jpg"
    s3 = stack.s3()
    await asyncio.to_thread(
        s3.put_object,
        Bucket=MEDIA_BUCKET,
        Key=key,
        Body=secrets.token_bytes(_BYTES),
        ContentType="image/jpeg",
    )
    direct = s3.generate_presigned_url("get_object", Params={"Bucket": MEDIA_BUCKET, "Key": key})
    secret = bytes.fromhex((stack.layout.pki / "cdn.key").read_text().strip())
    prefix = f"/media/{key.rpartition('/')[0]}/"
    token = jwt.encode({"p": prefix, "exp": int(time.time()) + 3600}, secret, algorithm="HS256")

    s3_path = direct.removeprefix(stack.s3_endpoint)
    s3_rate = await _hits_per_second(stack.ports.s3, s3_path, seconds / 2)
    before = _origin_requests(stack)
    hits = await _hits_per_second(stack.ports.edge, f"/media/{key}?token={token}", seconds)
    requests = _origin_requests(stack) - before
    click.echo(
        f"edge: {hits:.0f} hits/s of 200 KB, {hits / s3_rate:.1f} times the rate of S3 itself; "
        f"{requests} requests to the origin for {hits * seconds:.0f} hits in {seconds:.0f} s "
        "(one object, revalidated every 30 s)"
    )


async def _hits_per_second(port: int, path: str, seconds: float) -> float:
    """Returns the complete responses per second over some connections, one request at a time."""
    deadline = time.monotonic() + seconds
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        count = 0
        while time.monotonic() < deadline:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise click.ClickException(f"port {port} returned {head[:60]!r}")
            await reader.readexactly(_BYTES)
            count += 1
        writer.close()
        return count

    return sum(await asyncio.gather(*(one() for _ in range(_CONNECTIONS)))) / seconds


def _origin_requests(stack: Stack) -> int:
    """Returns the number of requests that the edge has sent to S3, from its own statistics."""
    url = f"http://127.0.0.1:{stack.ports.edge_admin}/stats?format=json&filter=upstream_rq_total"
    with urllib.request.urlopen(url, timeout=5) as answer:
        stats = json.load(answer)["stats"]
    return sum(stat["value"] for stat in stats if stat["name"].startswith("cluster."))
