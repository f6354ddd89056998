"""Streaming uploads by gRPC and REST, beside boto3 writing the same bytes straight to S3."""

import asyncio
import http.client
import io
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import boto3
import click
import grpc
from google.api.httpbody_pb2 import HttpBody  # type: ignore[import-untyped]
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from deploy.local.table import ORIGINALS_BUCKET

_MIB = 1 << 20
_CHUNK = 256 * 1024
_ROUNDS = 5
_AT_ONCE = 50


@click.command("uploads")
@click.option("--mebibytes", default=128, show_default=True, help="How large the file is.")
def uploads(mebibytes: int) -> None:
    """Uploads through the gateway, by gRPC and REST, as ratios to boto3 straight to S3."""
    file = b"\xff\xd8\xff" + secrets.token_bytes(mebibytes * _MIB - 3)
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        # Without the worker, which would read every file again meanwhile.
        stack.up(["account", "media", "gateway"])
        stack.down(["media-worker"])
        asyncio.run(_measure(stack, file))


async def _measure(stack: Stack, file: bytes) -> None:
    address = f"127.0.0.1:{stack.ports.gateway_http}"
    async with grpc.aio.insecure_channel(address) as channel:
        signed_up = await AccountServiceStub(channel).CreateAccount(
            account_pb.CreateAccountRequest(username="bench", password=secrets.token_hex(8))
        )
        bearer = f"Bearer {signed_up.session.access_token}"
        media = MediaServiceStub(channel)

        async def upload(content: bytes) -> None:
            await media.UploadMedia(_messages(content), metadata=(("authorization", bearer),))

        ratios: dict[str, list[float]] = {"gRPC": [], "REST": []}
        size = len(file) / _MIB
        for _ in range(_ROUNDS):
            straight = await asyncio.to_thread(_straight, stack, file)
            told = [f"boto3 {size / straight:.0f} MiB/s"]
            for door, sending in (
                ("gRPC", upload(file)),
                ("REST", asyncio.to_thread(_post, address, bearer, file)),
            ):
                began = time.monotonic()
                await sending
                taken = time.monotonic() - began
                ratios[door].append(straight / taken)
                told.append(f"{door} {size / taken:.0f} MiB/s, ratio {straight / taken:.2f}")
            click.echo(f"uploads: {size:.0f} MiB: {'; '.join(told)}")
        for door, measured in ratios.items():
            click.echo(f"uploads: {door}: median ratio to boto3: {median(measured):.2f}")

        before = _resident(stack)
        part = file[: 32 * _MIB]
        await asyncio.gather(*(upload(part) for _ in range(_AT_ONCE)))
        grown = (_resident(stack, peak=True) - before) / _AT_ONCE / _MIB
        click.echo(f"uploads: {_AT_ONCE} at once: at most {grown:.1f} MiB resident for each")


async def _messages(content: bytes) -> AsyncIterator[media_pb.UploadMediaRequest]:
    head = media_pb.UploadMediaRequest(size_bytes=len(content))
    for start in range(0, len(content), _CHUNK):
        head.file.CopyFrom(
            HttpBody(content_type="image/jpeg", data=content[start : start + _CHUNK])
        )
        yield head
        head = media_pb.UploadMediaRequest()


def _post(address: str, bearer: str, content: bytes) -> None:
    """Sends a file as the raw body of a REST request, by a client that costs next to nothing."""
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


def _straight(stack: Stack, file: bytes) -> float:
    """Returns how many seconds boto3 takes, with its own parts and threads."""
    keys = stack.credentials.s3_media
    s3 = boto3.client(
        "s3",
        endpoint_url=stack.s3_endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name="us-east-1",
    )
    began = time.monotonic()
    s3.upload_fileobj(io.BytesIO(file), ORIGINALS_BUCKET, f"bench/{secrets.token_hex(8)}")
    return time.monotonic() - began


def _resident(stack: Stack, *, peak: bool = False) -> int:
    """Returns the media service's resident memory in bytes, now or at its highest."""
    field = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{stack.pid('media')}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the media service does not run")
