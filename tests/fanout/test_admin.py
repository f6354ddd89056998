"""Fan-out, as an engineer with the operator's certificate meets it. The whole process runs."""

import asyncio

import grpc
import pytest
from kafka import KafkaProducer
from photomesh.fanout.v1 import fanout_admin_service_pb2 as pb
from photomesh.fanout.v1.fanout_admin_service_pb2_grpc import FanoutAdminServiceStub
from photomesh.graph.v1.events_pb2 import FollowChanged

from tests.callers import Refusal, channel_to
from tests.eventually import eventually
from tests.fanout.conftest import new_id


@pytest.fixture
async def admin(infrastructure):
    infrastructure.up(["graph", "post", "fanout"])
    async with channel_to(infrastructure, "fanout", identity="operator") as channel:
        yield FanoutAdminServiceStub(channel)


@pytest.fixture
def publish(kafka):
    producer = KafkaProducer(bootstrap_servers=kafka.kafka_bootstrap, acks="all")

    async def publish(topic: str, value: bytes, key: bytes = b"1") -> int:
        sent = await asyncio.to_thread(lambda: producer.send(topic, value, key).get(10))
        return sent.offset

    yield publish
    producer.close()


async def lag(admin, topic: str) -> int:
    answer = await admin.GetLag(pb.GetLagRequest(), timeout=10)
    return sum(each.lag for each in answer.partitions if each.topic == topic)


async def test_a_paused_topic_waits_and_goes_on_when_it_is_resumed(admin, publish):
    change = FollowChanged(follower_id=new_id(), followee_id=new_id()).SerializeToString()
    await eventually(lambda: lag(admin, "follow_changed"), lambda count: count == 0)

    await admin.PauseTopic(pb.PauseTopicRequest(topic="follow_changed"))
    # So long it may take, and so long until workers tell what they have handled.
    await asyncio.sleep(2)
    await publish("follow_changed", change)
    await asyncio.sleep(1.5)
    assert await lag(admin, "follow_changed") == 1
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
    await eventually(lambda: lag(admin, "follow_changed"), lambda count: count == 0)


async def test_a_topic_that_is_none_is_not_paused(admin):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.PauseTopic(pb.PauseTopicRequest(topic="follow_chnaged"))
    assert Refusal.of(refused.value).fields == ("topic",)


async def test_what_cannot_be_handled_waits_for_a_decision(admin, publish):
    garbage = b"\xff\xff\xff garbage"
    offset = await publish("post_changed", garbage)

    async def listed():
        answer = await admin.ListDeadLetters(pb.ListDeadLettersRequest(topic="post_changed"))
        return answer.dead_letters

    [letter] = await eventually(listed)
    assert (letter.offset, letter.consumer_group) == (offset, "fanout")
    only = [letter.dead_letter_id]
    seen = await admin.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=only[0]))
    assert seen.dead_letter.payload == garbage
    replayed = await admin.ReplayDeadLetters(pb.ReplayDeadLettersRequest(dead_letter_ids=only))
    assert list(replayed.replayed_ids) == only
    [again] = await eventually(listed)
    assert again.dead_letter_id != only[0]
    only = [again.dead_letter_id]
    dropped = await admin.DropDeadLetters(pb.DropDeadLettersRequest(dead_letter_ids=only))
    assert list(dropped.dropped_ids) == only
    assert not await listed()


async def test_nothing_is_under_way(admin):
    assert not (await admin.ListFanouts(pb.ListFanoutsRequest())).fanouts


@pytest.mark.parametrize("identity", ["gateway", "feed"])
async def test_nobody_else_is_let_in(infrastructure, admin, identity):
    async with channel_to(infrastructure, "fanout", identity=identity) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await FanoutAdminServiceStub(channel).ListFanouts(pb.ListFanoutsRequest())
    assert Refusal.of(refused.value).reason == "CALLER_NOT_ALLOWED"
