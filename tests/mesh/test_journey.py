"""A photo travels from a phone to a follower's feed, over HTTP only."""

import io

import boto3
import httpx
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from PIL import Image

from deploy.local.addresses import MEDIA_BUCKET, ORIGINALS_BUCKET
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.pictures import photo

# The sizes for a photo stored as 1600 x 1200 whose orientation makes it portrait.
VARIANTS = {
    (name, content_type): size
    for name, size in (
        ("square200", (200, 200)),
        ("w600", (600, 800)),
        ("w1080", (1080, 1440)),
        # Variants are never larger than the original.
        ("w2048", (1200, 1600)),
    )
    for content_type in ("image/jpeg", "image/webp", "image/avif")
}


async def test_a_photo_travels_from_a_phone_to_a_followers_feed(person):
    author, follower = await person().sign_up(), await person().sign_up()
    await follower.follow(author)
    assert (await follower.feed())["posts"] == []

    media_id = await author.upload(photo(orientation=6))
    post = await author.post(media_id, caption="Kreuzberg, früh am Morgen 🌅")
    media = await author.processed(media_id)
    assert media["state"] == "MEDIA_STATE_READY", media

    feed = await eventually(follower.feed, lambda feed: feed["posts"])
    assert feed["state"] == "FEED_STATE_COMPLETE"
    assert feed["nextPageToken"] == ""
    [seen] = feed["posts"]
    assert seen["postId"] == post["postId"]
    assert seen["author"] == {"accountId": str(author.account_id), "username": author.username}
    assert seen["caption"] == "Kreuzberg, früh am Morgen 🌅"
    assert seen["state"] == "POST_STATE_PUBLISHED"
    [shown] = seen["media"]
    for fact in ("blurhash", "dominantColour", "perceptualHash"):
        assert shown[fact] == media[fact] != ""
    assert (shown["width"], shown["height"]) == (1200, 1600)

    found = {}
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        for variant in shown["variants"]:
            answer = await browser.get(variant["url"])
            assert answer.status_code == 200
            assert answer.headers["content-type"] == variant["contentType"]
            assert len(answer.content) == int(variant["sizeBytes"])
            picture = Image.open(io.BytesIO(answer.content))
            assert picture.size == (variant["width"], variant["height"])
            assert Image.MIME[picture.format] == variant["contentType"]
            assert not picture.getexif(), "EXIF survived"
            assert b"Exif" not in answer.content
            assert b"GPS" not in answer.content
            assert b"Test camera" not in answer.content
            found[variant["name"], variant["contentType"]] = picture.size

            bare, _, token = variant["url"].partition("?")
            assert (await browser.get(bare)).status_code == 401
            elsewhere = bare.replace(media_id, "1") + "?" + token
            assert (await browser.get(elsewhere)).status_code == 403
    assert found == VARIANTS

    assert [post["postId"] async for post in author.whole_feed()] == [post["postId"]]


async def test_the_buckets_refuse_unsigned_requests(mesh, person):
    author = await person().sign_up()
    media_id = await author.upload(photo())
    media = await author.processed(media_id)
    path = httpx.URL(media["variants"][0]["url"]).path.removeprefix("/media/")
    stranger = boto3.client(
        "s3",
        endpoint_url=mesh.s3_endpoint,
        region_name="us-east-1",
        config=Config(signature_version=UNSIGNED),
    )

    for bucket, key in [
        (MEDIA_BUCKET, path),
        (ORIGINALS_BUCKET, path.rpartition("/")[0] + "/original"),
    ]:
        with pytest.raises(ClientError) as refused:
            stranger.get_object(Bucket=bucket, Key=key)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        with pytest.raises(ClientError):
            stranger.list_objects_v2(Bucket=bucket)


async def test_several_media_make_one_post_in_the_authors_order(person):
    author = await person().sign_up()
    media_ids = [await author.upload(photo(800, 600, seed=seed)) for seed in range(3)]
    media_ids.reverse()
    post = await author.post(*media_ids)

    seen = await eventually(
        lambda: author.see_post(post["postId"]),
        lambda post: post["state"] == "POST_STATE_PUBLISHED",
    )

    assert [media["mediaId"] for media in seen["media"]] == media_ids


async def test_pages_of_a_feed_have_no_gap_or_repeat_while_posts_arrive(person):
    author, follower = await person().sign_up(), await person().sign_up()
    await follower.follow(author)
    media_id = await author.upload(photo(300, 200))
    await author.processed(media_id)
    posted = [(await author.post(media_id, caption=str(n)))["postId"] for n in range(7)]
    await eventually(follower.feed, lambda feed: len(feed["posts"]) == 7)

    first = await follower.feed(pageSize=3)
    late = await author.post(media_id, caption="late")
    await eventually(follower.feed, lambda feed: feed["posts"][0]["postId"] == late["postId"])
    second = await follower.feed(pageSize=3, pageToken=first["nextPageToken"])
    third = await follower.feed(pageSize=3, pageToken=second["nextPageToken"])

    pages = [[post["postId"] for post in page["posts"]] for page in (first, second, third)]
    assert pages == [posted[:3:-1], posted[3:0:-1], posted[:1]]
    assert third["nextPageToken"] == ""


async def test_following_adds_earlier_posts_and_unfollowing_removes_them(person):
    author, follower = await person().sign_up(), await person().sign_up()
    media_id = await author.upload(photo(300, 200))
    await author.processed(media_id)
    own_media = await follower.upload(photo(300, 200, seed=2))
    await follower.processed(own_media)
    theirs = (await author.post(media_id))["postId"]
    own = (await follower.post(own_media))["postId"]

    async def feed():
        return [post["postId"] async for post in follower.whole_feed()]

    await eventually(feed, lambda posts: posts == [own])
    await follower.follow(author)
    await follower.follow(author)
    await eventually(feed, lambda posts: posts == [own, theirs])
    await follower.unfollow(author)
    await eventually(feed, lambda posts: posts == [own])
    await follower.unfollow(author)
    assert await feed() == [own]


async def test_a_feed_that_the_cache_lost_is_rebuilt(mesh, person):
    from redis import Redis

    author, follower = await person().sign_up(), await person().sign_up()
    await follower.follow(author)
    media_id = await author.upload(photo(300, 200))
    await author.processed(media_id)
    post = await author.post(media_id)
    await eventually(follower.feed, lambda feed: feed["posts"])

    Redis.from_url(mesh.valkey_url).flushall()

    lost = await follower.feed()
    assert [post["postId"] for post in lost["posts"]] == [post["postId"]]
    assert lost["state"] == "FEED_STATE_REGENERATING"
    again = await follower.feed()
    assert again["posts"] == lost["posts"]
    assert again["state"] == "FEED_STATE_COMPLETE"
