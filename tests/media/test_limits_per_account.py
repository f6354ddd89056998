"""Limits of concurrent uploads and watches per account, so that others always have room."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import grpc
import psycopg
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc_status.rpc_status import from_call
from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from services.chassis import context
from services.chassis.database.ids import shard_of
from services.domain import cdn
from services.domain.cdn import CdnSettings
from services.media.errors import StreamTooSlow
from services.media.limits import LIMITS, UNDECLARED
from services.media.service import MediaService
from services.media.watchers import Watchers
from tests.callers import channel_to
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.line import line_to
from tests.media.conftest import Uploader, refusal
from tests.pictures import photo

WATCHES = 20
"""How many watches one account may have open, according to the contract."""


class IdleStream:
    """An upload that has begun and then stalls."""

    def __init__(self, uploader: Uploader, request_id: str) -> None:
        self._uploader = uploader
        self._request_id = request_id
        self._more: asyncio.Queue[pb.UploadMediaRequest | None] = asyncio.Queue()
        self.call = uploader.stub.UploadMedia(
            self._messages(), metadata=[(context.USER_ID, str(uploader.user_id))]
        )

    async def _messages(self) -> AsyncIterator[pb.UploadMediaRequest]:
        yield pb.UploadMediaRequest(
            size_bytes=2, request_id=self._request_id, file=HttpBody(data=b"a")
        )
        while (message := await self._more.get()) is not None:
            yield message

    async def is_open(self) -> None:
        """Waits until the service receives it."""
        request = pb.GetUploadOffsetRequest(request_id=self._request_id)
        stub, metadata = self._uploader.stub, [(context.USER_ID, str(self._uploader.user_id))]
        await eventually(lambda: stub.GetUploadOffset(request, metadata=metadata))

    def send(self, content: bytes) -> None:
        self._more.put_nowait(pb.UploadMediaRequest(file=HttpBody(data=content)))

    def end(self) -> None:
        self._more.put_nowait(None)


@asynccontextmanager
async def over_a_line(uploader: Uploader, infrastructure):
    """Yields the uploader, connected through a line that can be cut, and the line."""
    async with (
        line_to(infrastructure.ports.grpc["media"]) as line,
        channel_to(infrastructure, "media", identity="gateway", port=line.port) as channel,
    ):
        yield replace(uploader, stub=MediaServiceStub(channel)), line


async def test_idle_streams_per_account_leave_room_for_others(uploader):
    idle = [IdleStream(uploader, f"idle {number}") for number in range(LIMITS.streams)]
    try:

        async def refused() -> list[grpc.aio.AioRpcError]:
            ended = [stream.call for stream in idle if stream.call.done()]
            return [each for each in ended if await each.code() is not grpc.StatusCode.OK]

        too_many = LIMITS.streams - LIMITS.streams_per_account
        calls = await eventually(refused, lambda found: len(found) == too_many)
        for call in calls:
            assert await refusal(call) == "TOO_MANY_STREAMS"
        assert retry_seconds(await error_of(calls[0])) > 0

        other = IdleStream(uploader.another_user(), "other")
        other.send(b"b")
        other.end()
        assert (await other.call).media.state >= pb.MEDIA_STATE_UPLOADED
    finally:
        for stream in idle:
            stream.call.cancel()


async def error_of(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    info = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in from_call(error).details)
    return info.retry_delay.ToTimedelta().total_seconds()


async def complete(stream: IdleStream) -> None:
    stream.send(b"b")
    stream.end()
    await stream.call


async def end_too_early(stream: IdleStream) -> None:
    stream.end()
    assert await refusal(stream.call) == "OBJECT_MISSING"


async def send_too_much(stream: IdleStream) -> None:
    stream.send(b"bcd")
    assert await refusal(stream.call) == "FIELD_INVALID"


async def send_too_much_at_once(stream: IdleStream) -> None:
    stream.send(bytes(LIMITS.chunk_bytes + 1))
    assert await refusal(stream.call) == "FIELD_INVALID"


async def cancel(stream: IdleStream) -> None:
    stream.call.cancel()


@pytest.mark.parametrize(
    "end", [complete, end_too_early, send_too_much, send_too_much_at_once, cancel]
)
async def test_a_stream_frees_its_slot_however_it_ends(uploader, end):
    # If each kept its slot, the last one would find none.
    for number in range(LIMITS.streams_per_account):
        stream = IdleStream(uploader, f"stream {number}")
        await stream.is_open()
        await end(stream)

    await eventually(lambda: completed(uploader, "last"))


async def test_disconnected_clients_free_their_slots(uploader, infrastructure):
    async with over_a_line(uploader, infrastructure) as (vanishing, line):
        idle = [
            IdleStream(vanishing, f"idle {number}") for number in range(LIMITS.streams_per_account)
        ]
        for stream in idle:
            await stream.is_open()
        assert await refusal(IdleStream(uploader, "next").call) == "TOO_MANY_STREAMS"
        line.cut()

        await eventually(lambda: completed(uploader, "next"))
        for stream in idle:
            stream.call.cancel()


async def completed(uploader: Uploader, request_id: str) -> bool:
    await complete(IdleStream(uploader, request_id))
    return True


# --- Slow streams --------------------------------------------------------------------------------


@pytest.fixture
def impatient(
    store, originals, uploads, multipart, streams, tmp_path
) -> Callable[..., MediaService]:
    """Returns a function that makes the service with other limits of a stream."""
    key = tmp_path / "cdn.key"
    key.write_text(secrets.token_hex(32))
    signer = cdn.signer(CdnSettings(cdn_url="http://cdn.test", cdn_key_file=key))

    def make(**limits) -> MediaService:
        changed = replace(LIMITS, **limits)
        return MediaService(
            store, originals, uploads, multipart, streams, Watchers(store), signer, changed
        )

    return make


async def upload_in_process(service: MediaService, user_id: int, messages) -> pb.Media:
    context.enter(context.CallContext(trace_id="0" * 32, user_id=user_id))
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await service.UploadMedia(messages, None)).media


async def test_a_slow_stream_is_ended_and_can_be_resumed(impatient, uploader, store):
    service = impatient(stream_patience=timedelta(seconds=0.5))
    part = bytes(LIMITS.part_bytes)

    async def trickle() -> AsyncIterator[pb.UploadMediaRequest]:
        yield pb.UploadMediaRequest(request_id="slow", file=HttpBody(content_type=UNDECLARED))
        for begin in range(0, len(part), LIMITS.chunk_bytes):
            piece = part[begin : begin + LIMITS.chunk_bytes]
            yield pb.UploadMediaRequest(file=HttpBody(data=piece))
        while True:
            yield pb.UploadMediaRequest(file=HttpBody(data=b"x"))
            await asyncio.sleep(0.02)

    with pytest.raises(StreamTooSlow, match="GetUploadOffset"):
        await upload_in_process(service, uploader.user_id, trickle())

    async def offset() -> int:
        request = pb.GetUploadOffsetRequest(request_id="slow")
        return (await service.GetUploadOffset(request, None)).offset

    assert await eventually(offset) == len(part)
    rest = pb.UploadMediaRequest(
        request_id="slow", offset=len(part), file=HttpBody(content_type=UNDECLARED, data=b"rest")
    )
    media = await upload_in_process(service, uploader.user_id, each(rest))
    assert (await store.media(media.media_id)).size_bytes == len(part) + 4


async def test_a_silent_client_is_disconnected(impatient, uploader):
    service = impatient(stream_patience=timedelta(seconds=0.1), streams=1)

    async def silence() -> AsyncIterator[pb.UploadMediaRequest]:
        await asyncio.Event().wait()
        yield pb.UploadMediaRequest()

    for _ in range(2):
        with pytest.raises(StreamTooSlow):
            await upload_in_process(service, uploader.user_id, silence())


async def test_a_stream_that_waits_for_s3_is_not_slow(impatient, uploader, store, infrastructure):
    patience = timedelta(seconds=1)
    # A byte extends the deadline by very little, so any time counted by mistake ends the stream.
    service = impatient(stream_patience=patience, stream_bytes_per_second=2**40)
    message = pb.UploadMediaRequest(
        file=HttpBody(content_type=UNDECLARED, data=bytes(LIMITS.chunk_bytes))
    )

    with infrastructure.stalled("s3"):
        sending = asyncio.create_task(
            upload_in_process(service, uploader.user_id, each(*[message] * 6))
        )
        # A real sleep, because time is what this tests; a slow machine only makes it longer.
        await asyncio.sleep(1.5 * patience.total_seconds())
        assert not sending.done()
    media = await sending

    assert (await store.media(media.media_id)).size_bytes == 6 * LIMITS.chunk_bytes


async def each(*messages: pb.UploadMediaRequest) -> AsyncIterator[pb.UploadMediaRequest]:
    for message in messages:
        # As from a network, where each message takes some time to arrive.
        await asyncio.sleep(0)
        yield message


# --- Open uploads --------------------------------------------------------------------------------


async def test_the_number_of_open_uploads_per_account_is_limited(uploader, infrastructure):
    def metadata(who: Uploader) -> list[tuple[str, str]]:
        return [(context.USER_ID, str(who.user_id))]

    async def by_stream(who: Uploader) -> pb.Media:
        stream = IdleStream(who, "streamed")
        await complete(stream)
        return (await stream.call).media

    async def by_parts(who: Uploader) -> pb.Media:
        request = pb.CreateMultipartUploadRequest(content_type=UNDECLARED, size_bytes=9)
        return (await who.stub.CreateMultipartUpload(request, metadata=metadata(who))).media

    async def by_form(who: Uploader) -> pb.Media:
        return (await who.create(photo(30, 20))).media

    first = await by_parts(uploader)
    with psycopg.connect(infrastructure.database_url("media"), autocommit=True) as database:
        database.execute(
            """
            INSERT INTO media (shard, media_id, owner_id, size_bytes, content_type)
            SELECT %(shard)s, next_id(%(shard)s), %(owner_id)s, 1, 'image/jpeg'
              FROM generate_series(1, %(count)s)
            """,
            {
                "shard": shard_of(uploader.user_id),
                "owner_id": uploader.user_id,
                "count": LIMITS.open_uploads - 1,
            },
        )

    for upload in (by_form, by_parts, by_stream):
        assert await refusal(upload(uploader)) == "UPLOAD_LIMIT"
        assert (await upload(uploader.another_user())).media_id
    # A repeated request opens no upload. Aborting or completing one makes room for another.
    abort = pb.AbortUploadRequest(media_id=first.media_id)
    await uploader.stub.AbortUpload(abort, metadata=metadata(uploader))
    assert (await by_stream(uploader)).state >= pb.MEDIA_STATE_UPLOADED
    last = await uploader.create(photo(30, 20), request_id="last")
    assert (await uploader.create(photo(30, 20), request_id="last")).media == last.media
    assert await refusal(by_form(uploader)) == "UPLOAD_LIMIT"


# --- Watches -------------------------------------------------------------------------------------


async def watched(uploader: Uploader, media_id: int) -> grpc.aio.UnaryStreamCall:
    """Returns a watch that has received its first message."""
    watch = uploader.watch(media_id)
    await watch.read()
    return watch


async def test_watches_of_one_account_leave_room_for_others(uploader, infrastructure):
    media_id = (await uploader.create(photo(30, 20))).media.media_id
    other = uploader.another_user()
    others = (await other.create(photo(30, 20))).media.media_id
    async with over_a_line(uploader, infrastructure) as (vanishing, line):
        watches = [await watched(vanishing, media_id) for _ in range(WATCHES)]

        assert await refusal(uploader.watch(media_id).read()) == "TOO_MANY_STREAMS"
        (await watched(other, others)).cancel()
        watches[0].cancel()
        again = await eventually(lambda: watched(uploader, media_id))
        assert await refusal(uploader.watch(media_id).read()) == "TOO_MANY_STREAMS"
        again.cancel()

        line.cut()
        fresh = [await eventually(lambda: watched(uploader, media_id)) for _ in range(WATCHES)]
        for watch in fresh:
            watch.cancel()
