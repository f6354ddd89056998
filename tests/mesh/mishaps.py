"""Faults in a running mesh: crashes, an emptied cache, repeated events."""

import asyncio
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import psycopg
from google.protobuf.message import Message
from kafka import KafkaProducer
from photomesh.fanout.v1.events_pb2 import ChunkReady
from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated
from redis import Redis

from deploy.local.stack import Stack
from deploy.processes import MESH, Need
from services.chassis.config import KafkaSettings
from services.chassis.events.lag import read_lag
from services.chassis.events.topics import all_topics, key_of, topic_of
from tests.eventually import PATIENCE_SECONDS, eventually


@contextmanager
def running_with(mesh: Stack, **environment: Mapping[str, str]) -> Iterator[None]:
    """Restarts processes of a running mesh with other settings, and restores them afterwards."""
    usual = {name: mesh.processes[name] for name in environment}
    for name, more in environment.items():
        variables = {**usual[name].environment, **more}
        mesh.processes[name] = dataclasses.replace(usual[name], environment=variables)
    try:
        mesh.up(environment, timeout=PATIENCE_SECONDS)
        yield
    finally:
        mesh.processes |= usual
        mesh.up(usual, timeout=PATIENCE_SECONDS)


def flush_cache(mesh: Stack) -> None:
    with Redis.from_url(mesh.valkey_url) as valkey:
        valkey.flushall()


def crash(mesh: Stack, name: str) -> None:
    mesh.kill(name)
    mesh.start(name)


_TOPICS = [
    topic_of(event)
    for event in (PostCreated, PostChanged, FollowChanged, CelebrityChanged, ChunkReady)
]


# In table order, because events of media cause events of post, and so on.
_OUTBOXES = tuple(
    dict.fromkeys(each.schema for each in MESH if each.schema and Need.EVENTS in each.needs)
)


def repeat(mesh: Stack, events: Iterable[Message]) -> None:
    """Publishes events again. Callers pass only events that were published before."""
    producer = KafkaProducer(bootstrap_servers=mesh.kafka_bootstrap, acks="all")
    try:
        sent = [
            producer.send(
                topic_of(event).name,
                key=str(key_of(event)).encode(),
                value=event.SerializeToString(),
            )
            for event in events
        ]
        for future in sent:
            future.get(timeout=PATIENCE_SECONDS)
    finally:
        producer.close(timeout=5)


def count_dead_letters(mesh: Stack) -> int:
    """Returns how many dead letters the consumer groups of a mesh have written so far."""
    topics = [topic for topic in all_topics() if topic.name.endswith(".dlq")]
    settings = KafkaSettings(kafka_bootstrap=mesh.kafka_bootstrap)
    return sum(each.end for each in read_lag(settings, "none", topics))


async def quiet(mesh: Stack, *, within: float = PATIENCE_SECONDS) -> None:
    """Waits until all events are handled and no change of mode is in progress."""
    await eventually(
        lambda: asyncio.to_thread(_in_progress, mesh), lambda left: not left, within=within
    )


def _in_progress(mesh: Stack) -> str:
    """Describes work in progress, or returns "". Checks causes before their effects."""
    for role in _OUTBOXES:
        with psycopg.connect(mesh.database_url(role)) as database:
            [(events,)] = database.execute("SELECT count(*) FROM outbox").fetchall()
            if events:
                return f"{events} events in the outbox of {role}"
    behind = read_lag(KafkaSettings(kafka_bootstrap=mesh.kafka_bootstrap), "fanout", _TOPICS)
    left = {f"{each.topic}/{each.partition}": each.lag for each in behind if each.lag}
    if left:
        return f"events are not handled: {left}"
    with psycopg.connect(mesh.database_url("graph")) as database:
        [(changing,)] = database.execute(
            "SELECT count(*) FROM celebrities WHERE mode IN ('PROMOTING', 'DEMOTING')"
        ).fetchall()
    return f"{changing} changes of mode" if changing else ""
