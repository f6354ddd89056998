"""The admin interface of fan-out, with the operator's certificate and the real process."""

import asyncio
import json

import grpc
import pytest
from kafka import KafkaProducer
from kafka.producer.future import RecordMetadata
from photomesh.common.v1 import dead_letter_service_pb2 as letters_pb
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from photomesh.fanout.v1 import fanout_admin_service_pb2 as pb
from photomesh.fanout.v1.fanout_admin_service_pb2_grpc import FanoutAdminServiceStub
from photomesh.graph.v1.events_pb2 import FollowChanged
from photomesh.post.v1.events_pb2 import PostChanged

from tests.callers import Refusal, channel_to
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.fanout.conftest import new_id


@pytest.fixture
async def admin(infrastructure):
    infrastructure.up(["graph", "post", "fanout"])
    async with channel_to(infrastructure, "fanout", identity="operator") as channel:
        yield FanoutAdminServiceStub(channel)


@pytest.fixture
async def dead_letters(infrastructure, admin):
    async with channel_to(infrastructure, "fanout", identity="operator") as channel:
        yield DeadLetterServiceStub(channel)


@pytest.fixture
def publish(kafka):
    producer = KafkaProducer(bootstrap_servers=kafka.kafka_bootstrap, acks="all")

    async def publish(topic: str, value: bytes, key: bytes = b"1") -> RecordMetadata:
        sent = producer.send(topic, value, key)
        return await asyncio.to_thread(sent.get, PATIENCE_SECONDS)

    yield publish
    producer.close()


async def partition_of(admin, record: RecordMetadata) -> pb.PartitionLag:
    """Returns the lag of the partition of a record."""
    answer = await admin.GetLag(pb.GetLagRequest(), timeout=PATIENCE_SECONDS)
    [found] = [
        each
        for each in answer.partitions
        if (each.topic, each.partition) == (record.topic, record.partition)
    ]
    return found


async def is_handled(admin, record: RecordMetadata) -> bool:
    return (await partition_of(admin, record)).committed_offset > record.offset


async def paused_topics(stack) -> list[str]:
    """Returns the paused topics according to the last line that the worker logged."""
    lines = stack.log("fanout").read_text().splitlines()
    said = [json.loads(line).get("topics") for line in lines if line.startswith("{")]
    return [topics for topics in said if topics is not None][-1]


async def test_a_paused_topic_is_not_consumed_until_it_is_resumed(infrastructure, admin, publish):
    change = FollowChanged(follower_id=new_id(), followee_id=new_id()).SerializeToString()
    await admin.PauseTopic(pb.PauseTopicRequest(topic="follow_changed"))
    await eventually(
        lambda: paused_topics(infrastructure), lambda topics: topics == ["follow_changed"]
    )

    record = await publish("follow_changed", change)
    # A later event of another topic is handled, and this one is not.
    other = PostChanged(post_id=new_id(), author_id=new_id()).SerializeToString()
    later = await publish("post_changed", other)
    await eventually(lambda: is_handled(admin, later))
    lag = await partition_of(admin, record)
    assert (lag.lag, lag.paused) == (1, True)
    assert not await is_handled(admin, record)
    answer = await admin.GetLag(pb.GetLagRequest())
    assert {each.topic for each in answer.partitions if each.paused} == {"follow_changed"}
    assert {each.topic for each in answer.partitions} == {
        "post_created",
        "post_changed",
        "follow_changed",
        "celebrity_changed",
        "fanout_chunks",
    }

    await admin.ResumeTopic(pb.ResumeTopicRequest(topic="follow_changed"))
    await eventually(lambda: is_handled(admin, record))
    assert (await partition_of(admin, record)).lag == 0


async def test_an_unknown_topic_cannot_be_paused(admin):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.PauseTopic(pb.PauseTopicRequest(topic="follow_chnaged"))
    assert Refusal.of(refused.value).fields == ("topic",)


async def test_an_event_that_cannot_be_handled_becomes_a_dead_letter(dead_letters, publish):
    garbage = b"\xff\xff\xff garbage"
    published = await publish("post_changed", garbage)

    async def listed():
        answer = await dead_letters.ListDeadLetters(
            letters_pb.ListDeadLettersRequest(topic="post_changed")
        )
        return answer.dead_letters

    [letter] = await eventually(listed)
    assert (letter.offset, letter.consumer_group) == (published.offset, "fanout")
    only = [letter.dead_letter_id]
    seen = await dead_letters.GetDeadLetter(letters_pb.GetDeadLetterRequest(dead_letter_id=only[0]))
    assert seen.dead_letter.payload == garbage
    replayed = await dead_letters.ReplayDeadLetters(
        letters_pb.ReplayDeadLettersRequest(dead_letter_ids=only)
    )
    assert list(replayed.replayed_ids) == only
    [again] = await eventually(listed)
    assert again.dead_letter_id != only[0]
    only = [again.dead_letter_id]
    dropped = await dead_letters.DropDeadLetters(
        letters_pb.DropDeadLettersRequest(dead_letter_ids=only)
    )
    assert list(dropped.dropped_ids) == only
    assert not await listed()


async def test_no_fan_out_is_in_progress(admin):
    assert not (await admin.ListFanouts(pb.ListFanoutsRequest())).fanouts


@pytest.mark.parametrize("identity", ["gateway", "feed"])
async def test_only_the_operator_may_call(infrastructure, admin, identity):
    async with channel_to(infrastructure, "fanout", identity=identity) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await FanoutAdminServiceStub(channel).ListFanouts(pb.ListFanoutsRequest())
    assert Refusal.of(refused.value).reason == "CALLER_NOT_ALLOWED"
