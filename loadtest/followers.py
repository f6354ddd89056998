"""How fast graph streams an account's followers, compared with PostgreSQL's COPY of the same rows.

COPY is measured twice: to a client, and to /dev/null on the server. StreamFollowers does more than
both: it packs, encrypts, and decodes the messages.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median

import click
import psycopg
from photomesh.graph.v1 import graph_internal_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from psycopg import sql

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from services.chassis.database.ids import shard_of
from services.chassis.rpc import client

_STAR = 77 << 23 | 4711 << 10
_STAR_AT = {"shard": shard_of(_STAR), "star": _STAR}
_ROUNDS = 7

# Like account ids: each with a distinct time, on any shard.
_FILL = sql.SQL("""
    INSERT INTO followers (shard, followee_id, follower_id)
    SELECT {shard}, {star}, (number << 23) | ((number * 7919 & 8191) << 10)
      FROM generate_series(1, {followers}::bigint) AS number
""")

_COPY = sql.SQL("""
    COPY (
        SELECT follower_id FROM followers
         WHERE shard = {shard} AND followee_id = {star}
         ORDER BY follower_id
    ) TO {target} (FORMAT binary)
""")


@click.command()
@click.option("--followers", "count", type=click.IntRange(1), default=1_000_000, show_default=True)
def followers(count: int) -> None:
    """Streams an account's followers, as a ratio to PostgreSQL's COPY."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        stack.up(["graph"])
        with psycopg.connect(stack.database_url("graph"), autocommit=True) as database:
            database.execute("SET statement_timeout = 0")
            database.execute(_FILL.format(**_STAR_AT, followers=count))
            # Otherwise the first reads would write hint bits into every page.
            database.execute("VACUUM ANALYZE followers")
        asyncio.run(_measure(stack, count))


async def _measure(stack: Stack, count: int) -> None:
    address = stack.ports.address("graph")
    own_database = stack.superuser_url.rpartition("/")[0] + "/photomesh"
    async with client.channel("graph", address, stack.layout.pki / "fanout") as channel:
        graph = GraphInternalServiceStub(channel)

        async def stream() -> int:
            request = graph_pb.StreamFollowersRequest(followee_id=_STAR)
            return sum([len(batch.follower_ids) async for batch in graph.StreamFollowers(request)])

        async def copy() -> int:
            return await asyncio.to_thread(_copy, stack.database_url("graph"))

        async def copy_to_null() -> int:
            return await asyncio.to_thread(_copy_to_null, own_database)

        variants: Mapping[str, Callable[[], Awaitable[int]]] = {
            "StreamFollowers": stream,
            "COPY to a client": copy,
            "COPY to /dev/null": copy_to_null,
        }
        speeds: dict[str, list[float]] = {variant: [] for variant in variants}
        # In turns, so that machine load affects all equally.
        for _ in range(_ROUNDS):
            for variant, read in variants.items():
                began = time.monotonic()
                if await read() != count:
                    raise RuntimeError(f"{variant} did not return {count} ids")
                speeds[variant].append(count / (time.monotonic() - began))
    streamed = median(speeds["StreamFollowers"])
    for variant, measured in speeds.items():
        rate = f"{median(measured) / 1e6:.2f} M ids/s"
        ratio = "" if variant == "StreamFollowers" else f"; ratio {streamed / median(measured):.2f}"
        click.echo(f"followers: {count:,}: {variant}: {rate}{ratio}")


def _copy(database_url: str) -> int:
    with (
        psycopg.connect(database_url) as database,
        database.cursor() as cursor,
        cursor.copy(_COPY.format(**_STAR_AT, target=sql.SQL("STDOUT"))) as copy,
    ):
        size = sum(len(data) for data in copy)
    # A header of 19 bytes, 14 bytes for each row, a trailer of 2 bytes.
    return (size - 21) // 14


def _copy_to_null(database_url: str) -> int:
    with psycopg.connect(database_url) as database:
        database.execute("SET search_path = graph")
        return database.execute(_COPY.format(**_STAR_AT, target="/dev/null")).rowcount
