"""How the worker processes uploads, with repeated, concurrent and missing events."""

import asyncio
import io
import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta

import httpx
import pytest
from photomesh.media.v1.events_pb2 import MediaProcessed, MediaUploaded
from photomesh.media.v1.media_service_pb2 import MEDIA_STATE_FAILED, MEDIA_STATE_READY
from PIL import Image
from psycopg.rows import scalar_row

from services.chassis.errors import Unavailable
from services.chassis.events.topics import topic_of
from services.media.pipeline.outputs import STEPS, Failure
from services.media.storage.client import S3
from services.media.storage.originals import Originals
from services.media.storage.variants import Variants
from services.media.store import Media, MediaStore, State
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.media.conftest import declared, media_events, new_user
from tests.pictures import photo

PHOTO = photo(300, 200)


@pytest.fixture
def upload(store: MediaStore, originals: Originals) -> Callable[[bytes], Awaitable[Media]]:
    """Returns a function that makes uploaded and checked media."""

    async def upload(file: bytes) -> Media:
        media = await store.add(new_user(), declared(file))
        await put_original(originals, media, file)
        original = await originals.find(media.key_prefix)
        await store.mark_uploaded(media, original.etag, size_bytes=len(file), sha256=None)
        return media

    return upload


async def put_original(originals: Originals, media: Media, file: bytes) -> None:
    url, fields = originals.form(
        media.key_prefix,
        content_type="image/jpeg",
        size_bytes=len(file),
        sha256=None,
        life=timedelta(minutes=1),
    )
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, verify=False) as phone:
        sent = await phone.post(url, data=fields, files={"file": file})
    assert sent.is_success


def uploaded(media: Media) -> MediaUploaded:
    return MediaUploaded(media_id=media.media_id, owner_id=media.owner_id)


async def outcomes(database) -> list[tuple[int, int]]:
    """Returns the media and the final states of all MediaProcessed events."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=scalar_row)
        await cursor.execute(
            "SELECT payload FROM outbox WHERE topic = %s ORDER BY id",
            (topic_of(MediaProcessed).name,),
        )
        events = [MediaProcessed.FromString(payload) for payload in await cursor.fetchall()]
    return [(event.media_id, event.state) for event in events]


def stored(s3: S3, media: Media) -> dict[str, dict]:
    """Returns the objects of a media item in the media bucket, by name."""
    listed = s3.short.client.list_objects_v2(Bucket="photomesh-media", Prefix=media.key_prefix)
    return {
        each["Key"].removeprefix(media.key_prefix): s3.short.client.get_object(
            Bucket="photomesh-media", Key=each["Key"]
        )
        for each in listed.get("Contents", [])
    }


async def test_a_photo_becomes_ready_with_every_variant_stored(events, upload, store, s3, database):
    media = await upload(PHOTO)

    await events.on_media_uploaded(uploaded(media))

    ready = await store.media(media.media_id)
    assert ready.state is State.READY
    assert (ready.width, ready.height) == (300, 200)
    objects = stored(s3, media)
    assert set(objects) == {variant.object_name for variant in ready.variants}
    for variant in ready.variants:
        found = objects[variant.object_name]
        assert found["ContentType"] == variant.content_type
        assert found["CacheControl"] == "public, max-age=31536000, immutable"
        content = found["Body"].read()
        assert len(content) == variant.size_bytes
        assert Image.open(io.BytesIO(content)).size == (variant.width, variant.height)
    assert await outcomes(database) == [(media.media_id, MEDIA_STATE_READY)]


async def test_a_repeated_upload_event_changes_nothing(events, upload, store, database):
    good, bad = await upload(PHOTO), await upload(b"no photo")

    for media in (good, bad, good, bad):
        await events.on_media_uploaded(uploaded(media))

    assert await outcomes(database) == [
        (good.media_id, MEDIA_STATE_READY),
        (bad.media_id, MEDIA_STATE_FAILED),
    ]
    assert (await store.media(bad.media_id)).failure is Failure.NOT_AN_IMAGE


async def test_concurrent_workers_finish_a_media_item_once(events, upload, store, database):
    media = await upload(PHOTO)

    await asyncio.gather(*(events.on_media_uploaded(uploaded(media)) for _ in range(8)))

    assert (await store.media(media.media_id)).state is State.READY
    assert await outcomes(database) == [(media.media_id, MEDIA_STATE_READY)]


async def test_another_worker_takes_over_after_a_crash(events, upload, store, database):
    media = await upload(PHOTO)
    await store.begin(media.media_id)
    working = asyncio.create_task(events.on_media_uploaded(uploaded(media)))
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    await events.on_media_uploaded(uploaded(media))

    assert await outcomes(database) == [(media.media_id, MEDIA_STATE_READY)]


async def test_an_original_of_any_size_is_processed(events, upload, store, monkeypatch):
    # Larger than files that are processed concurrently; bytes after the photo are not read.
    monkeypatch.setattr("services.media.worker.events._USUAL_BYTES", 2**20)
    media = await upload(PHOTO + bytes(2**20))

    await events.on_media_uploaded(uploaded(media))

    assert (await store.media(media.media_id)).state is State.READY


async def test_each_finished_step_is_recorded_and_none_is_reverted(
    events, upload, store, renderers, monkeypatch
):
    media = await upload(PHOTO)
    add_steps, render, seen = store.add_steps, renderers.render, [()]

    async def seeing(media, steps):
        await add_steps(media, steps)
        seen.append((await store.media(media.media_id)).steps_done)

    async def rendering_slowly(file, present, tell):
        made = []
        rendition = await render(file, present, made.append)
        for each in made:
            tell(each)
            await eventually(lambda step=each.step: asyncio.sleep(0, step in seen[-1]))
        return rendition

    monkeypatch.setattr(store, "add_steps", seeing)
    monkeypatch.setattr(renderers, "render", rendering_slowly)
    working = asyncio.create_task(events.on_media_uploaded(uploaded(media)))
    await eventually(lambda: asyncio.sleep(0, len(seen) > 2))
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await events.on_media_uploaded(uploaded(media))

    assert (await store.media(media.media_id)).steps_done == tuple(STEPS)
    for before, after in itertools.pairwise(seen):
        assert set(before) <= set(after)
    for steps in seen:
        assert all(set(STEPS[step].inputs) <= set(steps) for step in steps)
    # The second run records the steps of the first one at once.
    assert len(set(seen)) > len(STEPS) - 3


async def test_variants_stored_before_a_crash_are_not_made_again(
    events, upload, store, s3, renderers, monkeypatch
):
    media = await upload(PHOTO)
    put_variant, render, stored_first, made = Variants.put, renderers.render, set(), []

    async def putting(variants, key_prefix, variant, content):
        if len(stored_first) == 3:
            raise Unavailable("The object storage")
        stored_first.add(variant.object_name)
        await put_variant(variants, key_prefix, variant, content)

    async def rendering(file, present, tell):
        return await render(file, present, lambda each: (made.append(each), tell(each)))

    with monkeypatch.context() as patched:
        patched.setattr(Variants, "put", putting)
        with pytest.raises(Unavailable):
            await events.on_media_uploaded(uploaded(media))
    monkeypatch.setattr(renderers, "render", rendering)
    await events.on_media_uploaded(uploaded(media))

    again = {each.variant.object_name for each in made if each.variant}
    ready = await store.media(media.media_id)
    everything = {variant.object_name for variant in ready.variants}
    assert again == everything - stored_first
    assert set(stored(s3, media)) == everything


async def test_a_file_changed_after_its_check_fails(events, upload, store, originals, s3, database):
    media = await upload(PHOTO)
    other = photo(300, 200, seed=1)
    await put_original(originals, media, other + bytes(max(0, len(PHOTO) - len(other))))

    await events.on_media_uploaded(uploaded(media))

    assert (await store.media(media.media_id)).failure is Failure.CORRUPT
    assert await outcomes(database) == [(media.media_id, MEDIA_STATE_FAILED)]
    assert not stored(s3, media)


async def test_events_about_incomplete_or_unknown_media_are_ignored(events, store, database):
    pending = await store.add(new_user(), declared(b"x"))

    await events.on_media_uploaded(uploaded(pending))
    await events.on_media_uploaded(MediaUploaded(media_id=1, owner_id=1))

    assert (await store.media(pending.media_id)).state is State.PENDING
    assert await outcomes(database) == []


async def test_a_missing_original_is_retried(events, upload, store, s3):
    media = await upload(PHOTO)
    key = media.key_prefix + "original"
    s3.short.client.delete_object(Bucket="photomesh-originals", Key=key)

    with pytest.raises(Unavailable):
        await events.on_media_uploaded(uploaded(media))

    assert (await store.media(media.media_id)).state is State.PROCESSING


async def test_an_unavailable_s3_is_retried(
    events, store, renderers, storage_settings, upload, database
):
    media = await upload(PHOTO)
    # No process listens on port 1.
    unavailable = S3(storage_settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"}))

    with pytest.raises(Unavailable):
        await media_events(store, unavailable, renderers).on_media_uploaded(uploaded(media))
    with pytest.raises(Unavailable):
        await Originals(unavailable).find(media.key_prefix)
    assert await outcomes(database) == []

    await events.on_media_uploaded(uploaded(media))
    assert await outcomes(database) == [(media.media_id, MEDIA_STATE_READY)]
