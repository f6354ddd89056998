"""A deleted photo, as people meet it."""

import pytest

from tests.eventually import eventually
from tests.mesh.people import ApiError
from tests.pictures import photo


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
