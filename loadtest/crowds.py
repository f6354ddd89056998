"""Hundreds of thousands of accounts, follows, and feeds, written directly as rows and keys.

The rows and keys are those that the services write. Calling the services would take hours.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import MediaState

from deploy.local.stack import Stack
from loadtest.pipelines import Pipelines
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.chassis.database.ids import EPOCH_MS, SHARDS, shard_of
from services.domain.timelines import CAP, HomeTimelines
from services.domain.timelines.layout import FEED, RULES

_FIRST = time.time_ns() // 1_000_000 - EPOCH_MS - 10**9
_STRIDE = 7919
"""The difference between the shards of consecutive accounts."""

_COPY_BATCH = 5_000

_MODELS = 50
"""The number of feeds from which the others are copied."""

_DAY_MS = 24 * 3600 * 1000


def account_ids(numbers: range) -> list[int]:
    """Returns account ids: number n was created n milliseconds after a time some days ago."""
    return [(_FIRST + n) << 23 | (n * _STRIDE & SHARDS - 1) << 10 for n in numbers]


def post_id(author_id: int, moment: int) -> int:
    """Returns the id of an author's post, created at `moment` in the units of `now`."""
    return moment << 23 | shard_of(author_id) << 10


def now() -> int:
    """Returns the time as encoded in ids, in milliseconds since 2026."""
    return time.time_ns() // 1_000_000 - EPOCH_MS


# -- Rows ------------------------------------------------------------------------------------


def add_accounts(stack: Stack, ids: Iterable[int]) -> None:
    with _database(stack, "account") as database:
        _copy(
            database,
            "accounts (shard, account_id, username, password_hash)",
            ((shard_of(each), each, f"person{each}", "") for each in ids),
        )


def add_follows(stack: Stack, follows: Sequence[tuple[int, int]]) -> None:
    """Makes the first account of each pair follow the second."""
    with _database(stack, "graph") as database:
        _copy(
            database,
            "follows (shard, follower_id, followee_id)",
            ((shard_of(reader), reader, author) for reader, author in follows),
        )
        _copy(
            database,
            "followers (shard, followee_id, follower_id)",
            ((shard_of(author), author, reader) for reader, author in follows),
        )
        _update_counts(database)


def generate_accounts(stack: Stack, numbers: range, *, followees: int, authors: int) -> None:
    """Creates accounts by their numbers; each follows a few of the first `authors` accounts.

    The server generates the rows, because there are far more of them than in the other functions.
    """
    values = {
        "first": _FIRST,
        "stride": _STRIDE,
        "begin": numbers.start,
        "last": numbers.stop - 1,
        "followees": followees,
        "authors": authors,
    }
    with _database(stack, "account") as database:
        database.execute(_GENERATED_ACCOUNTS, values)
    with _database(stack, "graph") as database:
        database.execute(_GENERATED_FOLLOWS, values)
        database.execute(_GENERATED_FOLLOWERS, values)
        _update_counts(database)


def make_celebrities(stack: Stack, ids: Iterable[int]) -> None:
    """Sets the accounts' mode to PULLED."""
    with _database(stack, "graph") as database:
        _copy(database, "celebrities (account_id, mode)", ((each, "PULLED") for each in ids))


def add_posts(stack: Stack, posts: Sequence[tuple[int, int]]) -> None:
    """Publishes posts with one photo each, given as pairs of post id and author id."""
    with _database(stack, "post") as database:
        _copy(
            database,
            "posts (shard, post_id, author_id, caption, state, request_id, settle_time)",
            (
                (shard_of(post), post, author, "As long as captions are. " * 4, "PUBLISHED", "", at)
                for at in ["2026-01-01"]
                for post, author in posts
            ),
        )
        _copy(
            database,
            "post_media (shard, post_id, position, media_id, snapshot)",
            (
                (
                    shard_of(post),
                    post,
                    1,
                    post - 1,
                    f"\\x{photo(post - 1, author).SerializeToString().hex()}",
                )
                for post, author in posts
            ),
        )


_GENERATED_ACCOUNTS = """
    INSERT INTO accounts (shard, account_id, username, password_hash)
    SELECT number * %(stride)s & 8191,
           (%(first)s + number) << 23 | (number * %(stride)s & 8191) << 10,
           'person' || number,
           ''
      FROM generate_series(%(begin)s, %(last)s::bigint) AS number
"""

# No account follows another one twice, or itself.
_WITH_PAIRS = """
    WITH pairs AS (
        SELECT reader * %(stride)s & 8191 AS reader_shard,
               (%(first)s + reader) << 23 | (reader * %(stride)s & 8191) << 10 AS reader_id,
               author * %(stride)s & 8191 AS author_shard,
               (%(first)s + author) << 23 | (author * %(stride)s & 8191) << 10 AS author_id
          FROM (
                   SELECT reader, (reader * 31 + which * 17) %% %(authors)s AS author
                     FROM generate_series(%(begin)s, %(last)s::bigint) AS reader,
                          generate_series(1, %(followees)s) AS which
               ) AS numbers
         WHERE author <> reader
    )
"""

_GENERATED_FOLLOWS = f"""{_WITH_PAIRS}
    INSERT INTO follows (shard, follower_id, followee_id)
    SELECT reader_shard, reader_id, author_id FROM pairs
"""  # noqa: S608 -- Both are constants.

_GENERATED_FOLLOWERS = f"""{_WITH_PAIRS}
    INSERT INTO followers (shard, followee_id, follower_id)
    SELECT author_shard, author_id, reader_id FROM pairs
"""  # noqa: S608 -- Both are constants.

_FOLLOWEE_COUNTS = """
    INSERT INTO followee_counts (shard, follower_id, followees)
    SELECT shard, follower_id, count(*) FROM follows GROUP BY shard, follower_id
    ON CONFLICT (shard, follower_id) DO UPDATE SET followees = excluded.followees
"""

_FOLLOWER_COUNTS = """
    INSERT INTO follower_counts (shard, followee_id, slot, followers)
    SELECT shard, followee_id, shard_of(follower_id) % 16, count(*)
      FROM followers GROUP BY shard, followee_id, shard_of(follower_id) % 16
    ON CONFLICT (shard, followee_id, slot) DO UPDATE SET followers = excluded.followers
"""


def _update_counts(database: psycopg.Connection) -> None:
    """Updates the counters from the rows."""
    database.execute(_FOLLOWEE_COUNTS)
    database.execute(_FOLLOWER_COUNTS)


@contextlib.contextmanager
def _database(stack: Stack, role: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url(role), autocommit=True) as database:
        database.execute("SET statement_timeout = 0")
        yield database
        # Otherwise the first reads would write hint bits into every page.
        database.execute("VACUUM ANALYZE")


def _copy(database: psycopg.Connection, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with database.cursor() as cursor, cursor.copy(f"COPY {columns} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


def photo(media_id: int, author_id: int) -> StoredMedia:
    """Returns a photo with all its variants, as media returns it to other services."""
    media = StoredMedia(
        media_id=media_id,
        owner_id=author_id,
        state=MediaState.MEDIA_STATE_READY,
        width=4032,
        height=3024,
        key_prefix=f"2026/11/21/{author_id}/{media_id}/",
        blurhash="LEHV6nWB2yk8pyo0adR*.7kCMdnj",
        dominant_colour="#8a7f6b",
        perceptual_hash="0123456789abcdef",
    )
    for name, width in (("w2048", 2048), ("w1080", 1080), ("w600", 600), ("s200", 200)):
        for extension in ("jpeg", "webp", "avif"):
            media.variants.add(
                name=name,
                content_type=f"image/{extension}",
                width=width,
                height=width * 3 // 4,
                size_bytes=width * 100,
                object_name=f"{name}.{extension}",
            )
    return media


# -- Keys ------------------------------------------------------------------------------------


async def fill_feeds(stack: Stack, reader_ids: Sequence[int], post_ids: Sequence[int]) -> None:
    """Writes warm feeds of nearly the same posts, newest first.

    `post_ids` has some more posts than a feed. A few feeds are built and all others are copied from
    them, which is far faster than building each. As in production, feeds have received different
    numbers of posts since they were built, so that one push does not trim all of them.
    """
    settings = CacheSettings(valkey_url=stack.valkey_url, valkey_timeout_seconds=60)
    models = reader_ids[:_MODELS]
    async with connect(settings) as cache:
        homes = HomeTimelines(cache)
        for number, reader_id in enumerate(models):
            newer = len(post_ids) * number // _MODELS // 2
            marker = await homes.begin_rebuild(reader_id)
            assert marker is not None  # noqa: S101 -- The feed is new.
            await homes.finish_rebuild(
                reader_id, marker, post_ids[newer : newer + CAP], whole=False, version=1
            )
            for post_id in reversed(post_ids[:newer]):
                await homes.push([reader_id], [post_id])
    with Pipelines(stack.valkey_url) as pipelines:
        for number, model in enumerate(models):
            others = reader_ids[_MODELS + number :: _MODELS]
            for space in (FEED, RULES):
                copy_key(pipelines, f"{space}:{{{model}}}", model, others)


def copy_key(pipelines: Pipelines, key: str, owner_id: int, others: Sequence[int]) -> None:
    """Copies an owner's value of a key to other owners, with a TTL of one day."""
    value = pipelines.ask(pipelines.owner_of(owner_id), "DUMP", key)
    for start in range(0, len(others), _COPY_BATCH):
        pipelines.run(
            [
                (each, ("RESTORE", key.replace(f"{{{owner_id}}}", f"{{{each}}}"), _DAY_MS, value))
                for each in others[start : start + _COPY_BATCH]
            ]
        )


def remove_limit(stack: Stack) -> None:
    """Removes Valkey's memory limit, which is too low for so many feeds."""
    with Pipelines(stack.valkey_url) as pipelines:
        pipelines.configure("maxmemory", 0)
