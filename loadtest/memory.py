"""What an entry of a home feed costs in Valkey's memory, packed and not.

Sorted sets are packed up to `zset-max-listpack-entries`: one block of bytes that is searched from
its head. Beyond, each member is a node of a skip list, and lies in a hash table, too. All that
Valkey takes is counted: names, rules, times to live, what the allocator rounds up to.
"""

import asyncio
import tempfile
from pathlib import Path

import click

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from loadtest import crowds
from loadtest.pipelines import Pipelines
from services.common.cache import connect
from services.common.config import CacheSettings
from services.common.timelines import CAP, HomeTimelines

_FEEDS_OF_MANY = 500_000_000
_GOAL_BYTES = 20


@click.command("memory")
@click.option("--feeds", type=click.IntRange(100), default=10_000, show_default=True)
def memory(feeds: int) -> None:
    """Bytes of Valkey's memory for an entry of a feed, packed and as a skip list."""
    for name, packed_up_to in (("packed, as configured", None), ("as skip lists", 0)):
        with (
            tempfile.TemporaryDirectory() as folder,
            Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
        ):
            stack.up(["valkey"])
            used, entries = asyncio.run(_measure(stack, feeds, packed_up_to))
        each = used / feeds / entries
        click.echo(
            f"memory: {name}: {each:.1f} bytes an entry (at most {_GOAL_BYTES} are wanted), "
            f"{used / feeds:,.0f} a feed of {entries:.0f}; "
            f"{used / feeds * _FEEDS_OF_MANY / 2**40:.1f} TiB for {_FEEDS_OF_MANY // 10**6} M feeds"
        )


async def _measure(stack: Stack, feeds: int, packed_up_to: int | None) -> tuple[int, float]:
    """Returns how many bytes the feeds take, and how many entries each has, on average."""
    readers = crowds.account_ids(range(feeds))
    posts = [crowds.post_id(readers[0], crowds.now() - 60_000 * n) for n in range(2 * CAP)]
    with Pipelines(stack.valkey_url) as pipelines:
        [server] = pipelines.servers

        def used() -> int:
            info = pipelines.ask(server, "INFO", "memory")
            return int(info.split(b"used_memory:")[1].split()[0])

        crowds.remove_limit(stack)
        if packed_up_to is not None:
            pipelines.ask(server, "CONFIG", "SET", "zset-max-listpack-entries", packed_up_to)
        before = used()
        await crowds.fill_feeds(stack, readers, posts)
        after = used()
    async with connect(CacheSettings(valkey_url=stack.valkey_url)) as cache:
        homes = HomeTimelines(cache)
        some = readers[: feeds // 10]
        lengths = [len((await homes.read(reader, 0, 2 * CAP)).post_ids) for reader in some]
    return after - before, sum(lengths) / len(lengths)
