"""How reads and fan-out scale with people, followees, and followers.

One mesh grows from a thousand people to a million, all with warm feeds; each follows two accounts.
Every step measures the same: warm pages, pages of feeds that must be built first, and a post to a
thousand followers. The charts have logarithmic axes: a flat line means constant cost, and a slope
of one decade per decade means proportional cost.
"""

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from kafka import KafkaProducer
from photomesh.feed.v1 import feed_service_pb2 as pb

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from loadtest import crowds
from loadtest.charts import Chart, svg
from loadtest.fanout import Pushes
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.chassis.context import USER_ID
from services.chassis.rpc import client
from services.domain.timelines import HomeTimelines

_FEW = 1_000
"""The initial number of people, and the number of followers of each step's post."""

_USUAL_FOLLOWEES = 200
_FOLLOWEES = (10, 100, 1_000, 5_000)
_FOLLOWERS = (100, _FEW, 10_000, 99_999)
"""One more would make the author a celebrity, whose posts are not pushed."""

_AUTHORS = max(_FOLLOWEES)
_POSTS_EACH = 2

_READERS = 20
"""The number of measured readers of each type."""

_PAGES = 25
"""The number of warm pages that each of them reads."""

_PAGE = 20
_PUSHES = 5
_HOUR_MS = 3_600_000
_DEADLINE_SECONDS = 10.0
_WHOLE = (pb.FEED_STATE_COMPLETE, pb.FEED_STATE_REGENERATING)

_CROWD = 10_000
"""The number of the crowd's first account. Accounts before it are measured or followed."""


@click.command("growth")
@click.option(
    "--most",
    type=click.IntRange(_FEW),
    default=1_000_000,
    show_default=True,
    help="The largest number of people; each step has ten times as many.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("var/growth.svg"),
    show_default=True,
    help="The file to write the charts to.",
)
def growth(most: int, plot: Path) -> None:
    """Read latency and fan-out as people, followees, and followers grow; draws charts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        stack.up(["account", "graph", "post", "feed", "fanout"])
        charts = asyncio.run(_measure(stack, most))
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(svg(charts))
    click.echo(f"growth: charts are in {plot}")


async def _measure(stack: Stack, most: int) -> Sequence[Chart]:
    settings = CacheSettings(valkey_url=stack.valkey_url, valkey_timeout_seconds=60)
    address = stack.ports.address("feed")
    with contextlib.closing(KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)) as producer:
        async with (
            client.channel("feed", address, stack.layout.pki / "gateway") as channel,
            connect(settings) as cache,
        ):
            world = _World(stack, channel, HomeTimelines(cache), producer)
            await world.begin()
            by_people = await _over_people(world, most)
            by_followees = await _over_followees(world)
            by_followers = await _over_followers(world, most)
    return [
        Chart("As people grow", "people", "ms", by_people),
        Chart("As followees grow", "followees of the reader", "ms", by_followees),
        Chart("As followers grow", "followers with a warm feed", "ms", by_followers),
    ]


Lines = dict[str, list[tuple[float, float]]]


async def _over_people(world: "_World", most: int) -> Lines:
    lines: Lines = {}
    people = _FEW
    while people <= most:
        await world.grow_to(people)
        warm, slow, cold = await world.pages(world.usual_readers)
        pushed = await world.push(_FEW)
        for name, value in (
            ("a warm page, median", warm),
            ("a warm page, p99", slow),
            ("a cold feed, median", cold),
            (f"a post to {_FEW:,} followers, median", pushed),
        ):
            lines.setdefault(name, []).append((people, value))
        click.echo(
            f"growth: {people:,} people: a warm page {warm:.1f} ms (p99 {slow:.1f}), a cold feed "
            f"{cold:.0f} ms, a post to {_FEW:,} followers {pushed:.0f} ms"
        )
        people *= 10
    return lines


async def _over_followees(world: "_World") -> Lines:
    lines: Lines = {}
    for followees, readers in world.readers_of.items():
        warm, slow, cold = await world.pages(readers)
        for name, value in (
            ("a warm page, median", warm),
            ("a warm page, p99", slow),
            ("a cold feed, median", cold),
        ):
            lines.setdefault(name, []).append((followees, value))
        click.echo(
            f"growth: {followees:,} followees: a warm page {warm:.1f} ms (p99 {slow:.1f}), a cold "
            f"feed {cold:.0f} ms"
        )
    return lines


async def _over_followers(world: "_World", most: int) -> Lines:
    line: list[tuple[float, float]] = []
    for followers in _FOLLOWERS:
        if followers <= most:
            pushed = await world.push(followers)
            line.append((followers, pushed))
            click.echo(f"growth: a post to {followers:,} followers {pushed:.0f} ms")
    return {"a post, from its event to the last feed, median": line}


class _World:
    """The mesh and its accounts.

    Measured accounts are not part of the crowd, so that only the crowd grows.
    """

    def __init__(
        self, stack: Stack, channel: Any, homes: HomeTimelines, producer: KafkaProducer
    ) -> None:
        self._stack = stack
        self._get_feed: Any = channel.unary_unary("/photomesh.feed.v1.FeedService/GetFeed")
        self._homes = homes
        self._producer = producer
        known = iter(crowds.account_ids(range(_CROWD)))
        self._authors = list(itertools.islice(known, _AUTHORS))
        self.usual_readers = list(itertools.islice(known, _READERS))
        self.readers_of = {count: list(itertools.islice(known, _READERS)) for count in _FOLLOWEES}
        self._stars = dict(zip(_FOLLOWERS, known, strict=False))
        self._crowd: list[int] = []
        self._began = crowds.now() - _HOUR_MS
        self._moments = itertools.count(self._began)

    async def begin(self) -> None:
        """Creates all accounts that are not part of the crowd."""
        rng = random.Random(1)
        readers = {_USUAL_FOLLOWEES: self.usual_readers, **self.readers_of}
        self._posts = [
            (crowds.post_id(author, self._began - rng.randrange(_HOUR_MS)), author)
            for author in self._authors
            for _ in range(_POSTS_EACH)
        ]
        crowds.add_accounts(
            self._stack,
            [*self._authors, *itertools.chain(*readers.values()), *self._stars.values()],
        )
        crowds.add_follows(
            self._stack,
            [
                (reader, author)
                for followees, group in readers.items()
                for reader in group
                for author in rng.sample(self._authors, followees)
            ],
        )
        crowds.add_posts(self._stack, self._posts)

    async def grow_to(self, people: int) -> None:
        """Grows the crowd; all of its feeds are warm."""
        numbers = range(_CROWD + len(self._crowd), _CROWD + people)
        crowds.generate_accounts(self._stack, numbers, followees=2, authors=_AUTHORS)
        newcomers = crowds.account_ids(numbers)
        newest = sorted((post for post, _ in self._posts), reverse=True)[:_PAGE]
        await crowds.fill_feeds(self._stack, newcomers, newest)
        before = len(self._crowd)
        self._crowd += newcomers
        for followers, star in self._stars.items():
            if before < followers <= people:
                crowds.add_follows(
                    self._stack, [(reader, star) for reader in self._crowd[:followers]]
                )

    async def pages(self, readers: Sequence[int]) -> tuple[float, float, float]:
        """Returns ms: median and 99 % of a warm page, median of a feed that must be built."""
        for reader in readers:
            await self._page(reader)
        cold = []
        for reader in readers:
            await self._homes.drop(reader)
            cold.append(await self._page(reader))
        warm = sorted([await self._page(reader) for reader in [*readers] * _PAGES])
        return median(warm), warm[len(warm) * 99 // 100], median(cold)

    async def push(self, followers: int) -> float:
        """Returns the median time in ms for a post to reach so many feeds."""
        star = self._stars[followers]
        moments = itertools.islice(self._moments, _PUSHES + 1)
        posts = [(crowds.post_id(star, moment), star) for moment in moments]
        crowds.add_posts(self._stack, posts)
        pushes = Pushes(self._producer, self._homes, self._crowd[:followers])
        # The first push is a warm-up.
        seconds = [await pushes.push([post]) for post in posts][1:]
        await pushes.check([post_id for post_id, _ in posts])
        return 1000 * median(seconds)

    async def _page(self, reader: int) -> float:
        began = time.monotonic()
        answer = pb.GetFeedResponse.FromString(
            await self._get_feed(b"", metadata=((USER_ID, str(reader)),), timeout=_DEADLINE_SECONDS)
        )
        milliseconds = 1000 * (time.monotonic() - began)
        if len(answer.posts) != _PAGE or answer.state not in _WHOLE:
            state = pb.FeedState.Name(answer.state)
            raise click.ClickException(f"a page has {len(answer.posts)} posts and state {state}")
        return milliseconds
