"""The Valkey memory of one home feed entry: in a list, as feeds are, and in sorted sets.

Both are packed into one block of bytes while short. A sorted set is packed up to
`zset-max-listpack-entries`; beyond that, each member is a node of a skip list and also in a hash
table. The result includes everything that Valkey allocates: names, rules, TTLs, and allocator
overhead.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from loadtest import crowds
from loadtest.pipelines import Pipelines
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.domain.timelines import CAP, HomeTimelines
from services.domain.timelines.layout import FEED

_FEEDS_OF_MANY = 500_000_000
_GOAL_BYTES = 20


@click.command("memory")
@click.option("--feeds", type=click.IntRange(100), default=10_000, show_default=True)
def memory(feeds: int) -> None:
    """Valkey's memory in bytes per feed entry, compared with sorted sets."""
    readers = crowds.account_ids(range(feeds))
    posts = [crowds.post_id(readers[0], crowds.now() - 60_000 * n) for n in range(2 * CAP)]
    for name, packed_up_to in (
        ("feeds with their rules", None),
        ("packed sorted sets", CAP),
        ("sorted sets as skip lists", 0),
    ):
        with (
            tempfile.TemporaryDirectory() as folder,
            Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
        ):
            stack.up(["valkey"])
            crowds.remove_limit(stack)
            with Pipelines(stack.valkey_url) as pipelines:
                before = _used(pipelines)
                entries = float(CAP)
                if packed_up_to is None:
                    entries = asyncio.run(_fill_feeds(stack, readers, posts))
                else:
                    pipelines.configure("zset-max-listpack-entries", packed_up_to)
                    _fill_sorted_sets(pipelines, readers, posts[:CAP])
                used = _used(pipelines) - before
        click.echo(
            f"memory: {name}: {used / feeds / entries:.1f} bytes per entry (goal: at most "
            f"{_GOAL_BYTES}), {used / feeds:,.0f} per feed of {entries:.0f} entries; "
            f"{used / feeds * _FEEDS_OF_MANY / 2**40:.1f} TiB for {_FEEDS_OF_MANY // 10**6} M feeds"
        )


async def _fill_feeds(stack: Stack, readers: Sequence[int], posts: Sequence[int]) -> float:
    """Returns the average number of entries per feed."""
    await crowds.fill_feeds(stack, readers, posts)
    async with connect(CacheSettings(valkey_url=stack.valkey_url)) as cache:
        homes = HomeTimelines(cache)
        some = readers[: len(readers) // 10]
        lengths = [len((await homes.read(reader, 0, 2 * CAP)).post_ids) for reader in some]
    return sum(lengths) / len(lengths)


def _fill_sorted_sets(pipelines: Pipelines, readers: Sequence[int], posts: Sequence[int]) -> None:
    first, *others = readers
    key = f"{FEED}:{{{first}}}"
    # All members share one score, which takes fewer bytes than a time; the members set the order.
    pipelines.run([(first, ("ZADD", key, 0, (1 << 63) - 1 - post)) for post in posts])
    crowds.copy_key(pipelines, key, first, others)


def _used(pipelines: Pipelines) -> int:
    info = pipelines.ask(pipelines.servers[0], "INFO", "memory")
    return int(info.split(b"used_memory:")[1].split()[0])
