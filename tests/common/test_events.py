"""The outbox, its relay and the consumer, against a real database and a real broker."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.protocol.api_header import ResponseClassRegistry
from photomesh.graph.v1.events_pb2 import FollowChanged

from services.common import context
from services.common.config import KafkaSettings
from services.common.consumer import Consumer, Rejected, Subscription
from services.common.database import Database
from services.common.errors import Unavailable
from services.common.outbox import Outbox, Relay
from services.common.topics import Topic, dead_letters
from tests.eventually import PATIENCE_SECONDS, eventually

_numbers = itertools.count(1)


@pytest.fixture
def quick_kafka(kafka: KafkaSettings) -> KafkaSettings:
    """The broker, with sessions so short that a group forms in a second."""
    return kafka.model_copy(update={"kafka_session_seconds": 2.0})


@pytest.fixture
def topic(kafka: KafkaSettings) -> Topic:
    """A topic of this test's own, with its dead letters."""
    return make_topic(kafka)


def make_topic(kafka: KafkaSettings, partitions: int = 1) -> Topic:
    topic = Topic(f"test_events_{next(_numbers)}", partitions=partitions)
    admin = KafkaAdminClient(bootstrap_servers=kafka.kafka_bootstrap)
    admin.create_topics(
        [
            NewTopic(each.name, num_partitions=each.partitions, replication_factor=-1)
            for each in (topic, dead_letters(topic))
        ]
    )
    admin.close()
    return topic


@pytest.fixture
async def outbox(database_of: Callable, quick_kafka: KafkaSettings) -> AsyncIterator[Outbox]:
    settings = database_of("graph")
    relay = Relay(settings, quick_kafka)
    async with Database(settings) as database, running(relay.run):
        yield Outbox(database, relay)


@asynccontextmanager
async def running(run: Callable) -> AsyncIterator[asyncio.Task]:
    """Runs a worker until the end of the block; begins once it is ready."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(run(lambda: loop.call_soon_threadsafe(ready.set)))
    try:
        await asyncio.wait_for(ready.wait(), PATIENCE_SECONDS)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def consuming(settings: KafkaSettings, topic: Topic, handle: Callable) -> AsyncIterator:
    consumer = Consumer(
        settings,
        group=f"group-of-{topic.name}",
        subscriptions=[Subscription(topic, FollowChanged, handle)],
    )
    async with running(consumer.run) as task:
        yield task


async def publish(outbox: Outbox, topic: Topic, *events: FollowChanged) -> None:
    async with outbox.transaction() as tx:
        for event in events:
            await tx.publish(topic, key=event.follower_id, event=event)


async def stored(outbox: Outbox) -> int:
    async with outbox.transaction() as tx:
        cursor = await tx.connection.execute("SELECT count(*) FROM outbox")
        row = await cursor.fetchone()
    return row[0]


async def test_what_is_rolled_back_is_never_published_and_what_is_committed_once(
    outbox, topic, quick_kafka
):
    seen = []

    async def handle(event):
        seen.append((event.follower_id, event.followee_id, context.current().trace_id))

    async def publish_and_fail():
        async with outbox.transaction() as tx:
            await tx.publish(topic, key=1, event=FollowChanged(follower_id=1, followee_id=666))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await publish_and_fail()
    context.enter(context.CallContext(trace_id="ab" * 16))
    await publish(
        outbox, topic, *(FollowChanged(follower_id=1, followee_id=n) for n in range(1, 51))
    )

    async with consuming(quick_kafka, topic, handle):
        await eventually(lambda: as_answer(seen), lambda _: len(seen) >= 50)

    assert seen == [(1, n, "ab" * 16) for n in range(1, 51)]
    assert await stored(outbox) == 0


async def test_a_message_that_fails_goes_to_the_dead_letters_and_blocks_nobody(
    outbox, topic, quick_kafka
):
    done, tries = [], []
    other_is_done = asyncio.Event()

    async def handle(event):
        if event.followee_id == 13:
            # It fails on and on only once the other key is done: that one does not wait for it.
            await other_is_done.wait()
            tries.append(event.follower_id)
            raise ValueError("thirteen")
        if event.followee_id == 14:
            raise Rejected("fourteen")
        done.append((event.follower_id, event.followee_id))

    async with consuming(quick_kafka, topic, handle):
        await publish(
            outbox,
            topic,
            FollowChanged(follower_id=1, followee_id=13),
            FollowChanged(follower_id=1, followee_id=15),
            FollowChanged(follower_id=2, followee_id=14),
            FollowChanged(follower_id=3, followee_id=16),
        )
        # Another key does not wait for the one that fails; the same key does, and then goes on.
        await eventually(lambda: as_answer(done), lambda _: (3, 16) in done)
        assert (1, 15) not in done
        other_is_done.set()
        await eventually(lambda: as_answer(done), lambda _: (1, 15) in done)
        letters = await asyncio.to_thread(read_all, quick_kafka, dead_letters(topic), 2)

    assert tries == [1] * 5
    reasons = {FollowChanged.FromString(value).followee_id: reason for value, reason in letters}
    assert reasons == {13: b"ValueError: thirteen", 14: b"Rejected: fourteen"}


async def test_a_part_that_is_away_is_waited_for_longer_than_any_message_is_retried(
    outbox, topic, quick_kafka
):
    attempts = []

    async def handle(event):
        attempts.append(event.followee_id)
        if len(attempts) <= 6:
            raise Unavailable("The cache")

    async with consuming(quick_kafka, topic, handle):
        await publish(outbox, topic, FollowChanged(follower_id=1, followee_id=7))
        await eventually(lambda: as_answer(attempts), lambda _: len(attempts) == 7)


async def test_a_consumer_that_stops_in_the_middle_loses_nothing(outbox, topic, quick_kafka):
    handled = []
    stuck = asyncio.Event()

    async def handle_some(event):
        if event.follower_id % 2:
            stuck.set()
            await asyncio.Event().wait()
        handled.append(event.follower_id)

    async def handle_all(event):
        handled.append(event.follower_id)

    await publish(
        outbox, topic, *(FollowChanged(follower_id=n, followee_id=1) for n in range(1, 41))
    )
    async with consuming(quick_kafka, topic, handle_some):
        await asyncio.wait_for(stuck.wait(), PATIENCE_SECONDS)
    async with consuming(quick_kafka, topic, handle_all):
        await eventually(lambda: as_answer(handled), lambda _: len(set(handled)) == 40)


async def test_a_burst_of_one_key_does_not_keep_others_waiting(topic, quick_kafka):
    seen, other_is_done = [], asyncio.Event()

    async def handle(event):
        if event.follower_id == 1:
            await other_is_done.wait()
        else:
            other_is_done.set()
        seen.append(event.follower_id)

    burst = [FollowChanged(follower_id=1, followee_id=n) for n in range(500)]
    await asyncio.to_thread(send, quick_kafka, topic, [*burst, FollowChanged(follower_id=2)])

    async with consuming(quick_kafka, topic, handle):
        await eventually(lambda: as_answer(seen), lambda _: len(seen) == 501)

    assert seen[0] == 2


async def test_a_burst_beyond_all_bounds_stops_only_its_own_partition(kafka, quick_kafka):
    topic = make_topic(kafka, partitions=2)
    handled, other_is_done = [], asyncio.Event()

    async def handle(event):
        if event.follower_id == 1:
            await other_is_done.wait()
        handled.append(event)

    burst = [FollowChanged(follower_id=1, followee_id=n) for n in range(1, 2501)]
    await asyncio.to_thread(send, quick_kafka, topic, burst, 0)
    consumer = Consumer(
        quick_kafka,
        group=topic.name,
        subscriptions=[Subscription(topic, FollowChanged, handle)],
    )
    async with running(consumer.run):
        for followee_id in range(1, 4):
            other = FollowChanged(follower_id=2, followee_id=followee_id)
            await asyncio.to_thread(send, quick_kafka, topic, [other], 1)
            await eventually(lambda: as_answer(handled), lambda _, other=other: other in handled)
        assert len(handled) == 3
        other_is_done.set()
        await eventually(lambda: as_answer(handled), lambda _: len(handled) >= 2503)

    assert [event for event in handled if event.follower_id == 1] == burst


async def test_a_topic_that_is_held_waits_while_others_go_on(kafka, quick_kafka):
    held, other = make_topic(kafka), make_topic(kafka)
    handled = []

    async def handle(event):
        handled.append(event.followee_id)

    consumer = Consumer(
        quick_kafka,
        group=held.name,
        subscriptions=[Subscription(each, FollowChanged, handle) for each in (held, other)],
    )
    consumer.hold([held.name])
    await asyncio.to_thread(send, quick_kafka, held, [FollowChanged(follower_id=1, followee_id=1)])
    async with running(consumer.run):
        for followee_id in (2, 3):
            later = FollowChanged(follower_id=1, followee_id=followee_id)
            await asyncio.to_thread(send, quick_kafka, other, [later])
            await eventually(lambda: as_answer(handled), lambda _, n=followee_id: n in handled)
        assert handled == [2, 3]
        consumer.hold([])
        await eventually(lambda: as_answer(handled), lambda _: 1 in handled)


async def as_answer(value):
    return value


def send(
    settings: KafkaSettings,
    topic: Topic,
    events: Sequence[FollowChanged],
    partition: int | None = None,
) -> None:
    """Publishes events in their order."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, linger_ms=20)
    for event in events:
        key, value = str(event.follower_id).encode(), event.SerializeToString()
        producer.send(topic.name, value, key, partition=partition)
    producer.flush()
    producer.close()


def read_all(settings: KafkaSettings, topic: Topic, count: int) -> list[tuple[bytes, bytes]]:
    """Returns the first `count` messages of a topic with the reason in their headers."""
    consumer = KafkaConsumer(
        topic.name,
        bootstrap_servers=settings.kafka_bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=PATIENCE_SECONDS * 1000,
    )
    messages = []
    for record in consumer:
        messages.append((record.value, dict(record.headers)["dlq-reason"]))
        if len(messages) == count:
            break
    consumer.close()
    return messages


async def test_messages_of_one_key_wait_for_each_other_only_where_order_matters(
    outbox, topic, quick_kafka
):
    seen = []

    async def handle(event):
        if event.followee_id == 1:
            # Until the second, which was published later, is done.
            await eventually(lambda: as_answer(seen), lambda seen: 2 in seen)
        seen.append(event.followee_id)

    await publish(outbox, topic, *(FollowChanged(follower_id=1, followee_id=n) for n in (1, 2)))
    subscription = Subscription(topic, FollowChanged, handle, in_order=False)
    consumer = Consumer(quick_kafka, group=topic.name, subscriptions=[subscription])
    async with running(consumer.run):
        await eventually(lambda: as_answer(seen), lambda seen: len(seen) == 2)

    assert seen == [2, 1]


def test_threads_find_the_classes_of_all_answers_made(quick_kafka):
    Consumer(quick_kafka, group="nobody", subscriptions=[])

    for answer in ResponseClassRegistry._response_class_registry.values():
        whole = answer[None]
        assert whole._VERSIONS.keys() == set(range(len(whole)))
        assert whole._struct.data_class is whole
