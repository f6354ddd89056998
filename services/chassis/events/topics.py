"""The Kafka topics that contracts declare: see `Topic` in photomesh/common/v1/options.proto."""

import functools
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import MessageOptions
from google.protobuf.message import Message
from photomesh.common.v1 import options_pb2

from services.chassis import contracts


@dataclass(frozen=True)
class Topic:
    """A topic."""

    name: str
    partitions: int = 8
    retention: timedelta = timedelta(weeks=1)
    """How long the broker keeps a record."""


def topic_of(event: type[Message] | Message) -> Topic:
    """Returns the topic of an event or of a type of events.

    Raises:
        KeyError: the message's contract names no topic.
    """
    return _declared(event.DESCRIPTOR)[0]


def key_of(event: Message) -> int:
    """Returns the key of an event.

    Raises:
        KeyError: the message's contract names no topic.
    """
    key: int = getattr(event, _declared(event.DESCRIPTOR)[1])
    return key


def dead_letters(topic: Topic) -> Topic:
    """Returns the topic for events of `topic` that a consumer could not handle."""
    return Topic(f"{topic.name}.dlq", partitions=1, retention=topic.retention)


def all_topics() -> list[Topic]:
    """Returns every topic that a contract declares, each followed by its dead-letter topic."""
    declared = [
        _topic(message.options)
        for file in contracts.files().file
        for message in file.message_type
        if message.options.HasExtension(options_pb2.topic)
    ]
    return [each for topic in declared for each in (topic, dead_letters(topic))]


@functools.cache
def _declared(message: Descriptor) -> tuple[Topic, str]:
    """Returns the topic of a type of events, and the name of its key field."""
    options = message.GetOptions()
    if not options.HasExtension(options_pb2.topic):
        raise KeyError(f"{message.full_name} has no option (photomesh.common.v1.topic)")
    return _topic(options), options.Extensions[options_pb2.topic].key


def _topic(options: MessageOptions) -> Topic:
    declared = options.Extensions[options_pb2.topic]
    return Topic(
        declared.name,
        partitions=declared.partitions or Topic.partitions,
        retention=timedelta(hours=declared.retention_hours) or Topic.retention,
    )
