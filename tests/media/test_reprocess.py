"""Bringing media to today's recipe: only what is outdated, only what is missing, resumable."""

import asyncio

from photomesh.media.v1.media_service_pb2 import MEDIA_STATE_READY

from services.media.pipeline.outputs import RECIPE, STEPS, fingerprint
from services.media.reprocess import reprocess
from services.media.store import State
from tests.media.test_processor import PHOTO, ends, stored, told, upload

__all__ = ["upload"]


async def outdate(database, media, drop: str = "") -> None:
    """Makes a media item as an older recipe had left it, without a kind of variant."""
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


async def test_an_outdated_photo_is_made_anew_and_only_what_is_missing(
    events, store, s3, upload, database
):
    media = await upload(PHOTO)
    await events.on_media_uploaded(told(media))
    ready = await store.media(media.media_id)
    assert ready.recipe == RECIPE
    before = await asyncio.to_thread(stored, s3, media)
    missing = [each for each in ready.variants if each.content_type == "image/avif"]
    for variant in missing:
        key = media.key_prefix + variant.object_name
        s3.short.client.delete_object(Bucket="photomesh-media", Key=key)
    await outdate(database, media, "image/avif")
    assert not (await store.media(media.media_id)).facts.get("blurhash")

    await events.on_media_uploaded(told(media))
    await events.on_media_uploaded(told(media))

    again = await store.media(media.media_id)
    assert again == ready
    after = await asyncio.to_thread(stored, s3, media)
    assert set(after) == set(before)
    modified = "LastModified"
    written = {name for name in after if after[name][modified] > before[name][modified]}
    assert written <= {variant.object_name for variant in missing}
    # Told once more, so that posts show it.
    assert await ends(database) == [(media.media_id, MEDIA_STATE_READY)] * 2


async def test_outdated_media_are_told_in_pages_and_from_where_a_run_ended(
    events, store, upload, database
):
    photos = [await upload(PHOTO) for _ in range(5)]
    for media in photos[1:]:
        await events.on_media_uploaded(told(media))
    for media in photos[2:]:
        await outdate(database, media)
    before = await announced(database)

    first, position = await store.announce_outdated((-1, 0), limit=2)
    told_then = await reprocess(store, per_second=1000, after=position)

    # Neither the one that was never processed nor the one that is up to date.
    assert (first, told_then) == (2, 1)
    assert await announced(database) - before == 3
    assert (await store.media(photos[0].media_id)).state is State.UPLOADED


async def test_a_raised_version_changes_the_names_of_what_follows_from_it(monkeypatch):
    before = {name: fingerprint(name) for name in STEPS}
    step = STEPS["w600"]

    monkeypatch.setitem(STEPS, "w600", type(step)(step.name, step.makes, 2, step.inputs))

    changed = {name for name in STEPS if fingerprint(name) != before[name]}
    assert changed == {
        *("w600", "w600.jpg", "w600.webp", "w600.avif"),
        *("blurhash", "dominant_colour", "perceptual_hash"),
    }
