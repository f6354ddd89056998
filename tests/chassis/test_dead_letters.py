"""Dead letters: from a consumer that gives up to an engineer who replays or drops them."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from services.chassis.database.pool import Database
from services.chassis.errors import DeadLetterUnknown
from services.chassis.events.consumer import Consumer
from services.chassis.events.dead_letters import KEEP_CLOSED, DeadLetters
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.events.topics import topic_of
from tests.chassis.test_events import consuming, event_type, publish, quick_kafka, running
from tests.eventually import eventually

__all__ = ["event_type", "quick_kafka"]


@pytest.fixture
async def parts(database_of: Callable, quick_kafka, event_type):
    """An outbox that is relayed, and the dead letters of the topic, which are read in."""
    settings = database_of("graph")
    relay = Relay(settings, quick_kafka)
    async with Database(settings) as database, running(relay.run):
        outbox = Outbox(database, relay)
        group = f"group-of-{topic_of(event_type).name}"
        letters = DeadLetters(database, outbox, group=group, messages=[event_type])
        async with reading(quick_kafka, letters, f"reader-{topic_of(event_type).name}"):
            yield outbox, letters


def reading(quick_kafka, letters: DeadLetters, group: str):
    """Runs the consumer that fills the table."""
    reader = Consumer(quick_kafka, group=group, subscriptions=letters.subscriptions())
    return running(reader.run)


async def waiting(letters: DeadLetters, count: int):
    return await eventually(
        lambda: letters.open(topic="", after_id=0, limit=100),
        lambda found: len(found) == count,
    )


async def test_what_was_given_up_is_looked_at_replayed_and_dropped(parts, event_type, quick_kafka):
    outbox, letters = parts
    broken, handled = True, []

    async def handle(seen):
        if broken:
            raise ValueError(f"no way with \0 {seen.number}")
        handled.append(seen.number)

    async with consuming(quick_kafka, event_type, handle):
        await publish(outbox, event_type(owner_id=7, number=1))
        await publish(outbox, event_type(owner_id=7, number=2))
        first, second = await waiting(letters, 2)

        assert (first.topic, first.key, first.partition) == (topic_of(event_type).name, b"7", 0)
        assert {first.offset, second.offset} == {0, 1}
        assert first.consumer_group == f"group-of-{topic_of(event_type).name}"
        assert "no way" in first.reason
        assert len(first.trace_id) == 32
        assert not first.payload
        seen = await letters.get(first.dead_letter_id)
        assert event_type.FromString(seen.payload) == event_type(owner_id=7, number=1)
        assert '"number": "1"' in seen.payload_json
        page = await letters.open(
            topic=topic_of(event_type).name, after_id=first.dead_letter_id, limit=1
        )
        assert page == [second]
        assert await letters.open(topic="other", after_id=0, limit=1) == []

        broken = False
        assert await letters.drop([second.dead_letter_id]) == [second.dead_letter_id]
        both = [first.dead_letter_id, second.dead_letter_id]
        replays = await asyncio.gather(*(letters.replay(both) for _ in range(5)))
        assert sorted(replays) == [[], [], [], [], [first.dead_letter_id]]

        async def done():
            return handled

        await eventually(done)
        assert handled == [1]
        assert await waiting(letters, 0) == []
        assert (await letters.get(second.dead_letter_id)).dead_letter_id


async def test_a_replay_reaches_only_the_group_that_could_not_handle_the_event(
    parts, event_type, quick_kafka, database_of
):
    outbox, letters = parts
    topic = topic_of(event_type)
    broken = True
    handled = {"mine": [], "other": []}

    async def handle_mine(seen):
        if broken:
            raise ValueError("mine")
        handled["mine"].append(seen.number)

    async def handle_other(seen):
        handled["other"].append(seen.number)
        if broken:
            raise ValueError("other")

    # Another service, with a table of its own.
    async with Database(database_of("media")) as database:
        others = DeadLetters(database, outbox, group="other", messages=[event_type])
        async with (
            reading(quick_kafka, others, f"other-reader-{topic.name}"),
            consuming(quick_kafka, event_type, handle_mine),
            consuming(quick_kafka, event_type, handle_other, group="other"),
        ):
            await publish(outbox, event_type(owner_id=7, number=1))
            [mine] = await waiting(letters, 1)
            [other] = await waiting(others, 1)
            assert mine.consumer_group == f"group-of-{topic.name}"
            assert other.consumer_group == "other"

            broken = False
            tries = len(handled["other"])
            await letters.replay([mine.dead_letter_id])
            # What comes after the replay in its partition tells that it was read.
            await publish(outbox, event_type(owner_id=7, number=2))
            for group in handled.values():

                async def numbers(group=group):
                    return group

                await eventually(numbers, lambda seen: seen[-1:] == [2])

    assert handled["mine"] == [1, 2]
    assert handled["other"] == [1] * tries + [2]


async def test_dead_letters_of_another_group_are_unknown(parts):
    outbox, letters = parts
    async with outbox.transaction() as tx:
        cursor = await tx.connection.execute(
            """
            INSERT INTO dead_letters (topic, dlq_offset, bury_time, consumer_group, reason,
                                      payload, traceparent)
            VALUES ('old', 1, now(), 'other', 'reason', '', '')
            RETURNING dead_letter_id
            """
        )
        [[other]] = await cursor.fetchall()

    assert await letters.open(topic="", after_id=0, limit=10) == []
    assert await letters.drop([other]) == []
    assert await letters.replay([other]) == []
    with pytest.raises(DeadLetterUnknown):
        await letters.get(other)


async def test_one_that_fails_again_is_a_new_dead_letter(parts, event_type, quick_kafka):
    outbox, letters = parts

    async def handle(_):
        raise ValueError("never")

    async with consuming(quick_kafka, event_type, handle):
        await publish(outbox, event_type(owner_id=7, number=1))
        [first] = await waiting(letters, 1)
        await letters.replay([first.dead_letter_id])
        [again] = await waiting(letters, 1)

    assert again.dead_letter_id > first.dead_letter_id
    assert again.trace_id == first.trace_id


async def test_a_log_that_is_read_again_brings_nothing_back(parts, event_type, quick_kafka):
    outbox, letters = parts

    async def handle(_):
        raise ValueError("never")

    async with consuming(quick_kafka, event_type, handle):
        await publish(outbox, event_type(owner_id=7, number=1))
        [letter] = await waiting(letters, 1)
    await letters.drop([letter.dead_letter_id])
    added = []
    [subscription] = letters.subscriptions()

    async def add(record):
        await subscription.handle(record)
        added.append(record)

    async def read():
        return added

    reader = Consumer(
        quick_kafka,
        group=f"again-{topic_of(event_type).name}",
        subscriptions=[type(subscription)(subscription.topic, add)],
    )
    async with running(reader.run):
        await eventually(read)

    assert await letters.open(topic="", after_id=0, limit=10) == []


async def test_an_unknown_one_is_told(parts):
    with pytest.raises(DeadLetterUnknown):
        await parts[1].get(12345)


async def test_dead_letters_closed_long_ago_are_purged_and_no_others(database_of, quick_kafka):
    settings = database_of("graph")
    async with Database(settings) as database:
        letters = DeadLetters(
            database, Outbox(database, Relay(settings, quick_kafka)), group="group", messages=[]
        )
        async with database.connection() as connection:
            await connection.execute(
                """
                INSERT INTO dead_letters (topic, dlq_offset, bury_time, consumer_group, reason,
                                          payload, traceparent)
                SELECT 'old', number, now() - interval '1 year', 'group', 'reason', '', ''
                  FROM generate_series(1, 1500) AS number
                """
            )
        first, *others = [
            letter.dead_letter_id for letter in await letters.open(topic="", after_id=0, limit=2000)
        ]
        await letters.drop(others)
        now = datetime.now(UTC)

        # Those that are open stay, however old they are.
        assert await letters.purge(now + KEEP_CLOSED - timedelta(minutes=1)) == 0
        later = now + KEEP_CLOSED + timedelta(minutes=1)
        purged = await asyncio.gather(*(letters.purge(later) for _ in range(3)))

        assert sum(purged) == len(others) == 1499
        assert (await letters.get(first)).dead_letter_id == first
        with pytest.raises(DeadLetterUnknown):
            await letters.get(others[0])
