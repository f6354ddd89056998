"""kill -9 of any one process at any moment of the journey: nothing is lost, nothing doubled.

`PHOTOMESH_CRASHES` says how often each process is killed (default 1; `make prove` more), and
`PHOTOMESH_SEED` begins the moments at another place.
"""

import asyncio
import os
import random

import boto3
import httpx
import psycopg
import pytest
from botocore.config import Config

from deploy.local.table import MEDIA_BUCKET
from tests.eventually import eventually
from tests.mesh.people import Person
from tests.pictures import photo

ROUNDS = int(os.environ.get("PHOTOMESH_CRASHES", "1"))
SEED = int(os.environ.get("PHOTOMESH_SEED", "1"))

# What runs our code or our configuration. The parts' own crashes are proven per part.
PROCESSES = [
    "account",
    "media",
    "media-worker",
    "post",
    "graph",
    "feed",
    "fanout",
    "gateway",
    "edge",
]

# The journey takes about this long when nothing is killed.
_JOURNEY_SECONDS = 2.0


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("victim", PROCESSES)
async def test_the_journey_completes_over_a_crash(mesh, http, victim, number):
    rng = random.Random(f"{SEED} {victim} {number}")
    moment = rng.uniform(0.0, _JOURNEY_SECONDS)

    async def crash():
        await asyncio.sleep(moment)
        await asyncio.to_thread(mesh.kill, victim)
        await asyncio.to_thread(mesh.start, victim)

    crashing = asyncio.create_task(crash())
    try:
        await journey(mesh, http)
    finally:
        await crashing


async def journey(mesh, http: httpx.AsyncClient) -> None:
    author, follower = Person(http, patience=30), Person(http, patience=30)
    await asyncio.gather(author.sign_up(), follower.sign_up())
    await follower.follow(author)
    # A warm timeline, so that the post must be pushed into it.
    assert (await follower.feed())["posts"] == []

    media_id = await author.upload(photo(1200, 900, orientation=8))
    post = await author.post(media_id, caption="over a crash")
    media = await author.processed(media_id, within=40)
    assert media["state"] == "MEDIA_STATE_READY"
    feed = await eventually(follower.feed, lambda feed: feed["posts"], within=40)

    assert [each["postId"] for each in feed["posts"]] == [post["postId"]]
    assert [each["postId"] async for each in author.whole_feed()] == [post["postId"]]
    async with httpx.AsyncClient() as browser:
        for variant in feed["posts"][0]["media"][0]["variants"]:
            answer = await eventually(
                lambda url=variant["url"]: browser.get(url),
                lambda answer: answer.status_code == 200,
                within=20,
            )
            assert len(answer.content) == int(variant["sizeBytes"])
    await asyncio.to_thread(assert_nothing_doubled, mesh, author.account_id, media)


def assert_nothing_doubled(mesh, author_id: int, media: dict) -> None:
    with psycopg.connect(mesh.database_url("post")) as database:
        posts = database.execute(
            "SELECT count(*) FROM posts WHERE author_id = %s", [author_id]
        ).fetchone()
    assert posts == (1,)
    keys = mesh.credentials.s3_media
    s3 = boto3.client(
        "s3",
        endpoint_url=mesh.s3_endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 5}),
    )
    path = httpx.URL(media["variants"][0]["url"]).path.removeprefix("/media/")
    listed = s3.list_objects_v2(Bucket=MEDIA_BUCKET, Prefix=path.rpartition("/")[0] + "/")
    assert len(listed["Contents"]) == len(media["variants"])
