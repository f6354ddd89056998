"""kill -9 of media and of S3 in the middle of streamed uploads, over gRPC and REST.

Acknowledged bytes survive the crash, the client sends the others again, and nothing else remains.
`PHOTOMESH_CRASHES` and `PHOTOMESH_SEED` are as in test_crashes.
"""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import httpx
import psycopg
import pytest
from google.api.httpbody_pb2 import HttpBody
from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from deploy.local.addresses import ORIGINALS_BUCKET
from services.chassis.database.ids import created_at
from tests.eventually import PATIENCE_SECONDS
from tests.mesh.people import ApiError, Person

pytestmark = pytest.mark.prove

MIB = 2**20
ROUNDS = int(os.environ.get("PHOTOMESH_CRASHES", "1"))
SEED = int(os.environ.get("PHOTOMESH_SEED", "1"))
# S3 takes up to 30 s to find its objects after a restart, so only `make prove` kills it.
VICTIMS = ["media", "s3"] if os.environ.get("PHOTOMESH_PROVE") else ["media"]

_PIECE_BYTES = 256 * 1024
_ENDED_WHILE_WRITING = (grpc.StatusCode.INTERNAL, "Internal error from Core")


class Broken(Exception):
    """A stream ended with an error after which a client resumes the upload."""


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("victim", VICTIMS)
async def test_uploads_resume_after_a_crash(mesh, http, victim, number):
    rng = random.Random(f"{SEED} {victim} {number}")
    files = [rng.randbytes(rng.randint(11 * MIB, 24 * MIB)) for _ in range(2)]
    ann, bob = Person(http, patience=PATIENCE_SECONDS), Person(http, patience=PATIENCE_SECONDS)
    await asyncio.gather(ann.sign_up(), bob.sign_up())
    crash = Crash(mesh, victim, after_bytes=rng.randrange(sum(map(len, files))))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.ports.gateway_http}") as channel:
        try:
            ended = await asyncio.gather(
                upload(ann, files[0], by_grpc(MediaServiceStub(channel), crash)),
                upload(bob, files[1], by_rest(crash)),
            )
        finally:
            # Even after a failure, so that the next test finds all processes running.
            await crash.over()

    for author, file, media_id in zip((ann, bob), files, ended, strict=True):
        await asyncio.to_thread(assert_only_this_file_is_stored, mesh, author, file, media_id)


class Crash:
    """Kills a process after `after_bytes` bytes were sent, and restarts it."""

    def __init__(self, mesh, victim: str, *, after_bytes: int) -> None:
        self._mesh = mesh
        self._victim = victim
        self._left = after_bytes
        self._task: asyncio.Task | None = None

    async def pieces(self, file: bytes) -> AsyncIterator[bytes]:
        """Yields a file piece by piece."""
        for at in range(0, len(file), _PIECE_BYTES):
            piece = file[at : at + _PIECE_BYTES]
            self._left -= len(piece)
            if self._left < 0 and self._task is None:
                self._task = asyncio.create_task(asyncio.to_thread(self._crash))
            yield piece

    def _crash(self) -> None:
        self._mesh.kill(self._victim)
        self._mesh.start(self._victim)

    async def over(self) -> None:
        """Waits until the process runs again."""
        assert self._task is not None
        await self._task


Send = Callable[[Person, bytes, int], Awaitable[str]]
"""Sends a file from an offset and returns the media id, or raises Broken."""


async def upload(author: Person, file: bytes, send: Send) -> str:
    """Sends a file and resumes after failures, as a good client does; returns the media id."""

    async def safe() -> int:
        try:
            acknowledged = await author.call("GET", "/v1/media:offset", requestId="one")
        except ApiError as error:
            if error.reason != "UPLOAD_UNKNOWN":
                raise
            return 0
        return int(acknowledged["offset"])

    at = 0
    while True:
        try:
            return await send(author, file, at)
        except Broken:
            acknowledged = await safe()
            assert acknowledged >= at
            at = acknowledged


def by_grpc(stub: MediaServiceStub, crash: Crash) -> Send:
    async def send(author: Person, file: bytes, offset: int) -> str:
        async def messages() -> AsyncIterator[pb.UploadMediaRequest]:
            yield pb.UploadMediaRequest(
                size_bytes=len(file),
                sha256=hashlib.sha256(file).hexdigest(),
                request_id="one",
                offset=offset,
            )
            async for piece in crash.pieces(file[offset:]):
                yield pb.UploadMediaRequest(file=HttpBody(data=piece))

        token = (("authorization", f"Bearer {author.token}"),)
        try:
            answer = await stub.UploadMedia(messages(), metadata=token, timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            # The second is grpc's error for a stream that ended during a write.
            ended = error.code(), error.details()
            if ended[0] is grpc.StatusCode.UNAVAILABLE or ended == _ENDED_WHILE_WRITING:
                raise Broken from error
            raise
        return str(answer.media.media_id)

    return send


def by_rest(crash: Crash) -> Send:
    async def send(author: Person, file: bytes, offset: int) -> str:
        query = {
            "sizeBytes": len(file),
            "sha256": hashlib.sha256(file).hexdigest(),
            "requestId": "one",
            "offset": offset,
        }
        try:
            answer = await author.http.post(
                "/v1/media:upload",
                content=crash.pieces(file[offset:]),
                params=query,
                headers={"authorization": f"Bearer {author.token}"},
                timeout=PATIENCE_SECONDS,
            )
        except httpx.TransportError as error:
            raise Broken from error
        if answer.is_error:
            refused = ApiError(answer)
            if refused.reason == "UNAVAILABLE":
                raise Broken from refused
            raise refused
        return answer.json()["media"]["mediaId"]

    return send


def assert_only_this_file_is_stored(mesh, author: Person, file: bytes, media_id: str) -> None:
    """Asserts that the author has this file once, and nothing else."""
    with psycopg.connect(mesh.database_url("media")) as database:
        media = database.execute(
            "SELECT media_id FROM media WHERE owner_id = %s", [author.account_id]
        ).fetchall()
    assert media == [(int(media_id),)]
    s3 = mesh.s3()
    of_author = {
        "Bucket": ORIGINALS_BUCKET,
        "Prefix": f"{created_at(int(media_id)):%Y/%m/%d}/{author.account_id}/",
    }
    [original] = s3.list_objects_v2(**of_author)["Contents"]
    # If media dies before it learns of an upload that S3 has begun, S3 removes that upload.
    for begun in s3.list_multipart_uploads(**of_author).get("Uploads", []):
        parts = s3.list_parts(Bucket=ORIGINALS_BUCKET, Key=begun["Key"], UploadId=begun["UploadId"])
        assert not parts.get("Parts")
    stored = s3.get_object(Bucket=ORIGINALS_BUCKET, Key=original["Key"])["Body"].read()
    assert stored == file
