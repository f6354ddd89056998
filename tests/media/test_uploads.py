"""Opening, sending and completing uploads with the real service, as the gateway calls it."""

import asyncio
from dataclasses import replace
from urllib.parse import urlsplit

import grpc
import jwt
import pytest
from kafka import KafkaConsumer
from photomesh.media.v1 import media_internal_service_pb2 as internal_pb
from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.events_pb2 import MediaUploaded
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub

from services.chassis.database.ids import created_at, shard_of
from services.chassis.events.topics import topic_of
from services.chassis.rpc import client
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.media.conftest import Uploader, new_user, refusal, send
from tests.pictures import photo

PHOTO = photo(300, 200)


@pytest.fixture(scope="session")
async def internal(infrastructure, gateway_channel):
    """MediaInternalService, called with the identity of the post service."""
    address = infrastructure.ports.address("media")
    async with client.channel("media", address, infrastructure.layout.pki / "post") as channel:
        yield MediaInternalServiceStub(channel)


@pytest.fixture(scope="session")
def worker(infrastructure, gateway_channel):
    """Starts the worker."""
    infrastructure.up(["media-worker"])


async def test_an_upload_is_opened_sent_and_completed(uploader):
    opened = await uploader.create(PHOTO)

    media = opened.media
    assert media.state == pb.MEDIA_STATE_PENDING
    assert media.owner_id == uploader.user_id
    assert shard_of(media.media_id) == shard_of(uploader.user_id)
    assert media.create_time.ToDatetime() == created_at(media.media_id).replace(tzinfo=None)
    day = created_at(media.media_id).strftime("%Y/%m/%d")
    assert opened.form_fields["key"] == f"{day}/{uploader.user_id}/{media.media_id}/original"
    life = opened.expire_time.ToMilliseconds() - media.create_time.ToMilliseconds()
    assert 599_000 < life < 600_000 + PATIENCE_SECONDS * 1000
    assert (await uploader.get(media.media_id)) == media

    assert (await send(opened, PHOTO)).is_success
    completed = await uploader.complete(media.media_id)

    assert completed.state in (
        pb.MEDIA_STATE_UPLOADED,
        pb.MEDIA_STATE_PROCESSING,
        pb.MEDIA_STATE_READY,
    )


async def test_s3_refuses_another_size_type_or_key(uploader):
    opened = await uploader.create(PHOTO)

    for refused in (
        await send(opened, PHOTO + b"x"),
        await send(opened, PHOTO[:-1]),
        await send(opened, PHOTO, **{"Content-Type": "text/html"}),
        await send(opened, PHOTO, key=opened.form_fields["key"] + "2"),
        await send(opened, PHOTO, policy=opened.form_fields["policy"][:-8] + "AAAAAAA="),
        await send(replace_fields(opened, drop="x-amz-signature"), PHOTO),
    ):
        assert 400 <= refused.status_code < 500, refused.text
    assert await refusal(uploader.complete(opened.media.media_id)) == "OBJECT_MISSING"


def replace_fields(opened: pb.CreateUploadResponse, *, drop: str) -> pb.CreateUploadResponse:
    changed = pb.CreateUploadResponse()
    changed.CopyFrom(opened)
    del changed.form_fields[drop]
    return changed


async def test_a_file_that_differs_from_its_declaration_is_refused(uploader, s3):
    opened = await uploader.create(PHOTO)
    # S3 would refuse it with the form, so the test stores it directly.
    s3.short.client.put_object(
        Bucket="photomesh-originals",
        Key=opened.form_fields["key"],
        Body=PHOTO + b"x",
        ContentType="image/jpeg",
    )

    assert await refusal(uploader.complete(opened.media.media_id)) == "OBJECT_MISMATCH"
    # The right file can still be uploaded.
    await send(opened, PHOTO)
    assert (await uploader.complete(opened.media.media_id)).state >= pb.MEDIA_STATE_UPLOADED


async def test_repeated_requests_open_one_upload(uploader):
    opened = await asyncio.gather(*(uploader.create(PHOTO, request_id="one") for _ in range(50)))

    [media_id] = {each.media.media_id for each in opened}
    assert (await uploader.create(PHOTO, request_id="two")).media.media_id != media_id
    elsewhere = await uploader.another_user().create(PHOTO, request_id="one")
    assert elsewhere.media.media_id != media_id
    again = await uploader.create(PHOTO), await uploader.create(PHOTO)
    assert again[0].media.media_id != again[1].media.media_id

    assert (await send(opened[-1], PHOTO)).is_success
    await uploader.complete(media_id)
    repeated = await uploader.create(PHOTO, request_id="one")
    assert repeated.media.media_id == media_id
    assert not repeated.reused
    # The file need not be sent again.
    assert not repeated.upload_url


async def test_a_request_id_with_another_file_is_refused(uploader):
    await uploader.create(PHOTO, request_id="one")

    assert await refusal(uploader.create(PHOTO + b"x", request_id="one")) == "REQUEST_ID_REUSED"
    assert (
        await refusal(uploader.create(PHOTO, "image/png", request_id="one")) == "REQUEST_ID_REUSED"
    )


async def test_parallel_completions_announce_the_upload_once(uploader, infrastructure):
    opened = await uploader.create(PHOTO)
    await send(opened, PHOTO)

    await asyncio.gather(*(uploader.complete(opened.media.media_id) for _ in range(50)))

    # Both have one owner, so their events are in one partition, in order.
    last = await uploader.upload(PHOTO)
    events = await asyncio.to_thread(
        announced, infrastructure.kafka_bootstrap, uploader.user_id, last.media_id
    )
    assert events == [opened.media.media_id, last.media_id]


def announced(bootstrap: str, owner_id: int, last_id: int) -> list[int]:
    """Returns the announced media of an owner, up to `last_id`."""
    seen = []
    consumer = KafkaConsumer(
        topic_of(MediaUploaded).name,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=PATIENCE_SECONDS * 1000,
    )
    try:
        for record in consumer:
            if record.key == str(owner_id).encode():
                event = MediaUploaded.FromString(record.value)
                assert event.owner_id == owner_id
                seen.append(event.media_id)
                if event.media_id == last_id:
                    break
    finally:
        consumer.close()
    return seen


async def test_media_of_another_user_are_unknown(uploader):
    opened = await uploader.create(PHOTO)
    await send(opened, PHOTO)
    stranger = uploader.another_user()

    for media_id in (opened.media.media_id, 1):
        assert await refusal(stranger.get(media_id)) == "MEDIA_UNKNOWN"
        assert await refusal(stranger.complete(media_id)) == "MEDIA_UNKNOWN"
    assert (await uploader.get(opened.media.media_id)).state == pb.MEDIA_STATE_PENDING


async def test_uploading_needs_a_signed_in_user(uploader):
    signed_out = Uploader(uploader.stub, user_id=0)

    assert await refusal(signed_out.create(PHOTO)) == "TOKEN_MISSING"
    assert await refusal(signed_out.complete(1)) == "TOKEN_MISSING"
    assert await refusal(signed_out.get(1)) == "TOKEN_MISSING"


@pytest.mark.parametrize(
    ("content_type", "size_bytes", "request_id"),
    [
        ("image/svg+xml", 1, ""),
        ("", 1, ""),
        ("image/jpeg", 0, ""),
        ("image/jpeg", 32 * 2**20 + 1, ""),
        ("image/jpeg", 1, "x" * 65),
    ],
)
async def test_an_invalid_declaration_is_refused(uploader, content_type, size_bytes, request_id):
    request = pb.CreateUploadRequest(
        content_type=content_type, size_bytes=size_bytes, request_id=request_id
    )

    call = uploader.stub.CreateUpload(
        request, metadata=[("x-photomesh-user-id", str(uploader.user_id))]
    )

    assert await refusal(call) == "FIELD_INVALID"


async def test_a_photo_is_processed_and_its_variants_are_signed_together(uploader, worker):
    media = await uploader.upload(photo(800, 400, orientation=6))

    media = await processed(uploader, media.media_id)

    assert media.state == pb.MEDIA_STATE_READY
    assert (media.width, media.height) == (400, 800)
    assert [(each.name, each.content_type, each.width, each.height) for each in media.variants] == [
        (name, content_type, *size)
        for name, size in (
            ("square200", (200, 200)),
            ("w600", (400, 800)),
            ("w1080", (400, 800)),
            ("w2048", (400, 800)),
        )
        for content_type in ("image/jpeg", "image/webp", "image/avif")
    ]
    assert len(media.blurhash) == 28
    assert len(media.dominant_colour) == 7
    assert len(media.perceptual_hash) == 16
    [token] = {urlsplit(each.url).query for each in media.variants}
    claims = jwt.decode(token.removeprefix("token="), options={"verify_signature": False})
    for variant in media.variants:
        assert urlsplit(variant.url).path.startswith(claims["p"])
    # Completing it again changes nothing.
    assert await uploader.complete(media.media_id) == media


async def test_an_invalid_file_fails_and_the_next_is_ready(uploader, worker):
    letter, good = await uploader.upload(b"Dear all, ..."), await uploader.upload(PHOTO)

    failed = await processed(uploader, letter.media_id)
    ready = await processed(uploader, good.media_id)

    assert failed.state == pb.MEDIA_STATE_FAILED
    assert failed.failure == pb.MEDIA_FAILURE_NOT_AN_IMAGE
    assert not failed.variants
    assert ready.state == pb.MEDIA_STATE_READY


async def processed(uploader: Uploader, media_id: int) -> pb.Media:
    return await eventually(
        lambda: uploader.get(media_id),
        lambda media: media.state in (pb.MEDIA_STATE_READY, pb.MEDIA_STATE_FAILED),
    )


async def test_services_get_media_in_the_order_of_the_request(uploader, internal, worker):
    pending = (await uploader.create(PHOTO)).media
    other = replace(uploader, user_id=new_user())
    ready = await processed(other, (await other.upload(PHOTO)).media_id)
    asked = [ready.media_id, 1, pending.media_id, ready.media_id]

    answer = await internal.BatchGetMedia(internal_pb.BatchGetMediaRequest(media_ids=asked))

    first, unknown, second, third = answer.media
    assert unknown == internal_pb.StoredMedia()
    assert first == third
    assert first.owner_id == other.user_id
    assert first.state == pb.MEDIA_STATE_READY
    assert [first.key_prefix + variant.object_name for variant in first.variants] == [
        urlsplit(variant.url).path.removeprefix("/media/") for variant in ready.variants
    ]
    assert second.media_id == pending.media_id
    assert second.state == pb.MEDIA_STATE_PENDING


async def test_only_services_may_read_media_of_any_user(gateway_channel):
    stub = MediaInternalServiceStub(gateway_channel)

    call = stub.BatchGetMedia(internal_pb.BatchGetMediaRequest(media_ids=[1]))

    assert await refusal(call) == "CALLER_NOT_ALLOWED"


async def test_a_batch_is_bounded(internal):
    for media_ids in ([], range(1, 502)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await internal.BatchGetMedia(internal_pb.BatchGetMediaRequest(media_ids=media_ids))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
