"""Watching feeds: how long a post takes to reach all watching followers of its author.

The time counts from the event to the last message read by the last watcher. It includes the whole
path: the event comes from the broker, fan-out pushes the post, and each feed process detects the
change and reads the post.
"""

import asyncio
import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import grpc
import uvloop
from kafka import KafkaProducer
from photomesh.feed.v1 import feed_service_pb2 as pb
from photomesh.post.v1.events_pb2 import PostCreated

from deploy.local.ports import free_ports
from deploy.local.readiness import GrpcReady
from deploy.local.stack import Stack
from loadtest import crowds
from services.chassis.context import USER_ID
from services.chassis.events.topics import topic_of
from services.chassis.rpc import client
from services.domain.timelines import CAP

_WATCHERS_EACH = 2_500
"""The number of watchers at one process, which serves no more."""

_CONNECTIONS = 4
_CONCURRENT_BEGINS = 100
_TIMEOUT_SECONDS = 60.0

_HEARTBEAT_BYTES = pb.WatchFeedResponse(resume_after_post_id=(1 << 63) - 1).ByteSize()
"""An upper bound for heartbeats; every post is longer."""


@click.command("watchers")
@click.option(
    "--count", default=10_000, show_default=True, help="The number of people who watch their feeds."
)
@click.option("--posts", default=5, show_default=True, help="The number of posts to measure.")
def watchers(count: int, posts: int) -> None:
    """Seconds from a post to the last of the followers who watch their feeds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        feeds = _more_feeds(stack, -(-count // _WATCHERS_EACH))
        stack.up(["account", "graph", "post", "fanout", *feeds])
        click.echo(
            f"watchers: {count} watchers on {len(feeds)} feed processes; "
            f"{uvloop.run(_measure(stack, feeds, count, posts))}"
        )


def _more_feeds(stack: Stack, count: int) -> dict[str, int]:
    """Adds feed processes to the table; returns the ports of all."""
    ports = {"feed": stack.ports.grpc["feed"]}
    for number in range(2, count + 1):
        free = free_ports()
        usual = stack.processes["feed"]
        name = f"feed-{number}"
        stack.processes[name] = dataclasses.replace(
            usual,
            name=name,
            ports={"gRPC": free.grpc["feed"], "REST": free.rest["feed"]},
            ready=GrpcReady(free.grpc["feed"], "feed", stack.operator),
            environment={
                **usual.environment,
                "PHOTOMESH_LISTEN": free.address("feed"),
                "PHOTOMESH_REST_LISTEN": f"127.0.0.1:{free.rest['feed']}",
            },
        )
        ports[name] = free.grpc["feed"]
    return ports


async def _measure(stack: Stack, feeds: dict[str, int], count: int, posts: int) -> str:
    author_id, *readers = crowds.account_ids(range(count + 1))
    now = crowds.now()
    old = [crowds.post_id(author_id, now - 60_000 * (20 + n)) for n in range(2 * CAP)]
    crowds.remove_limit(stack)
    crowds.add_accounts(stack, [author_id, *readers])
    crowds.add_follows(stack, [(reader_id, author_id) for reader_id in readers])
    crowds.add_posts(stack, [(post_id, author_id) for post_id in old])
    await crowds.fill_feeds(stack, readers, old)

    crowd = _Crowd(count)
    with contextlib.closing(KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)) as producer:
        async with contextlib.AsyncExitStack() as exits:
            channels = [
                [
                    await exits.enter_async_context(
                        client.channel("feed", f"127.0.0.1:{port}", stack.layout.pki / "gateway")
                    )
                    for _ in range(_CONNECTIONS)
                ]
                for port in feeds.values()
            ]
            watching = await crowd.begin(channels, readers)
            delays = [await crowd.publish(stack, producer, author_id) for _ in range(posts)]
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
    first, half, last = (sorted(each)[len(delays) // 2] for each in zip(*delays, strict=True))
    return (
        f"a post reaches the first after {first:.2f} s, half of them after {half:.2f} s, all after "
        f"{last:.2f} s (medians of {posts} posts)"
    )


class _Crowd:
    """People who watch their feeds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._begun = asyncio.Semaphore(0)
        self._reached_at: list[float] = []
        self._all_reached = asyncio.Event()

    async def begin(
        self, channels: Sequence[Sequence[grpc.aio.Channel]], readers: Sequence[int]
    ) -> "list[asyncio.Task[None]]":
        """Starts all watches; returns when each has received its first message."""
        tasks = []
        for number, reader_id in enumerate(readers):
            process = channels[number % len(channels)]
            channel = process[number // len(channels) % len(process)]
            tasks.append(asyncio.create_task(self._watch(channel, reader_id)))
            if number >= _CONCURRENT_BEGINS:
                await asyncio.wait_for(self._begun.acquire(), _TIMEOUT_SECONDS)
        for _ in range(min(_CONCURRENT_BEGINS, len(readers))):
            await asyncio.wait_for(self._begun.acquire(), _TIMEOUT_SECONDS)
        return tasks

    async def _watch(self, channel: grpc.aio.Channel, reader_id: int) -> None:
        """Watches, and resumes an interrupted watch, like every client."""
        # Raw bytes, because in production each watcher's device does the parsing.
        watch: Any = channel.unary_stream("/photomesh.feed.v1.FeedService/WatchFeed")
        message = b""
        while True:
            resume = pb.WatchFeedResponse.FromString(message).resume_after_post_id
            request = pb.WatchFeedRequest(after_post_id=resume).SerializeToString()
            has_begun = bool(message)
            try:
                async for message in watch(request, metadata=((USER_ID, str(reader_id)),)):
                    if not has_begun:
                        self._begun.release()
                        has_begun = True
                    if len(message) > _HEARTBEAT_BYTES:
                        self._reached_at.append(time.monotonic())
                        if len(self._reached_at) == self._count:
                            self._all_reached.set()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1.5))

    async def publish(
        self, stack: Stack, producer: KafkaProducer, author_id: int
    ) -> tuple[float, float, float]:
        """Publishes a post; returns the seconds until the first, half, and the last received it."""
        post_id = crowds.post_id(author_id, crowds.now())
        crowds.add_posts(stack, [(post_id, author_id)])
        self._reached_at.clear()
        self._all_reached.clear()
        began = time.monotonic()
        producer.send(
            topic_of(PostCreated).name,
            key=str(author_id).encode(),
            value=PostCreated(post_id=post_id, author_id=author_id).SerializeToString(),
        )
        try:
            await asyncio.wait_for(self._all_reached.wait(), _TIMEOUT_SECONDS)
        except TimeoutError:
            reached = len(self._reached_at)
            raise click.ClickException(
                f"a post reached {reached} of {self._count} watchers in {_TIMEOUT_SECONDS:.0f} s"
            ) from None
        delays = [at - began for at in self._reached_at]
        return delays[0], delays[len(delays) // 2], delays[-1]
