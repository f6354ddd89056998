"""Reprocessing of outdated media: it makes only missing variants, and can be resumed."""

import asyncio

from photomesh.media.v1.media_service_pb2 import MEDIA_STATE_READY

from services.media.pipeline.outputs import RECIPE, STEPS, fingerprint
from services.media.reprocess import reprocess
from services.media.store import State
from tests.media.test_processor import PHOTO, outcomes, stored, upload, uploaded

__all__ = ["upload"]


async def outdate(database, media, drop: str = "") -> None:
    """Sets a media item to the state of an older recipe, without one content type."""
    async with database.connection() as connection:
        await connection.execute(
            """
            UPDATE media
               SET recipe = NULL, blurhash = NULL,
                   variants = jsonb_path_query_array(variants, '$[*] ? (@.content_type != $t)',
                                                     jsonb_build_object('t', %s::text))
             WHERE media_id = %s
            """,
            (drop, media.media_id),
        )


async def announced(database) -> int:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM outbox WHERE topic = 'media_uploaded'"
        )
        [(count,)] = await cursor.fetchall()
    return count


async def test_only_missing_variants_of_an_outdated_photo_are_made(
    events, store, s3, upload, database
):
    media = await upload(PHOTO)
    await events.on_media_uploaded(uploaded(media))
    ready = await store.media(media.media_id)
    assert ready.recipe == RECIPE
    before = await asyncio.to_thread(stored, s3, media)
    missing = [each for each in ready.variants if each.content_type == "image/avif"]
    for variant in missing:
        key = media.key_prefix + variant.object_name
        s3.short.client.delete_object(Bucket="photomesh-media", Key=key)
    await outdate(database, media, "image/avif")
    assert not (await store.media(media.media_id)).facts.get("blurhash")

    await events.on_media_uploaded(uploaded(media))
    await events.on_media_uploaded(uploaded(media))

    again = await store.media(media.media_id)
    assert again == ready
    after = await asyncio.to_thread(stored, s3, media)
    assert set(after) == set(before)
    modified = "LastModified"
    written = {name for name in after if after[name][modified] > before[name][modified]}
    assert written <= {variant.object_name for variant in missing}
    # Another event, so that posts show the new variants.
    assert await outcomes(database) == [(media.media_id, MEDIA_STATE_READY)] * 2


async def test_outdated_media_are_announced_in_pages_and_runs_can_resume(
    events, store, upload, database
):
    photos = [await upload(PHOTO) for _ in range(5)]
    for media in photos[1:]:
        await events.on_media_uploaded(uploaded(media))
    for media in photos[2:]:
        await outdate(database, media)
    before = await announced(database)

    first, position = await store.announce_outdated((-1, 0), limit=2)
    told_then = await reprocess(store, per_second=1000, after=position)

    # Neither an unprocessed nor an up-to-date one.
    assert (first, told_then) == (2, 1)
    assert await announced(database) - before == 3
    assert (await store.media(photos[0].media_id)).state is State.UPLOADED


async def test_a_new_version_of_a_step_renames_its_results(monkeypatch):
    before = {name: fingerprint(name) for name in STEPS}
    step = STEPS["w600"]

    monkeypatch.setitem(STEPS, "w600", type(step)(step.name, step.makes, 2, step.inputs))

    changed = {name for name in STEPS if fingerprint(name) != before[name]}
    assert changed == {
        *("w600", "w600.jpg", "w600.webp", "w600.avif"),
        *("blurhash", "dominant_colour", "perceptual_hash"),
    }
