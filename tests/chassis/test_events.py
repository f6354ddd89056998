"""The outbox, its relay and the consumer, against a real database and a real broker."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from google.protobuf.message import Message
from kafka import KafkaConsumer, KafkaProducer

from services.chassis import context
from services.chassis.config import KafkaSettings
from services.chassis.database.pool import Database
from services.chassis.errors import Unavailable
from services.chassis.events.consumer import BatchSubscription, Consumer, Rejected, Subscription
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.events.topics import Topic, dead_letters, key_of, topic_of
from tests.chassis.events import make_event_type
from tests.eventually import PATIENCE_SECONDS, eventually


@pytest.fixture
def quick_kafka(kafka: KafkaSettings) -> KafkaSettings:
    """The broker, with sessions so short that a group forms in a second."""
    return kafka.model_copy(update={"kafka_session_seconds": 2.0})


@pytest.fixture
def event_type(kafka: KafkaSettings) -> type[Message]:
    """A type of events that only this test uses."""
    return make_event_type(kafka)


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


def batched(event_type: type[Message], handle: Callable) -> BatchSubscription:
    """Subscribes a batch handler that handles one event after the other."""

    async def handle_batch(events: list[Message]) -> None:
        for event in events:
            await handle(event)

    return BatchSubscription(event_type, handle_batch)


@pytest.fixture(params=[Subscription, batched], ids=["single", "batch"])
def subscribe(request: pytest.FixtureRequest) -> Callable:
    """Subscribes a handler: what is tested holds for single and batch handlers."""
    return request.param


@asynccontextmanager
async def consuming(
    settings: KafkaSettings,
    event_type: type[Message],
    handle: Callable,
    *,
    group: str = "",
    subscribe: Callable = Subscription,
) -> AsyncIterator[asyncio.Task]:
    consumer = Consumer(
        settings,
        group=group or f"group-of-{topic_of(event_type).name}",
        subscriptions=[subscribe(event_type, handle)],
    )
    async with running(consumer.run) as task:
        yield task


async def publish(outbox: Outbox, *events: Message) -> None:
    async with outbox.transaction() as tx:
        for event in events:
            tx.publish(event)


async def stored(outbox: Outbox) -> int:
    async with outbox.transaction() as tx:
        cursor = await tx.connection.execute("SELECT count(*) FROM outbox")
        row = await cursor.fetchone()
    return row[0]


async def test_what_is_rolled_back_is_never_published_and_what_is_committed_once(
    outbox, event_type, quick_kafka
):
    seen = []

    async def handle(event):
        seen.append((event.owner_id, event.number, context.current().trace_id))

    async def publish_and_fail():
        async with outbox.transaction() as tx:
            tx.publish(event_type(owner_id=1, number=666))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await publish_and_fail()
    context.enter(context.CallContext(trace_id="ab" * 16))
    await publish(outbox, *(event_type(owner_id=1, number=n) for n in range(1, 51)))

    async with consuming(quick_kafka, event_type, handle):
        await eventually(lambda: as_answer(seen), lambda _: len(seen) >= 50)

    assert seen == [(1, n, "ab" * 16) for n in range(1, 51)]
    assert await stored(outbox) == 0


async def test_events_of_one_transaction_are_stored_by_one_statement(outbox, event_type):
    async with outbox.transaction() as tx:
        await tx.connection.execute(
            """
            CREATE TABLE statements (events bigint);
            CREATE FUNCTION count_events() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO statements SELECT count(*) FROM added; RETURN NULL; END';
            CREATE TRIGGER count_events AFTER INSERT ON outbox REFERENCING NEW TABLE AS added
                EXECUTE FUNCTION count_events();
            """
        )
    await publish(outbox, *(event_type(owner_id=n, number=n) for n in range(1, 101)))
    # No event, no statement.
    await publish(outbox)

    async with outbox.transaction() as tx:
        counts = await (await tx.connection.execute("SELECT events FROM statements")).fetchall()
    assert counts == [(100,)]


async def test_a_message_that_fails_goes_to_the_dead_letters_and_blocks_nobody(
    outbox, event_type, quick_kafka
):
    done, tries, other_is_done = [], [], asyncio.Event()

    async def handle(event):
        if event.number == 13:
            tries.append(event.owner_id)
            if len(tries) > 1:
                await other_is_done.wait()
            raise ValueError("thirteen")
        if event.number == 14:
            raise Rejected("fourteen")
        done.append((event.owner_id, event.number))
        if event.owner_id == 3:
            other_is_done.set()

    async with consuming(quick_kafka, event_type, handle):
        await publish(
            outbox,
            event_type(owner_id=1, number=13),
            event_type(owner_id=1, number=15),
            event_type(owner_id=2, number=14),
            event_type(owner_id=3, number=16),
        )
        await eventually(lambda: as_answer(done), lambda _: len(done) == 2)
        letters = await asyncio.to_thread(
            read_all, quick_kafka, dead_letters(topic_of(event_type)), 2
        )

    # Another key does not wait for the retries; the same key does, and then goes on.
    assert done == [(3, 16), (1, 15)]
    assert tries == [1] * 5
    reasons = {event_type.FromString(value).number: reason for value, reason in letters}
    assert reasons == {13: b"ValueError: thirteen", 14: b"Rejected: fourteen"}


async def test_an_unavailable_dependency_is_waited_for_longer_than_any_event_is_retried(
    outbox, event_type, quick_kafka, subscribe
):
    attempts = []

    async def handle(event):
        attempts.append(event.number)
        if len(attempts) <= 6:
            raise Unavailable("The cache")

    async with consuming(quick_kafka, event_type, handle, subscribe=subscribe):
        await publish(outbox, event_type(owner_id=1, number=7))
        await eventually(lambda: as_answer(attempts), lambda _: len(attempts) == 7)


async def test_a_consumer_that_stops_in_the_middle_loses_nothing(
    outbox, event_type, quick_kafka, subscribe
):
    handled = []
    stuck = asyncio.Event()

    async def handle_some(event):
        if event.owner_id % 2:
            stuck.set()
            await asyncio.Event().wait()
        handled.append(event.owner_id)

    async def handle_all(event):
        handled.append(event.owner_id)

    await publish(outbox, *(event_type(owner_id=n, number=1) for n in range(1, 41)))
    async with consuming(quick_kafka, event_type, handle_some, subscribe=subscribe):
        await asyncio.wait_for(stuck.wait(), PATIENCE_SECONDS)
    async with consuming(quick_kafka, event_type, handle_all, subscribe=subscribe):
        await eventually(lambda: as_answer(handled), lambda _: len(set(handled)) == 40)


async def test_a_burst_of_one_key_does_not_keep_others_waiting(event_type, quick_kafka):
    seen, other_is_done = [], asyncio.Event()

    async def handle(event):
        if event.owner_id == 1:
            await other_is_done.wait()
        else:
            other_is_done.set()
        seen.append(event.owner_id)

    burst = [event_type(owner_id=1, number=n) for n in range(500)]
    await asyncio.to_thread(send, quick_kafka, [*burst, event_type(owner_id=2)])

    async with consuming(quick_kafka, event_type, handle):
        await eventually(lambda: as_answer(seen), lambda _: len(seen) == 501)

    assert seen[0] == 2


async def test_a_burst_beyond_all_bounds_stops_only_its_own_partition(
    kafka, quick_kafka, subscribe
):
    event_type = make_event_type(kafka, partitions=2)
    handled, other_is_done = [], asyncio.Event()

    async def handle(event):
        if event.owner_id == 1:
            await other_is_done.wait()
        handled.append(event)

    burst = [event_type(owner_id=1, number=n) for n in range(1, 2501)]
    await asyncio.to_thread(send, quick_kafka, burst, 0)
    consumer = Consumer(
        quick_kafka,
        group=topic_of(event_type).name,
        subscriptions=[subscribe(event_type, handle)],
    )
    async with running(consumer.run):
        for number in range(1, 4):
            other = event_type(owner_id=2, number=number)
            await asyncio.to_thread(send, quick_kafka, [other], 1)
            await eventually(lambda: as_answer(handled), lambda _, other=other: other in handled)
        assert len(handled) == 3
        other_is_done.set()
        await eventually(lambda: as_answer(handled), lambda _: len(handled) >= 2503)

    assert [event for event in handled if event.owner_id == 1] == burst


async def test_a_partition_that_is_paused_during_a_rebalance_goes_on_after_it(
    kafka, quick_kafka, subscribe
):
    event_type = make_event_type(kafka, partitions=2)
    handled, is_open = set(), asyncio.Event()

    async def handle(event):
        await is_open.wait()
        handled.add(event.number)

    def member() -> Consumer:
        return Consumer(
            quick_kafka,
            group=topic_of(event_type).name,
            subscriptions=[subscribe(event_type, handle)],
        )

    for partition in (0, 1):
        burst = [event_type(owner_id=1, number=n) for n in range(partition, 3000, 2)]
        await asyncio.to_thread(send, quick_kafka, burst, partition)
    async with running(member().run):
        # Both windows are full. Another member comes and goes.
        async with running(member().run):
            pass
        is_open.set()
        await eventually(lambda: as_answer(handled), lambda _: len(handled) == 3000)


async def test_a_member_that_leaves_while_its_group_forms_does_not_block_the_next(
    event_type, quick_kafka
):
    seen = []
    group = topic_of(event_type).name
    subscription = Subscription(event_type, as_list(seen))
    for seconds in (0.1, 0.5, 1.0):
        consumer = Consumer(quick_kafka, group=group, subscriptions=[subscription])
        task = asyncio.create_task(consumer.run(lambda: None))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await asyncio.to_thread(send, quick_kafka, [event_type(owner_id=1, number=1)])
    async with consuming(quick_kafka, event_type, as_list(seen), group=group):
        await eventually(lambda: as_answer(seen))


async def test_a_topic_that_is_held_waits_while_others_go_on(kafka, quick_kafka, subscribe):
    held, other = make_event_type(kafka), make_event_type(kafka)
    handled = []

    async def handle(event):
        handled.append(event.number)

    consumer = Consumer(
        quick_kafka,
        group=topic_of(held).name,
        subscriptions=[subscribe(each, handle) for each in (held, other)],
    )
    consumer.hold([topic_of(held).name])
    await asyncio.to_thread(send, quick_kafka, [held(owner_id=1, number=1)])
    async with running(consumer.run):
        for number in (2, 3):
            later = other(owner_id=1, number=number)
            await asyncio.to_thread(send, quick_kafka, [later])
            await eventually(lambda: as_answer(handled), lambda _, n=number: n in handled)
        assert handled == [2, 3]
        consumer.hold([])
        await eventually(lambda: as_answer(handled), lambda _: 1 in handled)


async def test_a_batch_handler_gets_many_events_at_once_in_the_order_of_each_key(
    kafka, quick_kafka
):
    event_type = make_event_type(kafka, partitions=2)
    batches = []

    async def handle(events):
        batches.append(events)

    events = [event_type(owner_id=n % 10, number=n) for n in range(1000)]
    await asyncio.to_thread(send, quick_kafka, events)
    subscription = BatchSubscription(event_type, handle, batch=100)
    consumer = Consumer(quick_kafka, group=topic_of(event_type).name, subscriptions=[subscription])
    async with running(consumer.run):
        await eventually(lambda: as_answer(batches), lambda found: sum(map(len, found)) >= 1000)

    assert max(map(len, batches)) == 100
    handled = [event for batch in batches for event in batch]
    for owner_id in range(10):
        own = [event.number for event in handled if event.owner_id == owner_id]
        assert own == list(range(owner_id, 1000, 10))
    # Everything is committed: who comes next gets nothing of it again.
    batches.clear()
    later = event_type(owner_id=1, number=1000)
    async with consuming(
        quick_kafka,
        event_type,
        as_list(batches),
        group=topic_of(event_type).name,
    ):
        await asyncio.to_thread(send, quick_kafka, [later])
        await eventually(lambda: as_answer(batches))
    assert batches == [later]


async def test_an_event_that_fails_is_found_by_halving_its_batch_and_buried_alone(
    event_type, quick_kafka
):
    done, sizes = [], []

    async def handle(events):
        sizes.append(len(events))
        if any(event.number == 13 for event in events):
            raise ValueError("thirteen")
        if any(event.number == 14 for event in events):
            raise Rejected("fourteen")
        done.extend(event.number for event in events)

    events = [event_type(owner_id=1, number=n) for n in range(64)]
    topic = topic_of(event_type)
    await asyncio.to_thread(send, quick_kafka, events[:40])
    await asyncio.to_thread(send_raw, quick_kafka, topic, b"\xff\xff no event")
    await asyncio.to_thread(send, quick_kafka, events[40:])
    consumer = Consumer(
        quick_kafka, group=topic.name, subscriptions=[BatchSubscription(event_type, handle)]
    )
    async with running(consumer.run):
        await eventually(lambda: as_answer(done), lambda done: 63 in done, within=40)
        letters = await asyncio.to_thread(read_all, quick_kafka, dead_letters(topic), 3)

    assert done == [n for n in range(64) if n not in (13, 14)]
    reasons = [reason.partition(b":")[0] for _, reason in letters]
    assert reasons == [b"ValueError", b"Rejected", b"DecodeError"]
    # The one that could be tried again was, alone.
    assert sizes.count(1) >= 5


async def as_answer(value):
    return value


def send(
    settings: KafkaSettings,
    events: Sequence[Message],
    partition: int | None = None,
) -> None:
    """Publishes events in their order."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, linger_ms=20)
    for event in events:
        key, value = str(key_of(event)).encode(), event.SerializeToString()
        producer.send(topic_of(event).name, value, key, partition=partition)
    producer.flush()
    producer.close()


def send_raw(settings: KafkaSettings, topic: Topic, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    producer.send(topic.name, value, b"1").get(10)
    producer.close()


def as_list(seen: list) -> Callable:
    """Returns a handler that only remembers."""

    async def handle(event: Message) -> None:
        seen.append(event)

    return handle


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
    outbox, event_type, quick_kafka
):
    seen = []

    async def handle(event):
        if event.number == 1:
            # Until the second, which was published later, is done.
            await eventually(lambda: as_answer(seen), lambda seen: 2 in seen)
        seen.append(event.number)

    await publish(outbox, *(event_type(owner_id=1, number=n) for n in (1, 2)))
    subscription = Subscription(event_type, handle, in_order=False)
    consumer = Consumer(quick_kafka, group=topic_of(event_type).name, subscriptions=[subscription])
    async with running(consumer.run):
        await eventually(lambda: as_answer(seen), lambda seen: len(seen) == 2)

    assert seen == [2, 1]


async def test_a_key_has_the_same_partition_with_another_client(outbox, kafka):
    event_type = make_event_type(kafka, partitions=8)
    keys = [0, 7, *(3**n for n in range(1, 40, 3)), 2**63 - 1]
    topic = topic_of(event_type).name
    await publish(outbox, *(event_type(owner_id=key) for key in keys))
    await asyncio.to_thread(send, kafka, [event_type(owner_id=key) for key in keys])

    def read() -> dict[bytes, list[int]]:
        consumer = KafkaConsumer(
            topic,
            bootstrap_servers=kafka.kafka_bootstrap,
            auto_offset_reset="earliest",
            consumer_timeout_ms=PATIENCE_SECONDS * 1000,
        )
        partitions = defaultdict(list)
        for record in itertools.islice(consumer, 2 * len(keys)):
            partitions[record.key].append(record.partition)
        consumer.close()
        return partitions

    found = await asyncio.to_thread(read)
    assert {int(key) for key in found} == set(keys)
    assert all(ours == theirs for ours, theirs in found.values())
    assert len({partition for partition, _ in found.values()}) > 1
