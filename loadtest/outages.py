"""Reading feeds while a part is away: stalled as if it were overloaded, and killed.

Readers go on reading about once a second. A tenth of them find their feeds cold each time, as long
as there is a cache to be cold.
"""

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
import psycopg
from photomesh.feed.v1 import feed_service_pb2 as pb
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import MediaState

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from services.common import client
from services.common.cache import Cache, connect
from services.common.config import CacheSettings
from services.common.context import USER_ID
from services.common.errors import Unavailable
from services.common.ids import EPOCH_MS, shard_of
from services.common.timelines import HomeTimelines

_AUTHORS = 1_000
_CELEBRITIES = 5
_POSTS_EACH = 20
_FOLLOWEES = 100
_COLD_SHARE = 10
_GOAL_MS = 300
_DEADLINE_SECONDS = 5.0
_CALM_SECONDS = 5.0
_VICTIMS = ("graph", "post", "valkey", "postgres")

_COMPLETE = (pb.FEED_STATE_COMPLETE, pb.FEED_STATE_REGENERATING)


@click.command()
@click.option("--readers", default=200, show_default=True, help="How many read once a second.")
@click.option("--stalled", default=30.0, show_default=True, help="For how many seconds.")
@click.option("--killed", default=10.0, show_default=True, help="For how many seconds.")
@click.option("--victims", default=",".join(_VICTIMS), show_default=True, help="What is away.")
def outages(readers: int, stalled: float, killed: float, victims: str) -> None:
    """Latency of the feed while graph, post, the cache or the database is away."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        stack.up(["account", "graph", "post", "feed"])
        reader_ids = _fill(stack, readers)
        asyncio.run(_measure(stack, reader_ids, stalled, killed, victims.split(",")))


# -- Data ------------------------------------------------------------------------------------


def _fill(stack: Stack, readers: int) -> Sequence[int]:
    """Makes people, whom they follow, and posts, as rows; returns the readers."""
    chance = random.Random(1)
    now = time.time_ns() // 1_000_000 - EPOCH_MS

    def account(number: int) -> int:
        return (now - 10**9 + number) << 23 | chance.randrange(1 << 13) << 10

    authors = [account(number) for number in range(_AUTHORS)]
    reader_ids = [account(_AUTHORS + number) for number in range(readers)]
    # Some have many more followers than others.
    weights = [1 / (rank + 10) for rank in range(_AUTHORS)]
    follows = [
        (reader_id, author_id)
        for reader_id in reader_ids
        for author_id in set(chance.choices(authors, weights, k=_FOLLOWEES))
    ]
    posts = [
        ((now - chance.randrange(10**9)) << 23 | shard_of(author_id) << 10, author_id)
        for author_id in authors
        for _ in range(_POSTS_EACH)
    ]
    with _database(stack, "account") as database:
        _copy(
            database,
            "accounts (shard, account_id, username, password_hash)",
            ((shard_of(each), each, f"person{each}", "") for each in (*authors, *reader_ids)),
        )
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
        counts = Counter(reader for reader, _ in follows)
        _copy(
            database,
            "followee_counts (shard, follower_id, followees)",
            ((shard_of(reader), reader, count) for reader, count in counts.items()),
        )
        _copy(
            database,
            "celebrities (account_id, mode)",
            ((author, "PULLED") for author in authors[:_CELEBRITIES]),
        )
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
                (shard_of(post), post, 1, post - 1, f"\\x{_snapshot(post - 1, author).hex()}")
                for post, author in posts
            ),
        )
    return reader_ids


@contextlib.contextmanager
def _database(stack: Stack, role: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(stack.database_url(role), autocommit=True) as database:
        database.execute("SET statement_timeout = 0")
        yield database
        database.execute("ANALYZE")


def _copy(database: psycopg.Connection, columns: str, rows: Iterator[tuple[Any, ...]]) -> None:
    with database.cursor() as cursor, cursor.copy(f"COPY {columns} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)


def _snapshot(media_id: int, author_id: int) -> bytes:
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
    return media.SerializeToString()


# -- Readers ---------------------------------------------------------------------------------


@dataclass
class _Phase:
    """What readers saw."""

    name: str
    latencies: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    incomplete_at: float = 0.0
    """When a page began for the last time that was not complete."""

    def __str__(self) -> str:
        ordered = sorted(self.latencies)

        def at(share: float) -> float:
            return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        states = ", ".join(f"{count} {state}" for state, count in self.states.most_common())
        return (
            f"{self.name}: {len(ordered)} pages: p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms "
            f"({'within' if at(0.99) < _GOAL_MS else 'NOT within'} {_GOAL_MS} ms), most "
            f"{at(1):.0f} ms; {states}; {self.empty} empty"
        )


class _Readers:
    """People who read their feeds, each about once a second."""

    def __init__(self, channel: grpc.aio.Channel, cache: Cache, reader_ids: Sequence[int]) -> None:
        self._get_feed: Any = channel.unary_unary("/photomesh.feed.v1.FeedService/GetFeed")
        self._timelines = HomeTimelines(cache)
        self._reader_ids = reader_ids
        self.phase = _Phase("")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, reader_id in enumerate(self._reader_ids):
                group.create_task(self._read(reader_id, is_cold=number % _COLD_SHARE == 0))

    async def _read(self, reader_id: int, *, is_cold: bool) -> None:
        await asyncio.sleep(random.random())
        while True:
            if is_cold:
                with contextlib.suppress(Unavailable):
                    await self._timelines.drop(reader_id)
            phase = self.phase
            began = time.monotonic()
            try:
                answer = pb.GetFeedResponse.FromString(
                    await self._get_feed(
                        b"", metadata=((USER_ID, str(reader_id)),), timeout=_DEADLINE_SECONDS
                    )
                )
                state = pb.FeedState.Name(answer.state).removeprefix("FEED_STATE_")
                phase.empty += not answer.posts
                if answer.state not in _COMPLETE:
                    phase.incomplete_at = began
            except grpc.aio.AioRpcError as error:
                state = error.code().name
                phase.incomplete_at = began
            phase.latencies.append(time.monotonic() - began)
            phase.states[state] += 1
            await asyncio.sleep(random.uniform(0.8, 1.2))


async def _measure(
    stack: Stack, reader_ids: Sequence[int], stalled: float, killed: float, victims: Sequence[str]
) -> None:
    address = f"127.0.0.1:{stack.ports.feed}"
    settings = CacheSettings(valkey_url=stack.valkey_url)
    async with (
        client.channel("feed", address, stack.layout.pki / "gateway") as channel,
        connect(settings) as cache,
    ):
        readers = _Readers(channel, cache, reader_ids)
        reading = asyncio.create_task(readers.run())
        await asyncio.sleep(2 * _CALM_SECONDS)
        await _phase(readers, "all is well", _CALM_SECONDS)
        for victim in victims:
            with stack.stalled(victim):
                await _phase(readers, f"{victim} stalls", stalled)
            await _recover(readers)
            await asyncio.to_thread(stack.kill, victim)
            await _phase(readers, f"{victim} is dead", killed)
            await asyncio.to_thread(stack.start, victim)
            await _recover(readers)
        reading.cancel()
        await asyncio.wait({reading})


async def _recover(readers: _Readers) -> None:
    back_at = time.monotonic()
    phase = await _phase(readers, "... and is back", 2 * _CALM_SECONDS)
    click.echo(f"outages: ... recovered after {max(0.0, phase.incomplete_at - back_at):.1f} s")


async def _phase(readers: _Readers, name: str, seconds: float) -> _Phase:
    phase = readers.phase = _Phase(name)
    await asyncio.sleep(seconds)
    # Who began in this phase belongs to it.
    readers.phase = _Phase("")
    click.echo(f"outages: {phase}")
    return phase
