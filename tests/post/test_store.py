"""The newest posts of many authors, compared with sorting all posts."""

import random
from collections.abc import Callable

import pytest

from services.chassis.config import KafkaSettings
from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.post.store import PostStore, State

# Most posts are published; some are in each other state.
STATES = ["PUBLISHED"] * 16 + [state for state in State if state is not State.PUBLISHED]

_ADD = """
    INSERT INTO posts (shard, post_id, author_id, caption, state, request_id, settle_time)
    VALUES (%s, %s, %s, '', %s, '', now())
"""


@pytest.mark.parametrize("seed", range(3))
async def test_the_newest_posts_of_many_authors_are_found(
    database_of: Callable, kafka: KafkaSettings, seed: int
):
    rng = random.Random(seed)
    # Few shards, so that authors share them; some have many posts, and some none.
    authors = [number << 23 | rng.randrange(6) << 10 for number in range(1, 41)]
    posts = {}
    for _ in range(1_500):
        author_id = authors[int(rng.paretovariate(0.7)) % len(authors)]
        post_id = rng.randrange(1, 5_000) << 23 | author_id & 8191 << 10 | rng.randrange(1024)
        posts[post_id] = (author_id, rng.choice(STATES))
    settings = database_of("post")

    async with Database(settings) as database:
        store = PostStore(database, Outbox(database, Relay(settings, kafka)))
        async with database.transaction() as connection, connection.cursor() as cursor:
            await cursor.executemany(
                _ADD,
                [
                    (shard_of(post_id), post_id, author_id, state)
                    for post_id, (author_id, state) in posts.items()
                ],
            )
        for _ in range(150):
            asked = rng.choices(authors, k=rng.randrange(1, 60))
            before = rng.choice([0, rng.choice(list(posts)), rng.randrange(5_000) << 23])
            limit = rng.choice([1, 2, 7, 20, 100, 1_000])

            expected = sorted(
                (
                    post_id
                    for post_id, (author_id, state) in posts.items()
                    if author_id in asked
                    and state == "PUBLISHED"
                    and (post_id < before or not before)
                ),
                reverse=True,
            )[:limit]
            assert await store.recent(asked, before=before, limit=limit) == expected
