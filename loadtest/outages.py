"""Reading feeds while a dependency is unavailable: stalled as if overloaded, and killed.

Readers keep reading about once a second. A tenth of them find their feeds cold each time, while the
cache is available.
"""

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
from photomesh.feed.v1 import feed_service_pb2 as pb

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from loadtest import crowds
from services.chassis.cache.client import Cache, connect
from services.chassis.config import CacheSettings
from services.chassis.context import USER_ID
from services.chassis.errors import Unavailable
from services.chassis.rpc import client
from services.domain.timelines import HomeTimelines

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
@click.option(
    "--readers",
    default=200,
    show_default=True,
    help="The number of people who each read once a second.",
)
@click.option(
    "--stalled", default=30.0, show_default=True, help="How many seconds each victim stalls."
)
@click.option(
    "--killed", default=10.0, show_default=True, help="How many seconds each victim is down."
)
@click.option(
    "--victims",
    default=",".join(_VICTIMS),
    show_default=True,
    help="The processes to stall and kill.",
)
def outages(readers: int, stalled: float, killed: float, victims: str) -> None:
    """Latency of the feed while graph, post, the cache, or the database is unavailable."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        stack.up(["account", "graph", "post", "feed"])
        reader_ids = _fill(stack, readers)
        asyncio.run(_measure(stack, reader_ids, stalled, killed, victims.split(",")))


# -- Data ------------------------------------------------------------------------------------


def _fill(stack: Stack, readers: int) -> Sequence[int]:
    """Writes people, follows, and posts as rows; returns the readers."""
    rng = random.Random(1)
    people = crowds.account_ids(range(_AUTHORS + readers))
    authors, reader_ids = people[:_AUTHORS], people[_AUTHORS:]
    # Some authors have many more followers than others.
    weights = [1 / (rank + 10) for rank in range(_AUTHORS)]
    crowds.add_accounts(stack, people)
    crowds.add_follows(
        stack,
        [
            (reader_id, author_id)
            for reader_id in reader_ids
            for author_id in set(rng.choices(authors, weights, k=_FOLLOWEES))
        ],
    )
    crowds.make_celebrities(stack, authors[:_CELEBRITIES])
    crowds.add_posts(
        stack,
        [
            (crowds.post_id(author_id, crowds.now() - rng.randrange(10**9)), author_id)
            for author_id in authors
            for _ in range(_POSTS_EACH)
        ],
    )
    return reader_ids


# -- Readers ---------------------------------------------------------------------------------


@dataclass
class _Phase:
    """What readers observed in one phase."""

    name: str
    latencies: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    incomplete_at: float = 0.0
    """When the last incomplete page was requested."""

    def __str__(self) -> str:
        ordered = sorted(self.latencies)

        def at(share: float) -> float:
            return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        states = ", ".join(f"{count} {state}" for state, count in self.states.most_common())
        return (
            f"{self.name}: {len(ordered)} pages: p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms "
            f"({'within' if at(0.99) < _GOAL_MS else 'NOT within'} {_GOAL_MS} ms), maximum "
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
    address = stack.ports.address("feed")
    settings = CacheSettings(valkey_url=stack.valkey_url)
    async with (
        client.channel("feed", address, stack.layout.pki / "gateway") as channel,
        connect(settings) as cache,
    ):
        readers = _Readers(channel, cache, reader_ids)
        reading = asyncio.create_task(readers.run())
        await asyncio.sleep(2 * _CALM_SECONDS)
        await _phase(readers, "no outage", _CALM_SECONDS)
        for victim in victims:
            with stack.stalled(victim):
                await _phase(readers, f"{victim} stalled", stalled)
            await _recover(readers)
            await asyncio.to_thread(stack.kill, victim)
            await _phase(readers, f"{victim} down", killed)
            await asyncio.to_thread(stack.start, victim)
            await _recover(readers)
        reading.cancel()
        await asyncio.wait({reading})


async def _recover(readers: _Readers) -> None:
    back_at = time.monotonic()
    phase = await _phase(readers, "... after its return", 2 * _CALM_SECONDS)
    click.echo(f"outages: ... recovered after {max(0.0, phase.incomplete_at - back_at):.1f} s")


async def _phase(readers: _Readers, name: str, seconds: float) -> _Phase:
    phase = readers.phase = _Phase(name)
    await asyncio.sleep(seconds)
    # A request belongs to the phase in which it started.
    readers.phase = _Phase("")
    click.echo(f"outages: {phase}")
    return phase
