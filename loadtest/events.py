"""Events from commit to handler, compared with plain kafka-python.

Replicas commit events in transactions of 100 and relay them to the broker, like the processes of a
service; one consumer handles them. The ceiling is one kafka-python producer and one kafka-python
consumer on the same broker that do nothing else, with records of the same content. Each process has
its own interpreter. The variants take turns, so that machine load affects all of them equally.
"""

import asyncio
import contextlib
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any

import click
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from photomesh.graph.v1.events_pb2 import FollowChanged

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from loadtest import crowds
from services.chassis import context
from services.chassis.config import DatabaseSettings, KafkaSettings
from services.chassis.database.pool import Database
from services.chassis.events.consumer import BatchSubscription, Consumer, Subscription
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.events.topics import Topic, key_of, topic_of

_CEILING = Topic("events_ceiling", partitions=topic_of(FollowChanged).partitions)
_OWNERS = 1_000
_TRANSACTION = 100
_TIMEOUT_SECONDS = 300.0

_processes = multiprocessing.get_context("spawn")


@click.command("events")
@click.option("--count", type=click.IntRange(1), default=50_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def events(count: int, rounds: int) -> None:
    """Events/s from commit to handled, as a ratio to a kafka-python producer and consumer."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), ports=free_ports(), ephemeral=True) as stack,
    ):
        stack.up(["postgres", "provision-topics", "provision-database"])
        parts = _Parts(
            KafkaSettings(kafka_bootstrap=stack.kafka_bootstrap),
            DatabaseSettings(database_url=stack.database_url("graph")),  # type: ignore[arg-type]
        )
        _make_topic(parts.kafka, _CEILING)
        ceiling = _Variant("kafka-python alone", [_produce], _consume_plainly)
        variants = [
            _Variant(f"{number} relays, {kind} handler", [_replicate] * number, consume)
            for number in (1, 2)
            for kind, consume in (("single", _consume_singly), ("batch", _consume_batches))
        ]
        # The first round is a warm-up.
        for turn in range(rounds + 1):
            for variant in (ceiling, *variants):
                seconds, cpu = variant.run(parts, count)
                if turn:
                    variant.rates.append(count / seconds)
                    variant.cpu.append([1e6 * each / count for each in cpu])
    click.echo(f"events: {count:,} events of {_OWNERS:,} owners, median of {rounds} rounds:")
    for variant in (ceiling, *variants):
        ratios = [mine / most for mine, most in zip(variant.rates, ceiling.rates, strict=True)]
        ratio = f"; {median(ratios):.2f} of the ceiling" if variant is not ceiling else ""
        used = " + ".join(f"{median(each):.0f}" for each in zip(*variant.cpu, strict=True))
        click.echo(
            f"  {variant.name}: {median(variant.rates):,.0f}/s{ratio} (CPU µs per event: {used})"
        )


@dataclass(frozen=True)
class _Parts:
    kafka: KafkaSettings
    database: DatabaseSettings


@dataclass(frozen=True)
class _Signals:
    """Signals between the processes of one measurement."""

    ready: Any
    """A semaphore, released once by each ready process."""
    go: Event
    stop: Event
    done: "Queue[float]"
    """When all events were handled, in monotonic time."""
    cpu: "Queue[tuple[int, float]]"
    """Each process's number and its CPU seconds from `go` to `stop`."""


_Role = Callable[[_Parts, _Signals, Sequence[FollowChanged]], None]


@dataclass
class _Variant:
    """One variant of producers and consumer."""

    name: str
    producers: Sequence[_Role]
    consumer: _Role
    rates: list[float] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    """For each round, the CPU µs per event of each process; the consumer is last."""

    def run(self, parts: _Parts, count: int) -> tuple[float, list[float]]:
        """Returns the seconds from the first event to the last handled, and the CPU by process."""
        owners = crowds.account_ids(range(_OWNERS))
        made = [
            FollowChanged(follower_id=owners[n % _OWNERS], followee_id=time.monotonic_ns() + n)
            for n in range(count)
        ]
        signals = _Signals(
            ready=_processes.Semaphore(0),
            go=_processes.Event(),
            stop=_processes.Event(),
            done=_processes.Queue(),
            cpu=_processes.Queue(),
        )
        share = -(-count // len(self.producers))
        roles = [
            *(
                (role, made[number * share : (number + 1) * share])
                for number, role in enumerate(self.producers)
            ),
            (self.consumer, made),
        ]
        with _started(
            [
                _processes.Process(
                    target=_run, args=(number, role, parts, signals, _packed(mine)), daemon=True
                )
                for number, (role, mine) in enumerate(roles)
            ]
        ):
            for _ in roles:
                if not signals.ready.acquire(timeout=_TIMEOUT_SECONDS):
                    raise click.ClickException(f"{self.name}: a process did not start")
            began = time.monotonic()
            signals.go.set()
            ended = signals.done.get(timeout=_TIMEOUT_SECONDS)
            signals.stop.set()
            cpu = dict(signals.cpu.get(timeout=_TIMEOUT_SECONDS) for _ in roles)
        return ended - began, [cpu[number] for number in range(len(roles))]


def _packed(made: Sequence[FollowChanged]) -> list[bytes]:
    return [event.SerializeToString() for event in made]


@contextlib.contextmanager
def _started(processes: Sequence[BaseProcess]) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join(_TIMEOUT_SECONDS)
    finally:
        for process in processes:
            process.kill()


def _run(
    number: int, role: _Role, parts: _Parts, signals: _Signals, packed: Sequence[bytes]
) -> None:
    """The main function of each process."""
    used: list[float] = []

    def measure() -> None:
        signals.go.wait()
        used.append(_cpu_seconds())
        signals.stop.wait()
        used.append(_cpu_seconds())

    watch = threading.Thread(target=measure, daemon=True)
    watch.start()
    role(parts, signals, [FollowChanged.FromString(each) for each in packed])
    signals.stop.wait()
    watch.join()
    signals.cpu.put((number, used[1] - used[0]))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# -- The ceiling -----------------------------------------------------------------------------


def _make_topic(kafka: KafkaSettings, topic: Topic) -> None:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=kafka.kafka_bootstrap)) as admin:
        admin.create_topics(
            [NewTopic(topic.name, num_partitions=topic.partitions, replication_factor=-1)]
        )


def _produce(parts: _Parts, signals: _Signals, made: Sequence[FollowChanged]) -> None:
    records = [
        (
            str(key_of(event)).encode(),
            event.SerializeToString(),
            [(context.TRACEPARENT, context.CallContext("ab" * 16).traceparent().encode())],
        )
        for event in made
    ]
    producer = KafkaProducer(
        bootstrap_servers=parts.kafka.kafka_bootstrap,
        acks="all",
        enable_idempotence=True,
        # With smaller values, the stack as a whole uses more CPU per record.
        linger_ms=100,
        batch_size=256 * 1024,
    )
    producer.partitions_for(_CEILING.name)
    signals.ready.release()
    signals.go.wait()
    for key, value, headers in records:
        producer.send(_CEILING.name, value, key, headers)
    producer.flush()
    producer.close()


def _consume_plainly(parts: _Parts, signals: _Signals, made: Sequence[FollowChanged]) -> None:
    consumer = KafkaConsumer(bootstrap_servers=parts.kafka.kafka_bootstrap)
    partitions = [TopicPartition(_CEILING.name, n) for n in range(_CEILING.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_end()
    # Tansu 0.6 takes the first record of the last batch for the end; what follows is skipped.
    while consumer.poll(timeout_ms=1000):
        pass
    signals.ready.release()
    left = len(made)
    while left > 0:
        for records in consumer.poll(timeout_ms=200).values():
            left -= len(records)
    signals.done.put(time.monotonic())
    consumer.close()


# -- Ours ------------------------------------------------------------------------------------


def _replicate(parts: _Parts, signals: _Signals, made: Sequence[FollowChanged]) -> None:
    async def main() -> None:
        relay = Relay(parts.database, parts.kafka)
        async with Database(parts.database) as database, _running(relay.run):
            outbox = Outbox(database, relay)
            async with outbox.transaction():
                signals.ready.release()
            await asyncio.to_thread(signals.go.wait)
            for start in range(0, len(made), _TRANSACTION):
                async with outbox.transaction() as tx:
                    for event in made[start : start + _TRANSACTION]:
                        tx.publish(event)
            await asyncio.to_thread(signals.stop.wait)

    asyncio.run(main())


def _consume_singly(parts: _Parts, signals: _Signals, made: Sequence[FollowChanged]) -> None:
    handled = _Handled(signals, made)

    async def handle(event: FollowChanged) -> None:
        handled.add([event])

    _consume(parts, signals, Subscription(FollowChanged, handle))


def _consume_batches(parts: _Parts, signals: _Signals, made: Sequence[FollowChanged]) -> None:
    handled = _Handled(signals, made)

    async def handle(batch: list[FollowChanged]) -> None:
        handled.add(batch)

    _consume(parts, signals, BatchSubscription(FollowChanged, handle))


class _Handled:
    """Reports when every event was handled at least once."""

    def __init__(self, signals: _Signals, made: Sequence[FollowChanged]) -> None:
        self._signals = signals
        self._left = {event.followee_id for event in made}

    def add(self, batch: Sequence[FollowChanged]) -> None:
        if self._left:
            self._left.difference_update([event.followee_id for event in batch])
            if not self._left:
                self._signals.done.put(time.monotonic())


def _consume(
    parts: _Parts, signals: _Signals, subscription: Subscription | BatchSubscription
) -> None:
    async def main() -> None:
        # All variants share one group; each starts where the previous one ended.
        consumer = Consumer(parts.kafka, group="bench", subscriptions=[subscription])
        async with _running(consumer.run):
            signals.ready.release()
            await asyncio.to_thread(signals.stop.wait)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def _running(run: Callable[[Callable[[], None]], Any]) -> Any:
    """Runs a worker for the duration of the block; enters the block when the worker is ready."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def is_ready() -> None:
        loop.call_soon_threadsafe(ready.set)

    task = asyncio.create_task(run(is_ready))
    await ready.wait()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
