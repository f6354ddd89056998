"""kill -9 of any one process at any moment of the journey loses and duplicates nothing.

`PHOTOMESH_CRASHES` is how often each process is killed (default 1; `make prove` sets more).
`PHOTOMESH_SEED` seeds the choice of the moments.
"""

import asyncio
import os
import random
from collections.abc import Callable

import httpx
import psycopg
import pytest

from deploy.local.addresses import MEDIA_BUCKET
from deploy.processes import MESH
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh.mishaps import count_dead_letters
from tests.mesh.people import Person
from tests.pictures import photo

pytestmark = pytest.mark.prove

ROUNDS = int(os.environ.get("PHOTOMESH_CRASHES", "1"))
SEED = int(os.environ.get("PHOTOMESH_SEED", "1"))

# The most critical step of the journey for each process; by default the last one. The first crash
# of each process is in that step, later ones are in random steps.
WORST = {
    "account": "sign up",
    "media": "complete",
    "media-worker": "process",
    "post": "post",
    "graph": "follow",
    "feed": "feed",
    "fanout": "process",
    "reflection": "read",
    "gateway": "post",
    "edge": "pictures",
    "postgres": "post",
    "valkey": "feed",
    "s3": "process",
    "kafka": "process",
}

PROCESSES = tuple(dict.fromkeys((*(process.name for process in MESH), *WORST)))
"""Every process that serves."""

STEPS = ("sign up", "follow", "read", "upload", "complete", "post", "process", "feed", "pictures")

# The longest time from the start of a step to the crash; rendering takes about this long.
_LATEST_SECONDS = 0.5


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("victim", PROCESSES)
async def test_the_journey_completes_despite_a_crash(mesh, http, victim, number):
    rng = random.Random(f"{SEED} {victim} {number}")
    fatal = WORST.get(victim, STEPS[-1]) if number == 0 else rng.choice(STEPS)
    crashes: list[asyncio.Task] = []

    async def crash():
        await asyncio.sleep(rng.uniform(0.0, _LATEST_SECONDS))
        await asyncio.to_thread(mesh.kill, victim)
        await asyncio.to_thread(mesh.start, victim)

    def begin(step: str) -> None:
        assert step in STEPS
        if step == fatal:
            crashes.append(asyncio.create_task(crash()))

    dead_before = await asyncio.to_thread(count_dead_letters, mesh)
    try:
        author_id, media = await journey(http, begin)
    finally:
        # Even after a failure, so that the next test finds all processes running.
        await asyncio.gather(*crashes)
    assert len(crashes) == 1
    await asyncio.to_thread(assert_no_duplicates, mesh, author_id, media)
    assert await asyncio.to_thread(count_dead_letters, mesh) == dead_before


async def journey(http: httpx.AsyncClient, begin: Callable[[str], None]) -> tuple[int, dict]:
    """Takes a photo from upload to feed, as in test_journey. Calls `begin` with each step.

    Returns the author's id and the media item.
    """
    author, follower = (Person(http, patience=PATIENCE_SECONDS) for _ in range(2))
    begin("sign up")
    await asyncio.gather(author.sign_up(), follower.sign_up())
    begin("follow")
    await follower.follow(author)
    begin("read")
    # A warm timeline, so that the post must be pushed into it.
    assert (await follower.feed())["posts"] == []

    begin("upload")
    file = photo(3000, 2250, orientation=8)
    upload = await author.open_upload(len(file))
    await eventually(lambda: author.send_file(upload, file), lambda sent: sent.is_success)
    begin("complete")
    media_id = upload["media"]["mediaId"]
    await author.complete(media_id)
    begin("post")
    post = await author.post(media_id, caption="despite a crash")
    begin("process")
    media = await author.processed(media_id)
    assert media["state"] == "MEDIA_STATE_READY"
    begin("feed")
    feed = await eventually(follower.feed, lambda feed: feed["posts"])

    assert [each["postId"] for each in feed["posts"]] == [post["postId"]]
    assert [each["postId"] async for each in author.whole_feed()] == [post["postId"]]
    begin("pictures")
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        for variant in feed["posts"][0]["media"][0]["variants"]:
            answer = await eventually(
                lambda url=variant["url"]: browser.get(url),
                lambda answer: answer.status_code == 200,
            )
            assert len(answer.content) == int(variant["sizeBytes"])
    return author.account_id, media


def assert_no_duplicates(mesh, author_id: int, media: dict) -> None:
    with psycopg.connect(mesh.database_url("post")) as database:
        posts = database.execute(
            "SELECT count(*) FROM posts WHERE author_id = %s", [author_id]
        ).fetchone()
    assert posts == (1,)
    s3 = mesh.s3()
    path = httpx.URL(media["variants"][0]["url"]).path.removeprefix("/media/")
    listed = s3.list_objects_v2(Bucket=MEDIA_BUCKET, Prefix=path.rpartition("/")[0] + "/")
    assert len(listed["Contents"]) == len(media["variants"])
