"""Dead letters of the media worker, handled with the operator's certificate."""

import asyncio

import grpc
import pytest
from kafka import KafkaProducer
from photomesh.common.v1 import dead_letter_service_pb2 as pb
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from photomesh.media.v1.events_pb2 import MediaUploaded

from tests.callers import Refusal, channel_to
from tests.eventually import PATIENCE_SECONDS, eventually


@pytest.fixture
async def admin(infrastructure):
    infrastructure.up(["media", "media-worker"])
    async with channel_to(infrastructure, "media-worker", identity="operator") as channel:
        yield DeadLetterServiceStub(channel)


async def test_a_malformed_event_becomes_a_dead_letter(admin, kafka):
    producer = KafkaProducer(bootstrap_servers=kafka.kafka_bootstrap)
    garbage = b"\xff\xff\xff garbage"
    await asyncio.to_thread(lambda: producer.send("media_uploaded", garbage).get(PATIENCE_SECONDS))
    good = MediaUploaded(media_id=1, owner_id=1).SerializeToString()
    # It names only its consumer group; the other one belongs to another group.
    for group in (b"media-worker", b"post"):
        headers = [("dlq-group", group)]
        sent = producer.send("media_uploaded.dlq", good, headers=headers)
        await asyncio.to_thread(sent.get, PATIENCE_SECONDS)
    producer.close()

    async def listed():
        answer = await admin.ListDeadLetters(pb.ListDeadLettersRequest(topic="media_uploaded"))
        return answer.dead_letters

    letters = await eventually(listed, lambda found: len(found) >= 2)
    by_reason = {letter.reason.partition(":")[0]: letter for letter in letters}
    bad = by_reason["DecodeError"]
    assert bad.consumer_group == "media-worker"
    seen = await admin.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=bad.dead_letter_id))
    assert seen.dead_letter.payload == garbage
    assert seen.dead_letter.payload_json == ""
    dropped = await admin.DropDeadLetters(
        pb.DropDeadLettersRequest(dead_letter_ids=[bad.dead_letter_id])
    )
    assert list(dropped.dropped_ids) == [bad.dead_letter_id]

    # The worker finds no such media and continues.
    bare = by_reason[""]
    assert (bare.partition, bare.offset, bare.trace_id) == (-1, -1, "")
    replayed = await admin.ReplayDeadLetters(
        pb.ReplayDeadLettersRequest(dead_letter_ids=[bare.dead_letter_id])
    )
    assert list(replayed.replayed_ids) == [bare.dead_letter_id]
    left = {letter.dead_letter_id for letter in await listed()}
    assert not left & {bad.dead_letter_id, bare.dead_letter_id}


@pytest.mark.parametrize("identity", ["gateway", "post"])
async def test_only_the_operator_may_call(infrastructure, admin, identity):
    async with channel_to(infrastructure, "media-worker", identity=identity) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await DeadLetterServiceStub(channel).ListDeadLetters(pb.ListDeadLettersRequest())
    assert Refusal.of(refused.value).reason == "CALLER_NOT_ALLOWED"


async def test_an_unknown_dead_letter_is_not_found(admin):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=1 << 60))
    assert Refusal.of(refused.value).reason == "DEAD_LETTER_UNKNOWN"
