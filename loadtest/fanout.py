"""Pushing posts into existing, full feeds, compared with plain ZADDs on the same Valkey.

A delivery pushes one post into one feed and trims the feed. The time includes all of fan-out: the
event comes from the broker, graph streams the followers, progress is stored, and at the end fan-out
queries post whether the post is still published. A ZADD adds one post to a plain sorted set
of the same length, by a client that does nothing else and waits for nothing. Sets are packed, like
feeds, or skip lists, which are faster and take seven times the memory.
"""

import asyncio
import contextlib
import itertools
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType

import click
from kafka import KafkaProducer
from photomesh.post.v1.events_pb2 import PostCreated

from deploy.local import proc
from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from loadtest import crowds
from loadtest.pipelines import Pipelines
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.chassis.events.topics import topic_of
from services.domain.timelines import CAP, HomeTimelines
from services.fanout.config import FanoutSettings

_AUTHORS = 4
_TIMEOUT_SECONDS = 120.0
_POLL_SECONDS = 0.01
_DAY_MS = 24 * 3600 * 1000
_CHECK_BATCH = 1_000

_CHUNK: int = FanoutSettings.model_fields["fanout_chunk_size"].default
"""The number of followers in one chunk of an audience."""

_TAIL = 32
"""The number of feeds to watch at the end of each chunk: enough to include every server."""


@click.command("fanout")
@click.option(
    "--followers",
    type=click.IntRange(1),
    default=99_999,
    show_default=True,
    help="The number of followers of each author, all with warm feeds.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--cluster/--no-cluster", default=True, help="Whether to measure three servers too.")
def fanout(followers: int, rounds: int, cluster: bool) -> None:
    """Deliveries/s of the real fan-out, as a ratio to pipelined ZADDs."""
    for servers in ("one server", "three servers") if cluster else ("one server",):
        with (
            tempfile.TemporaryDirectory() as folder,
            Stack(
                Path(folder),
                ports=free_ports(),
                ephemeral=True,
                cache_cluster=servers == "three servers",
            ) as stack,
        ):
            stack.up(["graph", "post", "fanout"])
            for variant in asyncio.run(_measure(stack, followers, rounds)):
                click.echo(f"fanout, {servers}: {variant}")
    if cluster:
        click.echo(
            f"fanout: three servers and their replicas share {os.cpu_count()} processors with all "
            "other processes; they are faster than one only with processors of their own"
        )


@dataclass
class _Variant:
    """Measurements of one way to fill feeds."""

    name: str
    deliveries: int = 0
    """Per measurement."""
    seconds: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    """CPU seconds by process."""
    ceilings: "Sequence[_Variant]" = ()

    @property
    def per_second(self) -> float:
        return self.deliveries / median(self.seconds)

    def __str__(self) -> str:
        rate = f"{self.name}: {median(self.seconds):.2f} s, {self.per_second:,.0f}/s"
        each = ", ".join(
            f"{name} {1e6 * seconds / self.deliveries / len(self.seconds):.1f}"
            for name, seconds in self.cpu.items()
        )
        ratios = "".join(
            f"; {self.per_second / ceiling.per_second:.2f} of {ceiling.name}"
            for ceiling in self.ceilings
        )
        return f"{rate} (CPU µs per delivery: {each}){ratios}"

    @contextlib.contextmanager
    def watched(self, stack: Stack) -> Iterator[None]:
        """Adds the CPU that the processes use during the block."""
        before = _cpu_seconds(stack)
        yield
        for name, seconds in _cpu_seconds(stack).items():
            self.cpu[name] = self.cpu.get(name, 0.0) + seconds - before[name]


async def _measure(stack: Stack, count: int, rounds: int) -> Sequence[_Variant]:
    rng = random.Random(1)
    people = crowds.account_ids(range(_AUTHORS + count))
    authors, readers = people[:_AUTHORS], people[_AUTHORS:]
    began = crowds.now() - _DAY_MS
    # Newer than all posts in the feeds, like real new posts.
    posts = [
        [(crowds.post_id(author, began + number), author) for author in authors]
        for number in range(2 * rounds + 2)
    ]
    old = [crowds.post_id(rng.choice(people), began - 60_000 * n) for n in range(1, 2 * CAP + 1)]
    crowds.remove_limit(stack)
    crowds.add_follows(stack, list(itertools.product(readers, authors)))
    crowds.add_posts(stack, [post for turn in posts for post in turn])
    await crowds.fill_feeds(stack, readers, old)

    settings = CacheSettings(valkey_url=stack.valkey_url, valkey_timeout_seconds=_TIMEOUT_SECONDS)
    zadds = [_Variant(f"ZADDs into {kind}", count) for kind in _PlainSets.PACKED_UP_TO]
    one = _Variant("one post", count, ceilings=zadds)
    several = _Variant(f"{_AUTHORS} posts at a time", _AUTHORS * count, ceilings=zadds)
    with (
        Pipelines(stack.valkey_url) as pipelines,
        contextlib.closing(KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)) as producer,
    ):
        sets = [_PlainSets(kind, pipelines, readers, old[:CAP]) for kind in _PlainSets.PACKED_UP_TO]
        async with connect(settings) as cache:
            pushes = Pushes(producer, HomeTimelines(cache), readers)
            # In turns, so that machine load affects all equally. The first turn is a warm-up.
            for turn in range(rounds + 1):
                for variant, pushed in ((one, posts[2 * turn][:1]), (several, posts[2 * turn + 1])):
                    with variant.watched(stack) if turn else contextlib.nullcontext():
                        variant.seconds.append(await pushes.push(pushed))
                for variant, plain in zip(zadds, sets, strict=True):
                    with variant.watched(stack) if turn else contextlib.nullcontext():
                        variant.seconds.append(plain.add(posts[2 * turn][0][0]))
                    plain.trim()
            await pushes.check([post_id for post_id, _ in posts[-1]])
    variants = (*zadds, one, several)
    for variant in variants:
        del variant.seconds[0]
    return variants


class Pushes:
    """Posts, from their events to the last feed."""

    def __init__(
        self, producer: KafkaProducer, homes: HomeTimelines, readers: Sequence[int]
    ) -> None:
        self._producer = producer
        self._homes = homes
        self._readers = readers
        # Fan-out processes followers in ascending order of their ids.
        bounds = [*range(_CHUNK, len(readers), _CHUNK), len(readers)]
        self._watched = [readers[max(0, bound - _TAIL) : bound] for bound in bounds]

    async def push(self, posts: Sequence[tuple[int, int]]) -> float:
        """Publishes posts; returns the seconds until all feeds have them."""
        began = time.monotonic()
        for post_id, author_id in posts:
            event = PostCreated(post_id=post_id, author_id=author_id)
            self._producer.send(
                topic_of(PostCreated).name,
                key=str(author_id).encode(),
                value=event.SerializeToString(),
            )
        post_ids = [post_id for post_id, _ in posts]
        # Sequentially, so that polling costs Valkey almost nothing.
        for *others, last in self._watched:
            while await self._without([last], post_ids) or await self._without(others, post_ids):
                if time.monotonic() - began > _TIMEOUT_SECONDS:
                    raise click.ClickException(
                        f"the feed of {last} has not received a post after {_TIMEOUT_SECONDS:.0f} s"
                    )
                await asyncio.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    async def check(self, post_ids: Sequence[int]) -> None:
        """Checks every feed; watching checks only some."""
        for start in range(0, len(self._readers), _CHECK_BATCH):
            readers = self._readers[start : start + _CHECK_BATCH]
            if missing := await self._without(readers, post_ids):
                raise click.ClickException(f"{len(missing)} feeds lack a post")

    async def _without(self, readers: Sequence[int], post_ids: Sequence[int]) -> Sequence[int]:
        feeds = await asyncio.gather(
            *(self._homes.read(reader, 0, 2 * _AUTHORS) for reader in readers)
        )
        return [
            reader
            for reader, feed in zip(readers, feeds, strict=True)
            if not set(post_ids).issubset(feed.post_ids)
        ]


class _PlainSets:
    """Plain sorted sets with as many posts as the feeds."""

    # In this order, because a set that has become a skip list remains one.
    PACKED_UP_TO = MappingProxyType({"skip lists": 0, "packed sets": 2 * CAP})

    def __init__(
        self, kind: str, pipelines: Pipelines, owners: Sequence[int], posts: Sequence[int]
    ) -> None:
        self._name = kind.replace(" ", "-")
        self._pipelines = pipelines
        self._owners = owners
        pipelines.configure("zset-max-listpack-entries", self.PACKED_UP_TO[kind])
        first = owners[0]
        for post in posts:
            pipelines.run([(first, self._words(first, post))])
        crowds.copy_key(pipelines, self._key(first), first, owners[1:])

    def add(self, post: int) -> float:
        """Adds a post to each set; returns the seconds that it took."""
        return self._pipelines.run([(owner, self._words(owner, post)) for owner in self._owners])

    def trim(self) -> None:
        self._pipelines.run(
            [(owner, ("ZREMRANGEBYRANK", self._key(owner), CAP, -1)) for owner in self._owners]
        )

    def _words(self, owner: int, post: int) -> tuple[str | int, ...]:
        # The newest first, where the server starts its search: the other order is slower.
        return "ZADD", self._key(owner), -(post >> 10), (1 << 63) - 1 - post

    def _key(self, owner: int) -> str:
        return f"{self._name}:{{{owner}}}"


def _cpu_seconds(stack: Stack) -> dict[str, float]:
    """Returns the CPU seconds that Valkey and fan-out have used so far."""
    used = {"Valkey": 0.0, "fan-out": 0.0}
    for name in stack.processes:
        part = {"valkey": "Valkey", "fanout": "fan-out"}.get(name.partition("-")[0])
        pid = stack.pid(name)
        if part and pid:
            used[part] += proc.cpu_seconds(pid)
    return used
