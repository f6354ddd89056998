"""Deletion removes all files of a media item in any state. Only its owner may delete it."""

import asyncio

import pytest
from photomesh.media.v1 import media_service_pb2 as pb
from photomesh.media.v1.events_pb2 import MediaDeleted, MediaUploaded
from psycopg.rows import scalar_row

from services.chassis.errors import Unavailable
from services.media.storage.client import S3
from services.media.storage.keys import key_prefix
from services.media.store import State
from services.media.worker.jobs import sweep_deleted
from tests.eventually import eventually
from tests.media.conftest import declared, media_events, new_user, refusal, send
from tests.pictures import photo

PHOTO = photo(300, 200)
BUCKETS = ("photomesh-originals", "photomesh-media")


@pytest.fixture
def upload(store, s3):
    """Returns a function that makes uploaded and checked media."""

    async def upload():
        media = await store.add(new_user(), declared(PHOTO))
        etag = put(s3, media, "photomesh-originals", "original", PHOTO)
        await store.mark_uploaded(media, etag, size_bytes=len(PHOTO), sha256=None)
        return await store.media(media.media_id)

    return upload


def put(s3, media, bucket, name, content) -> str:
    key = key_prefix(media.media_id, media.owner_id) + name
    return s3.short.client.put_object(Bucket=bucket, Key=key, Body=content)["ETag"]


def stored(s3, media) -> list[str]:
    """Returns the keys of all files of an item, and of its uploads in progress."""
    prefix = key_prefix(media.media_id, media.owner_id)
    keys = []
    for bucket in BUCKETS:
        keys += s3.short.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        keys += s3.short.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get(
            "Uploads", []
        )
    return [each["Key"] for each in keys]


def uploaded(media) -> MediaUploaded:
    return MediaUploaded(media_id=media.media_id, owner_id=media.owner_id)


def deleted(media) -> MediaDeleted:
    return MediaDeleted(media_id=media.media_id, owner_id=media.owner_id)


async def published_deletions(database) -> list[int]:
    """Returns the media of all MediaDeleted events."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute("SELECT payload FROM outbox WHERE topic = 'media_deleted' ORDER BY id")
        return [MediaDeleted.FromString(payload).media_id for payload in await cursor.fetchall()]


async def make_due(database) -> None:
    async with database.connection() as connection:
        await connection.execute("UPDATE media SET erase_time = now() - interval '1 s'")


async def test_all_files_of_a_photo_and_no_others_are_removed(events, upload, store, s3):
    gone, kept = await upload(), await upload()
    for media in (gone, kept):
        await events.on_media_uploaded(uploaded(media))
    before = stored(s3, kept)
    assert len(stored(s3, gone)) == len(before) > 1

    for _ in range(2):
        await store.delete(gone)
        await events.on_media_deleted(deleted(gone))

    assert stored(s3, gone) == []
    assert stored(s3, kept) == before
    media = await store.media(gone.media_id)
    assert media.state is State.DELETED
    assert media.variants == ()
    assert media.width == 0


async def test_concurrent_deletions_publish_one_event(upload, store, database):
    media = await upload()
    await asyncio.gather(*(store.delete(media) for _ in range(8)))
    assert await published_deletions(database) == [media.media_id]


async def test_an_event_about_media_that_are_not_deleted_removes_nothing(events, upload, s3):
    media = await upload()
    await events.on_media_uploaded(uploaded(media))
    before = stored(s3, media)

    await events.on_media_deleted(deleted(media))
    await events.on_media_deleted(MediaDeleted(media_id=1, owner_id=1))

    assert stored(s3, media) == before


async def test_a_photo_deleted_during_processing_stays_deleted(events, upload, store, s3, database):
    media = await upload()
    working = asyncio.create_task(events.on_media_uploaded(uploaded(media)))
    await eventually(lambda: store.media(media.media_id), lambda now: now.state == "PROCESSING")
    await store.delete(media)
    await events.on_media_deleted(deleted(media))
    await working
    await events.on_media_uploaded(uploaded(media))

    assert (await store.media(media.media_id)).state is State.DELETED
    # The sweep removes files that the worker stored late, once no worker can process the photo.
    await make_due(database)
    await sweep_deleted(store, s3)
    assert stored(s3, media) == []


async def test_a_file_uploaded_after_the_deletion_is_removed_too(
    events, upload, store, s3, database
):
    media = await upload()
    await store.delete(media)
    await events.on_media_deleted(deleted(media))
    put(s3, media, "photomesh-originals", "original", PHOTO)
    await sweep_deleted(store, s3)
    assert stored(s3, media), "the form may still be valid"

    await make_due(database)
    await sweep_deleted(store, s3)

    assert stored(s3, media) == []
    async with database.connection() as connection:
        left = await connection.execute("SELECT 1 FROM media WHERE erase_time IS NOT NULL")
        assert await left.fetchone() is None


async def test_a_multipart_upload_is_aborted(events, upload, store, s3):
    media = await upload()
    key = key_prefix(media.media_id, media.owner_id) + "original"
    upload_id = s3.short.client.create_multipart_upload(Bucket=BUCKETS[0], Key=key)["UploadId"]
    s3.short.client.upload_part(
        Bucket=BUCKETS[0], Key=key, UploadId=upload_id, PartNumber=1, Body=b"part"
    )
    await store.delete(media)

    await events.on_media_deleted(deleted(media))

    assert stored(s3, media) == []


async def test_an_unavailable_s3_is_retried(upload, store, s3, renderers, storage_settings):
    media = await upload()
    await store.delete(media)
    # No process listens on port 1.
    unavailable = S3(storage_settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"}))

    with pytest.raises(Unavailable):
        await media_events(store, unavailable, renderers).on_media_deleted(deleted(media))

    assert stored(s3, media)


async def test_only_the_owner_can_delete(uploader, infrastructure, s3):
    infrastructure.up(["media-worker"])
    media = await uploader.upload(PHOTO)
    await eventually(lambda: uploader.get(media.media_id), lambda now: now.variants)

    assert await refusal(uploader.another_user().delete(media.media_id)) == "MEDIA_UNKNOWN"
    assert stored(s3, media)
    for _ in range(2):
        answer = await uploader.delete(media.media_id)
        assert answer.state == pb.MEDIA_STATE_DELETED
        assert not answer.variants

    async def files() -> list[str]:
        return stored(s3, media)

    await eventually(files, lambda files: not files)
    assert (await uploader.get(media.media_id)).state == pb.MEDIA_STATE_DELETED


async def test_an_upload_that_was_only_opened_can_be_deleted(uploader):
    opened = await uploader.create(PHOTO)

    await uploader.delete(opened.media.media_id)

    assert (await send(opened, PHOTO)).is_success, "S3 does not know of the deletion"
    completed = await uploader.complete(opened.media.media_id)
    assert completed.state == pb.MEDIA_STATE_DELETED
