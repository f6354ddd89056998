"""A deleted photo, as users see it."""

import asyncio
import os

import httpx
import pytest

from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh.people import ApiError
from tests.pictures import photo

pytestmark = pytest.mark.prove


async def test_a_deleted_photo_leaves_its_post_without_a_picture(person):
    ann, bob = await person().sign_up(), await person().sign_up()
    gone, kept = [await ann.upload(photo(300, 200, seed=seed)) for seed in (1, 2)]
    for media_id in (gone, kept):
        await ann.processed(media_id)
    post = await ann.post(gone, kept, caption="both")

    with pytest.raises(ApiError) as refused:
        await bob.delete_media(gone)
    assert (refused.value.status, refused.value.reason) == (404, "MEDIA_UNKNOWN")
    deleted = await ann.delete_media(gone)

    assert deleted["state"] == "MEDIA_STATE_DELETED"
    seen = await eventually(
        lambda: bob.see_post(post["postId"]), lambda post: not post["media"][0]["variants"]
    )
    assert seen["state"] == "POST_STATE_PUBLISHED"
    assert [item["state"] for item in seen["media"]] == [
        "MEDIA_STATE_DELETED",
        "MEDIA_STATE_READY",
    ]
    assert seen["media"][1]["variants"]
    with pytest.raises(ApiError) as refused:
        await ann.post(gone)
    assert refused.value.reason == "MEDIA_UNKNOWN"


@pytest.mark.skipif("PHOTOMESH_PROVE" not in os.environ, reason="takes as long as the edge caches")
async def test_the_edge_stops_serving_a_deleted_photo_within_a_minute(person):
    ann = await person().sign_up()
    media_id = await ann.upload(photo(300, 200))
    media = await ann.processed(media_id)
    urls = [variant["url"] for variant in media["variants"]]
    assert urls

    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:

        async def look() -> set[int]:
            # A few viewers, not a load test.
            await asyncio.sleep(0.2)
            return {(await browser.get(url)).status_code for url in urls}

        assert await look() == {200}
        # The worst case: the cache has just fetched each from S3.
        await ann.delete_media(media_id)
        clock = asyncio.get_running_loop().time
        latest = clock() + 60
        began, seen = clock(), await look()
        # Repeated requests must not keep it cached.
        while seen != {404}:
            assert began < latest
            began, seen = clock(), await look()

        assert await look() == {404}
