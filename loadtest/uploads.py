"""Streaming uploads over gRPC and REST, compared with boto3 writing the same bytes to S3."""

import asyncio
import http.client
import io
import itertools
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import click
import grpc
from google.api.httpbody_pb2 import HttpBody  # type: ignore[import-untyped]
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from deploy.local.addresses import ORIGINALS_BUCKET
from deploy.local.ports import free_ports
from deploy.local.stack import Stack

_MIB = 1 << 20
_CHUNK = 256 * 1024
_ROUNDS = 5
_PARALLEL = 50
_ACCOUNTS = 10
"""The accounts take turns: one account cannot open that many streams."""


@click.command("uploads")
@click.option("--mebibytes", default=128, show_default=True, help="The size of the file.")
def uploads(mebibytes: int) -> None:
    """Uploads through the gateway, over gRPC and REST, as ratios to boto3 directly to S3."""
    file = b"\xff\xd8\xff" + secrets.token_bytes(mebibytes * _MIB - 3)
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        # Without the worker, which would read every file again during the measurement.
        stack.up(["account", "media", "gateway"])
        stack.down(["media-worker"])
        asyncio.run(_measure(stack, file))


async def _measure(stack: Stack, file: bytes) -> None:
    address = f"127.0.0.1:{stack.ports.gateway_http}"
    async with grpc.aio.insecure_channel(address) as channel:
        accounts = AccountServiceStub(channel)
        signed_up = [
            await accounts.CreateAccount(
                account_pb.CreateAccountRequest(username=f"bench{n}", password=secrets.token_hex(8))
            )
            for n in range(_ACCOUNTS)
        ]
        bearers = itertools.cycle(f"Bearer {each.session.access_token}" for each in signed_up)
        media = MediaServiceStub(channel)

        async def stream(content: bytes) -> None:
            metadata = (("authorization", next(bearers)),)
            await media.UploadMedia(_messages(content), metadata=metadata)

        async def post(content: bytes) -> None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(threads, _post, address, next(bearers), content)

        threads = ThreadPoolExecutor(_PARALLEL)
        protocols = {"gRPC": stream, "REST": post}
        ratios: dict[str, list[float]] = {via: [] for via in protocols}
        size = len(file) / _MIB
        for _ in range(_ROUNDS):
            direct = await asyncio.to_thread(_direct, stack, file)
            rates = [f"boto3 {size / direct:.0f} MiB/s"]
            for via, upload in protocols.items():
                began = time.monotonic()
                await upload(file)
                taken = time.monotonic() - began
                ratios[via].append(direct / taken)
                rates.append(f"{via} {size / taken:.0f} MiB/s, ratio {direct / taken:.2f}")
            click.echo(f"uploads: {size:.0f} MiB: {'; '.join(rates)}")
        for via, measured in ratios.items():
            click.echo(f"uploads: {via}: median ratio to boto3: {median(measured):.2f}")

        part = file[: 32 * _MIB]
        for via, upload in protocols.items():
            before = {name: _resident(stack, name) for name in ("media", "gateway")}
            _reset_peaks(stack, before)
            await asyncio.gather(*(upload(part) for _ in range(_PARALLEL)))
            grown = " and ".join(
                f"{(_resident(stack, name, peak=True) - then) / _PARALLEL / _MIB:.1f} MiB in {name}"
                for name, then in before.items()
            )
            click.echo(f"uploads: {via}: {_PARALLEL} at once: peak growth of {grown} per upload")


async def _messages(content: bytes) -> AsyncIterator[media_pb.UploadMediaRequest]:
    head = media_pb.UploadMediaRequest(size_bytes=len(content))
    for start in range(0, len(content), _CHUNK):
        head.file.CopyFrom(
            HttpBody(content_type="image/jpeg", data=content[start : start + _CHUNK])
        )
        yield head
        head = media_pb.UploadMediaRequest()


def _post(address: str, bearer: str, content: bytes) -> None:
    """Sends a file as the raw body of a REST request, with minimal client overhead."""
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request(
            "POST",
            f"/v1/media:upload?sizeBytes={len(content)}",
            content,
            {"authorization": bearer, "content-type": "image/jpeg"},
        )
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{answer.status} {text!r}")


def _direct(stack: Stack, file: bytes) -> float:
    """Returns the seconds that boto3 takes, with its own parts and threads."""
    s3 = stack.s3()
    began = time.monotonic()
    s3.upload_fileobj(io.BytesIO(file), ORIGINALS_BUCKET, f"bench/{secrets.token_hex(8)}")
    return time.monotonic() - began


def _resident(stack: Stack, name: str, *, peak: bool = False) -> int:
    """Returns a process's resident memory in bytes, current or peak."""
    field = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{stack.pid(name)}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{name} is not running")


def _reset_peaks(stack: Stack, names: Iterable[str]) -> None:
    """Resets the peak of resident memory to its current value; see proc_pid_clear_refs(5)."""
    for name in names:
        Path(f"/proc/{stack.pid(name)}/clear_refs").write_text("5")
